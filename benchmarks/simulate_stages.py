"""CPU seconds that each stage of a simulated chip takes, over chips of a data set drawn at random.

    python benchmarks/simulate_stages.py --config configs/datasets/training.yaml --fields 16

No cluster; the first chip, which compiles, is left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from csst_dask.config import load_config
from csst_dask.pipeline.block import Block, Work, process_block
from csst_dask.runners.simulate import simulated_chip
from csst_dask.simulation import renderer
from csst_dask.simulation.product import chip_key
from csst_dask.simulation.survey import plan_survey
from csst_dask.store import SurveyStore
from csst_dask.store.writer import ChipWriter

STAGES = (
    (renderer, "take_shot", "what is on the chip"),
    (renderer, "paint_stars", "stars"),
    (renderer, "add_galaxies", "galaxies"),
    (renderer.Renderer, "_add_artefacts", "artefacts and detector"),
    (renderer, "observe", "sky and noise"),
    (ChipWriter, "write_measured", "compression and writing"),
)


def timed(function: Callable[..., Any], spent: Counter, stage: str) -> Callable[..., Any]:
    """The function, whose CPU time is added up."""

    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[stage] += time.process_time() - start

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/datasets/training.yaml"))
    parser.add_argument("--fields", type=int, default=16)
    options = parser.parse_args()
    config, spent, total = load_config(options.config), Counter(), 0.0
    start = time.process_time()
    plan = plan_survey(config.simulation)
    print(f"planning {len(plan)} exposures: {time.process_time() - start:.1f} CPU s")
    chosen = np.random.default_rng(0).choice(len(plan), options.fields, replace=False)
    chips = [(plan[k], detector) for k in chosen for detector in plan[k].detectors]
    for owner, name, stage in STAGES:
        setattr(owner, name, timed(getattr(owner, name), spent, stage))
    with tempfile.TemporaryDirectory() as folder:
        with SurveyStore.write(f"{folder}/survey.zarr", config.ingest, config.mask, keep_mask=False) as store:
            rows = store.allocate([chip_key(*chip) for chip in chips])
            work = Work(store.location, store.rows, config, simulated_chip)
        for row, chip in zip(rows, chips, strict=True):
            if row == 1:
                spent.clear()
                total = 0.0
            start = time.process_time()
            result = process_block(Block(read={row: chip}), work)
            assert not result.errors, result.errors
            total += time.process_time() - start
    n = len(rows) - 1
    spent["zeroing and reduction"] = total - sum(spent.values())
    print(f"{total / n:.2f} CPU s a chip, mean of {n}")
    for stage, seconds in spent.most_common():
        print(f"{seconds / n:8.3f}  {stage}")


if __name__ == "__main__":
    main()
