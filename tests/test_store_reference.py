"""The page of a store's variables: current, complete, and right about what is filled."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from conftest import CHUNKS, FRAME

from csst_dask.config import Config, IngestConfig
from csst_dask.inference.networks import ModelPair
from csst_dask.models.files import identify_pair
from csst_dask.pipeline.block import Block, Work, process_block
from csst_dask.pipeline.plan import find_candidates, plan_reading
from csst_dask.pipeline.record import Recorder
from csst_dask.pipeline.routes import prepare_predictions
from csst_dask.pipeline.source import open_files
from csst_dask.pipeline.summary import Summary
from csst_dask.store import SurveyStore
from csst_dask.store.layout import CHIP_VARIABLES, MEASURED, PREDICTION_VARIABLES, ROOT_AXES, pixel_variables
from csst_dask.store.reference import UNFILLED, reference

PAGE = Path(__file__).parents[1] / "docs" / "store-variables.md"

SOMETIMES = {
    "attempts", "predict_attempts", "reason", "out_of_distribution", "review_reason", "confidence", "saturated",
    "n_star_tile", "n_bright_tile", "star_counts", "star_counts_lower", "star_counts_upper",
    "log_star_exposure", "reference_limit", "confusion_limit",
}  # fmt: skip
"""Variables that one chip may leave empty: nothing happened to it, it is out of distribution or not simulated, its
stars are few, faint or stand apart."""


def test_the_page_of_all_variables_is_what_the_code_says():
    command = "python -m csst_dask.store.reference > docs/store-variables.md"
    assert PAGE.read_text(encoding="utf-8") == reference(), command


def test_every_variable_is_on_the_page_with_its_meaning():
    variables = (*pixel_variables(FRAME, CHUNKS, "lossless", False, True), *CHIP_VARIABLES, *PREDICTION_VARIABLES)
    for variable in (*variables, *ROOT_AXES):
        assert f"| `{variable.name}` |" in reference(), variable.name
        assert variable.attrs["long_name"], variable.name
    assert "|  |\n" not in reference()


def test_a_chip_fills_all_variables_but_those_that_are_marked(tmp_path, write_exposures):
    write_exposures(tmp_path / "in", detectors=(8,), exposures=1)
    config = Config(ingest=IngestConfig(frame=FRAME, chunks=CHUNKS))
    pair = replace(ModelPair(*identify_pair(None), config.inference), batch=1)
    with SurveyStore.write(tmp_path / "s.zarr", config.ingest, config.mask) as store:
        candidates, _ = find_candidates([tmp_path / "in"], truth=True)
        read = plan_reading(store, candidates, config, Summary())
        prepare_predictions(store, pair, config)
        recorder = Recorder(store, Summary(), Summary(), Summary())
        block = Block(read=read)
        recorder.take(block, process_block(block, Work(store.location, store.rows, config, open_files, pair)))
        recorder.finish()
    arrays = {**store.arrays, **store.predictions.arrays}
    chips = {name: a for name, a in arrays.items() if a.metadata.dimension_names[0] == "chip" and name != "chip"}
    blank = {name for name, array in chips.items() if _is_blank(array)}
    assert blank >= UNFILLED
    assert blank - UNFILLED <= SOMETIMES
    assert store.attrs["measured"] == list(MEASURED)
    assert not blank & (set(MEASURED) - SOMETIMES)


def _is_blank(array):
    values, fill = array[:], array.metadata.fill_value
    return bool(np.isnan(values).all()) if values.dtype.kind == "f" else bool((values == fill).all())
