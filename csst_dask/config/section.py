"""What every section of a configuration has in common."""

from __future__ import annotations

import typing
from os import PathLike
from pathlib import Path

from pydantic import BaseModel, BeforeValidator, ConfigDict

from csst_dask.errors import ConfigError
from csst_dask.outputs import local_path


def _as_local_path(value: object) -> object:
    if not isinstance(value, str | PathLike):
        return value
    try:
        return local_path(value, "")
    except ConfigError as error:
        raise ValueError(str(error).removeprefix(": ")) from None


LocalPath = typing.Annotated[Path, BeforeValidator(_as_local_path)]
"""A path that is no URL of another place."""


class Section(BaseModel):
    """Base of every section: hashable, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def section_in(annotation: object) -> type[Section] | None:
    """The section that a field's annotation names, if it does."""
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and issubclass(part, Section):
            return part
    return None
