"""A Markdown page with the tables and pictures that it shows, and the names in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from csst_dask.errors import ConfigError
from csst_dask.evaluation.formatting import markdown_table

SHIPPED, TREES, EXTRACTION = "shipped", "trees and SVM", "source extraction"
"""Names of the networks that ship with the package and of the two baselines."""

SHOWN = re.compile(r"\(`?(\w+\.(?:csv|png))`?\)")
"""A table or picture in the text of a page."""


class Page:
    """A Markdown page that stores each table as CSV and each picture as PNG beside it."""

    def __init__(self, out: Path, title: str) -> None:
        self.out = out
        self.lines = [f"# {title}", ""]
        out.mkdir(parents=True, exist_ok=True)

    def say(self, *paragraphs: str) -> None:
        """Add paragraphs, or headings."""
        self.lines += [line for text in paragraphs for line in (text, "")]

    def show(self, name: str, table: pd.DataFrame, how: str) -> None:
        """Add a sentence on how to read a table, and the table."""
        table.to_csv(self.out / f"{name}.csv", index=False, float_format="%.6g")
        self.lines += [f"{how} (`{name}.csv`)", "", *markdown_table(table), ""]

    def picture(self, name: str, caption: str) -> Path:
        """Add a picture; the path to draw it to."""
        self.lines += [f"![{caption}]({name}.png)", "", f"*{caption}*", ""]
        return self.out / f"{name}.png"

    def write(self) -> Path:
        """Write ``evaluation.md``; what an earlier one shows and this one does not goes."""
        path, text = self.out / "evaluation.md", "\n".join(self.lines).rstrip() + "\n"
        before = set(SHOWN.findall(path.read_text(encoding="utf-8"))) if path.exists() else set()
        path.write_text(text, encoding="utf-8")
        for name in before - set(SHOWN.findall(text)):
            (self.out / name).unlink(missing_ok=True)
        return path


def slug(name: str) -> str:
    """Part of a file name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def name_methods(folders: Sequence[Path | None]) -> dict[str, Path | None]:
    """Names of networks: the last parts of their folders, as many as it takes to tell them apart.

    Parameters
    ----------
    folders : sequence of Path or None
        None is what ships with the package.

    Returns
    -------
    dict of str to Path or None
        In the given order. No two names, nor one and a baseline's, give one file name.

    Raises
    ------
    ConfigError
        If a folder is given twice, or its path cannot be told apart from another one or a baseline.
    """
    whole = [folder.resolve() if folder is not None else None for folder in folders]
    for folder in whole:
        if whole.count(folder) > 1:
            raise ConfigError(f"the weights {folder or 'of the package'} are given twice; give each folder once")
    taken = {slug(name) for name in (SHIPPED, TREES, EXTRACTION)}
    longest = max((len(folder.parts) for folder in whole if folder is not None), default=1)
    names = dict.fromkeys((folder for folder in whole if folder is not None), "")
    for depth in range(1, longest + 1):
        names = {folder: found or "/".join(folder.parts[-depth:]) for folder, found in names.items()}
        slugs = [slug(name) for name in names.values()]
        clash = {name for name in slugs if slugs.count(name) > 1 or name in taken or not name}
        if not clash:
            break
        if depth < longest:
            names = {folder: "" if slug(name) in clash else name for folder, name in names.items()}
    else:
        raise ConfigError(
            f"the weights {', '.join(str(folder) for folder in names)} cannot be told apart by name; rename a folder"
        )
    return {SHIPPED if folder is None else names[folder]: folder for folder in whole}


def check_names(methods: Mapping[str, object]) -> None:
    """Refuse names that give one file name.

    Raises
    ------
    ValueError
        If there are such.
    """
    slugs = [slug(name) for name in methods]
    if double := {name for name in slugs if slugs.count(name) > 1 or not name}:
        raise ValueError(f"names of methods give the same or no file name ({', '.join(double)}); choose others")
