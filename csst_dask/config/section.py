"""What every section of a configuration has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of every section: hashable, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
