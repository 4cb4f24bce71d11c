"""Where pixels come from: a chip that a source has opened, and the source that opens FITS files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from csst_dask.config import IngestConfig
from csst_dask.io.detector import read_detector
from csst_dask.io.truth import read_truth
from csst_dask.preprocess.measure import Rows
from csst_dask.schema import ChipFiles, ChipInfo

Finish = Callable[[ChipInfo], tuple[ChipInfo, str]]
"""Adds to a chip's scalars what is read after its pixels, such as its truth; and a note, or nothing."""


@dataclass(frozen=True)
class OpenChip:
    """A chip whose pixels can be read."""

    info: ChipInfo
    """What is known of it before its pixels are measured."""
    rows: Rows
    cards: NDArray
    """(80 n,) uint8, FITS cards."""
    notes: tuple[str, ...] = ()
    """What was odd about its files, though not odd enough to reject them."""
    finish: Finish | None = None


Source = Callable[[Any, IngestConfig], AbstractContextManager[OpenChip]]
"""Opens what a plan names, such as the files of a chip; pixels can be read within the context."""


@contextmanager
def open_files(files: ChipFiles, config: IngestConfig) -> Iterator[OpenChip]:
    """Open the FITS files of a chip.

    Parameters
    ----------
    files : ChipFiles
    config : IngestConfig

    Yields
    ------
    OpenChip

    Raises
    ------
    ChipRejected
        As `csst_dask.io.read_detector`.
    """
    with read_detector(files, config.frame) as detector:

        def rows(y0: int, y1: int) -> tuple[NDArray, NDArray | None, NDArray | None]:
            flags = detector.flag.read_rows(y0, y1) if detector.flag else None
            weights = detector.weight.read_rows(y0, y1) if detector.weight else None
            return detector.image.read_rows(y0, y1), flags, weights

        def finish(info: ChipInfo) -> tuple[ChipInfo, str]:
            if not files.truth or not config.truth:
                return info, ""
            counts = read_truth(files, info.band, config.frame)
            known = {name: getattr(counts, name) for name in ("n_star", "n_bright", "n_brighter")}
            return replace(info, **known), counts.note

        yield OpenChip(detector.info(), rows, detector.cards, tuple(detector.notes), finish)
