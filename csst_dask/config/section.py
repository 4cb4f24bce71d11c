"""What every section of a configuration has in common."""

from __future__ import annotations

import typing

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of every section: hashable, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def section_in(annotation: object) -> type[Section] | None:
    """The section that a field's annotation names, if it does."""
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and issubclass(part, Section):
            return part
    return None
