"""What a worker does with a block of chips: read, mask, measure, store, predict, and project on the sky.

A command switches stages off by asking only for some of them. What is stored already is not done again: a block that is
tried once more after its chips were read goes on with predicting them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from csst_dask.config import Config, RoutingConfig
from csst_dask.errors import ChipRejected
from csst_dask.inference.device import choose_device
from csst_dask.inference.networks import ModelPair, predictor_of
from csst_dask.inference.routing import AGAINST, route_chips
from csst_dask.maps.density import ChipForMap, DensitySums, chip_sums
from csst_dask.maps.grid import HealpixGrid
from csst_dask.models.calibrate import INTERVAL_LEVEL
from csst_dask.pipeline.frame import PixelPass
from csst_dask.pipeline.source import OpenChip, Source
from csst_dask.preprocess import Measured
from csst_dask.preprocess.measure import STATISTICS, Rows
from csst_dask.schema import BLOCK_STATS, ROUTE_FLAGS, ChipInfo, ChipResult
from csst_dask.store.arrays import read_chip
from csst_dask.store.layout import MEASURED
from csst_dask.store.writer import ChipWriter, task_arrays

if TYPE_CHECKING:
    from csst_dask.pipeline.device import DevicePass

SCALARS = ("band", "exptime", "zero_point", *STATISTICS)
"""Per-chip variables that predictions are made from."""

PLACE = ("band", "corner_ra", "corner_dec")
"""Per-chip variables that say where a chip lies."""

ON_MAP = (
    "density_class", "bright_count", "bright_lower", "bright_upper", "route_flags", "review_reason",
    "out_of_distribution",
)  # fmt: skip
"""Predictions that a map is made of."""

VALID = BLOCK_STATS.index("valid")

Limit = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Work:
    """What is the same for all blocks of a run."""

    location: str
    """The survey store."""
    rows: int
    """Chips that it has."""
    config: Config
    source: Source | None = None
    """Opens the chips that are read."""
    pair: ModelPair | None = None
    """Networks; without them nothing is predicted."""
    nside: int | None = None
    """Resolution of the map; without it nothing is projected."""


@dataclass(frozen=True)
class Block:
    """Chips of a store that are worked on together, by row, and what is to be done with each."""

    read: Mapping[int, Any] = field(default_factory=dict)
    """Chips to read: what the source opens."""
    known: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    """Chips that were read before: their `SCALARS` and `PLACE`."""
    predicted: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    """Chips that were predicted before: their `PLACE` and `ON_MAP`."""

    @property
    def rows(self) -> list[int]:
        """Rows with something to do."""
        return sorted({*self.read, *self.known, *self.predicted})

    def part(self, row: int, before: BlockResult | None = None) -> Block:
        """The block with one chip alone to do, after what was done of it ``before``."""
        here = Block(*({row: part[row]} if row in part else {} for part in (self.read, self.known, self.predicted)))
        if before is None:
            return here
        if row in before.chips:
            here = Block(known={row: _scalars(before.chips[row].info)})
        if row in before.predictions:
            here = Block(predicted={row: here.known[row] | before.predictions[row]})
        return here


@dataclass(frozen=True)
class BlockResult:
    """What became of the chips of a block, by row."""

    chips: dict[int, ChipResult] = field(default_factory=dict)
    """Those that were read."""
    predictions: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Values of `store.layout.PREDICTED` of those that were predicted."""
    sums: dict[int, DensitySums | str] = field(default_factory=dict)
    """Those that were projected; for one that cannot be, why."""
    device: str = "cpu"
    """What measured them."""
    errors: dict[int, Exception] = field(default_factory=dict)
    """What was raised for others, which may be tried again (`Block.part`)."""


def process_block(block: Block, work: Work, limit: Limit = nullcontext) -> BlockResult:
    """Do what there is to do with the chips of a block.

    Parameters
    ----------
    block : Block
    work : Work
    limit : callable
        Makes the context in which each chip is read, such as a limit of its time.

    Returns
    -------
    BlockResult
        A chip that fails in a way that was not foreseen is among its ``errors``; the others are done all the same.
    """
    result = BlockResult(device=choose_device(work.config.inference.device) if block.read else "cpu")
    seen: dict[int, Measured] = {}
    arrays = task_arrays(work.location, work.rows)
    for row, found in zip(block.read, _read(block, work, arrays, limit, result.device), strict=True):
        if isinstance(found, Exception):
            result.errors[row] = found
        else:
            result.chips[row], measured = found
            if measured is not None:
                seen[row] = measured
    read = {row: _scalars(chip.info) for row, chip in result.chips.items() if chip.status == "done"}
    known = {**read, **block.known}
    if work.pair is not None and known:
        _predict(known, seen, work, arrays, result)
    if work.nside is not None:
        made = {row: known[row] | found for row, found in result.predictions.items()}
        _project({**made, **block.predicted}, seen, work, arrays, result)
    return result


def _scalars(info: ChipInfo | None) -> dict[str, Any]:
    return {name: getattr(info, name) for name in (*SCALARS, *PLACE)}


# read, mask, measure, store


def _read(
    block: Block, work: Work, arrays: Mapping[str, Any], limit: Limit, device: str
) -> Iterator[tuple[ChipResult, Measured | None] | Exception]:
    """Read, mask, measure and store chips one after the other, on a GPU where the configuration lets there be one."""
    if not block.read:
        return
    pending = [_PendingChip(item, row, work, arrays) for row, item in block.read.items()]
    if device != "cpu":
        measured = iter(_device_pass(work.config, device).run_many(chip.open() for chip in pending))
    else:
        measured = (_on_processor(chip, work.config) for chip in pending)
    for chip in pending:
        with limit():
            found = next(measured)
            outcome: Any
            try:
                outcome = _accept(chip, found)
            except Exception as error:
                outcome = error
        yield outcome


def _accept(chip: _PendingChip, found: Measured | Exception) -> tuple[ChipResult, Measured | None]:
    """What became of a chip whose pixels were read, and what was measured, as the store holds it."""
    try:
        if isinstance(found, Exception):
            raise found
        note, info = chip.complete(found)
        return ChipResult("done", note, info), replace(
            found, maps=found.maps.astype(np.float32), zero_point=info.zero_point
        )
    except ChipRejected as error:
        chip.writer.clear()
        return ChipResult("rejected", str(error)), None


class _PendingChip:
    """A chip on its way into the store: opened to be read, then completed."""

    def __init__(self, item: Any, row: int, work: Work, arrays: Mapping[str, Any]):
        self.item, self.work = item, work
        self.writer = ChipWriter(dict(arrays), row)
        self.opened: OpenChip

    @contextmanager
    def open(self) -> Iterator[tuple[Rows, ChipWriter]]:
        """Rows and writer; the files are open as long as rows are read."""
        assert self.work.source is not None
        with self.work.source(self.item, self.work.config.ingest) as self.opened:
            yield self.opened.rows, self.writer

    def complete(self, measured: Measured) -> tuple[str, ChipInfo]:
        """Check and write what the pass over the pixels gave: notes and scalars."""
        info = _complete(self.opened.info, measured)
        notes = [*self.opened.notes, self.writer.write_measured(measured.stored(), self.opened.cards)]
        if self.opened.finish is not None:
            info, note = self.opened.finish(info)
            notes.append(note)
        return "; ".join(filter(None, notes)), info


def _on_processor(chip: _PendingChip, config: Config) -> Measured | Exception:
    try:
        with chip.open() as (rows, writer):
            return _pixel_pass(config).run(rows, writer)
    except Exception as error:
        return error


def _complete(info: ChipInfo, measured: Measured) -> ChipInfo:
    """Check the statistics and add them to what the headers gave."""
    if measured.n_valid == 0:
        raise ChipRejected("no valid pixel: all are flagged or not finite; check the flag file and the image")
    if not measured.pixel_std > 0:
        raise ChipRejected(f"constant image: every valid pixel is {measured.pixel_mean:g}; expected noise")
    if not np.isfinite(measured.pixel_std):
        raise ChipRejected("pixel values are too large to be counts (their squares overflow); check the image")
    return replace(info, **{name: getattr(measured, name) for name in STATISTICS})


_buffers = threading.local()


def _pixel_pass(config: Config) -> PixelPass:
    """One for a thread, whose buffers it holds."""
    found: PixelPass | None = getattr(_buffers, "found", None)
    if found is None or found.config != config:
        found = _buffers.found = PixelPass(config)
    return found


_devices: dict[str, DevicePass] = {}


def _device_pass(config: Config, device: str) -> DevicePass:
    """One for a process: its memory holds whole frames."""
    found = _devices.get(device)
    if found is None or found.config != config:
        import torch

        from csst_dask.pipeline.device import DevicePass

        _devices.clear()
        found = _devices[device] = DevicePass(config, torch.device(device))
    return found


# predict


def _predict(
    known: Mapping[int, dict], seen: Mapping[int, Measured], work: Work, arrays: Mapping[str, Any], result: BlockResult
) -> None:
    """Predict and route chips in passes of fixed size, in which every row of the store has a fixed place.

    So a result depends on nothing but the chip and the networks.
    """
    assert work.pair is not None
    batch = work.pair.batch
    measured: dict[int, Measured] = {}
    for row in known:
        try:
            measured[row] = seen[row] if row in seen else stored_measurements(arrays, row, known[row])
        except Exception as error:
            result.errors[row] = error
    for number in sorted({row // batch for row in measured}):
        rows = [row for row in measured if row // batch == number]
        try:
            found = _predict_pass(rows, known, measured, work.pair, work.config.routing)
        except Exception as error:
            result.errors.update(dict.fromkeys(rows, error))
            continue
        for place, row in enumerate(rows):
            result.predictions[row] = {name: values[place] for name, values in found.items()}


def stored_measurements(arrays: Mapping[str, Any], row: int, scalars: Mapping[str, Any]) -> Measured:
    """What the store holds of a chip.

    Parameters
    ----------
    arrays : mapping of str to zarr.Array
        `store.layout.MEASURED`.
    row : int
    scalars : mapping
        `SCALARS` of the chip.

    Raises
    ------
    DamagedStore
        If a chunk was torn or changed.
    """
    return Measured.of({name: read_chip(arrays[name], row) for name in MEASURED}, scalars)


def _predict_pass(
    rows: list[int],
    known: Mapping[int, dict],
    measured: Mapping[int, Measured],
    pair: ModelPair,
    routing: RoutingConfig,
) -> dict[str, NDArray]:
    found = predictor_of(pair).predict_chips(
        [measured[row] for row in rows],
        [str(known[row]["band"]) for row in rows],
        [float(known[row]["exptime"]) for row in rows],
        [row % pair.batch for row in rows],
        routing.references,
    )
    return found | route_chips(found, routing)


# project on the sky


def _project(
    chips: Mapping[int, dict], seen: Mapping[int, Measured], work: Work, arrays: Mapping[str, Any], result: BlockResult
) -> None:
    assert work.nside is not None
    grid, stored = HealpixGrid(work.nside), arrays["block_stats"]
    for row, chip in chips.items():
        try:
            valid = seen[row]["valid"] if row in seen else read_chip(stored, (row, VALID))
            result.sums[row] = chip_sums(_for_map(chip, valid), grid)
        except ChipRejected as error:
            result.sums[row] = str(error)
        except Exception as error:
            result.errors[row] = error


def _for_map(chip: Mapping[str, Any], valid: NDArray[np.float32]) -> ChipForMap:
    return ChipForMap(
        band=str(chip["band"]),
        corner_ra=np.asarray(chip["corner_ra"]),
        corner_dec=np.asarray(chip["corner_dec"]),
        valid=valid,
        bright_count=float(chip["bright_count"]),
        bright_lower=float(chip["bright_lower"]),
        bright_upper=float(chip["bright_upper"]),
        density_class=int(chip["density_class"]),
        crowded=bool(int(chip["route_flags"]) & ROUTE_FLAGS["crowded"]),
        review=bool(chip["out_of_distribution"]) or bool(int(chip["review_reason"]) & AGAINST),
        level=float(chip.get("level", INTERVAL_LEVEL)),
    )
