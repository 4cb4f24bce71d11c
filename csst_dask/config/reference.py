"""The page of all settings, written from the sections themselves: ``python -m csst_dask.config.reference``."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic.fields import FieldInfo

from csst_dask.config.load import Config
from csst_dask.config.section import Section, section_in

HEAD = """# All settings

What a YAML file of `--config` may hold. Every setting has a default, so a file names only what differs; options on the
command line go before the file. A misspelt name, or a value that does not fit, ends a command before it starts. Paths
are taken from the folder of the file.

```yaml
store: survey.zarr
training:
  recipe: csst
  batch: 128
```

This page is written from the code by `python -m csst_dask.config.reference > docs/configuration.md`."""

WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path", type(None): "null"}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def reference() -> str:
    """All sections with type, default and meaning of their settings.

    Returns
    -------
    str
        Markdown.
    """
    whole = [name for name, field in Config.model_fields.items() if section_in(field.annotation) is None]
    lines = [HEAD, "", "## The file itself", "", *_table(Config, whole)]
    for name, section in _sections(Config):
        names = [field for field, info in section.model_fields.items() if section_in(info.annotation) is None]
        lines += ["", f"## {name}", "", inspect.cleandoc(section.__doc__ or ""), "", *_table(section, names)]
    return "\n".join(lines) + "\n"


def _sections(of: type[Section], before: str = "") -> Iterator[tuple[str, type[Section]]]:
    for name, field in of.model_fields.items():
        section = section_in(field.annotation)
        if section is not None:
            yield before + name, section
            yield from _sections(section, f"{before}{name}.")


def _table(section: type[Section], names: list[str]) -> list[str]:
    said, default = _docstrings(section), section().model_dump(mode="json")
    rows = ["| setting | takes | default | |", "|---|---|---|---|"]
    for name in names:
        usual = yaml.safe_dump(default[name], default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
        cells = (f"`{name}`", _limited(section.model_fields[name]), f"`{usual}`", said.get(name, ""))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return rows


def _docstrings(section: type[Section]) -> dict[str, str]:
    """What stands below each field of a section."""
    [of] = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(of, ast.ClassDef)
    found = {}
    for field, below in zip(of.body, of.body[1:], strict=False):
        text = below.value if isinstance(below, ast.Expr) else None
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Constant):
            found[field.target.id] = " ".join(str(text.value).replace("``", "`").split())
    return found


def _limited(field: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in SIGNS.items()
        if hasattr(limit, name)
    ]
    return ", ".join([_kind(field.annotation), *limits])


def _kind(annotation: object) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(args[0])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(arg) for arg in args)
    if origin is tuple:
        return f"list of {_kind(args[0])}" if args[-1] is ... else f"{len(args)} of {_kind(args[0])}"
    if origin is dict:
        return f"{_kind(args[1])} by {_kind(args[0])}"
    return WORDS[annotation]  # type: ignore[index]


if __name__ == "__main__":
    print(reference(), end="")
