"""Fill a store in the process of the test, as a cluster of one worker would."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from conftest import CHUNKS, FRAME
from numpy.typing import NDArray

from csst_dask.config import Config, IngestConfig, MaskConfig
from csst_dask.pipeline.block import Block, BlockResult, Work, process_block
from csst_dask.pipeline.plan import Candidate, find_candidates, plan_reading
from csst_dask.pipeline.record import Recorder
from csst_dask.pipeline.source import Source, open_files
from csst_dask.pipeline.summary import Summary
from csst_dask.runners.simulate import simulated_chip, survey_identity
from csst_dask.schema import ChipInfo, ChipKey, ChipResult
from csst_dask.simulation.exposure import Exposure
from csst_dask.simulation.product import chip_key
from csst_dask.simulation.survey import plan_survey
from csst_dask.store import SurveyStore, layout
from csst_dask.store.writer import ChipWriter, task_arrays


def fill(
    path: str,
    chips: Sequence[Candidate],
    source: Source,
    config: Config,
    *,
    keep_mask: bool = True,
    attrs: Mapping = {},
) -> BlockResult:
    """Read chips into a new store, as one block."""
    with SurveyStore.write(path, config.ingest, config.mask, keep_mask=keep_mask) as store:
        store.set_attrs(attrs)
        summary = Summary()
        block = Block(read=plan_reading(store, chips, config, summary))
        result = process_block(block, Work(store.location, store.rows, config, source))
        recorder = Recorder(store, summary, Summary(), Summary())
        recorder.take(block, result)
        recorder.finish()
    return result


def ingest(path: str, inputs: Sequence[Any], config: Config) -> BlockResult:
    """Read files into a new store."""
    return fill(path, find_candidates(inputs, config.ingest.truth)[0], open_files, config)


def simulate(path: str, config: Config, chips: Sequence[tuple[Exposure, int]] | None = None, **options: Any) -> None:
    """Render chips into a new store; by default all of the survey that the configuration describes."""
    if chips is None:
        chips = [(e, d) for e in plan_survey(config.simulation) for d in e.detectors]
    todo = [Candidate(chip_key(*chip), chip, "simulated") for chip in chips]
    attrs = {"simulation": survey_identity(config.simulation)}
    result = fill(path, todo, simulated_chip, config, attrs=attrs, **options)
    assert not result.errors


def write_maps(path: str, block_stats: NDArray, chips: Sequence[ChipInfo | None]) -> None:
    """Write chips without pixels into a new store, in exposures of four; None leaves a chip pending.

    Networks learn from small maps in seconds: those of the store are as large as the ones given.
    """
    ingest = IngestConfig(frame=FRAME, chunks=CHUNKS, pixels="none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "BLOCK_SHAPE", block_stats.shape[2:])
        store = SurveyStore.write(path, ingest, MaskConfig(), keep_mask=False)
    with store:
        rows = store.allocate([ChipKey(f"{10_000_000_000 + row // 4}", 8 + row % 4) for row in range(len(chips))])
        for row in rows:
            ChipWriter(task_arrays(path, len(rows)), row).write_measured(
                {"block_stats": block_stats[row]}, np.zeros(0, np.uint8)
            )
        known = [row for row in rows if chips[row] is not None]
        store.record(known, [ChipResult("done", info=chips[row]) for row in known])
