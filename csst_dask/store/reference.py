"""The page of all variables of a survey store, from the layout itself: ``python -m csst_dask.store.reference``."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, ZstdCodec

from csst_dask.config import IngestConfig
from csst_dask.store.layout import (
    BLOCK,
    CHIP_VARIABLES,
    COPIED,
    FILE_VARIABLES,
    PREDICTION_AXES,
    PREDICTION_VARIABLES,
    ROOT_AXES,
    VERSION,
    Variable,
    pixel_variables,
)

HEAD = f"""# Variables of a survey store

Layout version {VERSION}; [formats](formats.md) says how they belong together. *Empty* is what an entry that was not
written reads as. Variables marked "not yet" are declared, so that a store needs no new layout when a later release
fills them: they hold the empty value everywhere, and take no space.

This page is written from the code by `python -m csst_dask.store.reference > docs/store-variables.md`."""

UNFILLED: frozenset[str] = frozenset()
"""Variables that nothing writes yet."""


def reference() -> str:
    """All variables with dimensions, type, unit and meaning.

    Returns
    -------
    str
        Markdown.
    """
    usual = IngestConfig()
    pixels = pixel_variables(usual.frame, usual.chunks, usual.pixels, usual.shard, True)
    quantised = pixel_variables(usual.frame, usual.chunks, "quantised", usual.shard, True)[0]
    lines = [HEAD, "", "## With chunks of their own for every chip", "", *_large(pixels)]
    lines += [
        "",
        f"Sizes are those of a frame of {usual.frame[0]} x {usual.frame[1]} pixels. `image` is absent with",
        "`ingest.pixels: none`; a data set that is simulated with it has no `mask` either. With `ingest.shard: true`",
        "both are one file a chip, of the same chunks. With `ingest.pixels: quantised` the image is packed with",
        f"{_packed(quantised.codec)}. `mask` is a file for each row of chunks. `block_stats` is one file a",
        "chip, in which each statistic can be read alone.",
        "",
        "## One entry for each chip",
        "",
        *_small(CHIP_VARIABLES),
        "",
        f"{BLOCK} chips a chunk, {_packed(CHIP_VARIABLES[0].codec)}. The same holds for the predictions.",
        "",
        "## Axes",
        "",
        *_axes(ROOT_AXES),
        "",
        "## predictions",
        "",
        "The coordinates of the chips, from `obs_id` to `zero_point` above, are repeated here.",
        "",
        *_small(v for v in PREDICTION_VARIABLES if v not in COPIED),
        "",
        *_axes(PREDICTION_AXES),
        "",
        "## files",
        "",
        *_small(FILE_VARIABLES),
    ]
    return "\n".join(lines) + "\n"


def _large(variables: Iterable[Variable]) -> list[str]:
    rows = ["| variable | dimensions | type | unit | empty | chunk | packed with | filled | |", "|" + "---|" * 9]
    for v in variables:
        chunk = " x ".join(map(str, v.chunks[1:]))
        rows.append(_row(*_start(v), chunk, _packed(v.codec), _filled(v), _meaning(v)))
    return rows


def _small(variables: Iterable[Variable]) -> list[str]:
    rows = ["| variable | dimensions | type | unit | empty | filled | |", "|" + "---|" * 7]
    return [*rows, *(_row(*_start(v), _filled(v), _meaning(v)) for v in variables)]


def _axes(variables: Iterable[Variable]) -> list[str]:
    rows = ["| axis | size | type | unit | values | |", "|" + "---|" * 6]
    for v in variables:
        assert v.values is not None
        listed = [f"{value:g}" if v.dtype.kind != "U" else str(value) for value in v.values.tolist()]
        values = ", ".join(listed if len(listed) <= 12 else [*listed[:2], "...", listed[-1]])
        rows.append(
            _row(f"`{v.name}`", str(len(v.values)), _type(v), str(v.attrs.get("units", "1")), values, _meaning(v))
        )
    return rows


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _start(v: Variable) -> tuple[str, ...]:
    return f"`{v.name}`", ", ".join(v.dims), _type(v), str(v.attrs.get("units", "")), _empty(v)


def _type(v: Variable) -> str:
    if v.dtype.kind == "U":
        return f"text, {v.dtype.itemsize // 4} characters"
    if v.dtype.kind == "S":
        return f"text, {v.dtype.itemsize} bytes of UTF-8"
    return str(v.dtype.name)


def _empty(v: Variable) -> str:
    if v.dtype.kind in "US":
        return "no text"
    return "NaN" if np.issubdtype(v.dtype, np.floating) and np.isnan(v.fill) else str(v.fill)


def _filled(v: Variable) -> str:
    return "not yet" if v.name in UNFILLED else "yes"


def _meaning(v: Variable) -> str:
    text, names = str(v.attrs["long_name"]), str(v.attrs.get("flag_meanings", "")).split()
    codes = v.attrs.get("flag_values") or v.attrs.get("flag_masks") or ()
    listed = ", ".join(f"{code}: {name}" for code, name in zip(codes, names, strict=True))
    comment = f"; {v.attrs['comment']}" if "comment" in v.attrs else ""
    kind = "bits" if "flag_masks" in v.attrs else "codes"
    return text + comment + (f"; {kind} {listed}" if listed else "")


def _packed(codec: BytesBytesCodec) -> str:
    if isinstance(codec, BloscCodec):
        shuffle = "" if codec.shuffle.value == "noshuffle" else f", {codec.shuffle.value}"
        return f"blosc {codec.cname.value} {codec.clevel}{shuffle}, crc32c"
    assert isinstance(codec, ZstdCodec)
    return f"zstd {codec.level}, crc32c"


if __name__ == "__main__":
    print(reference(), end="")
