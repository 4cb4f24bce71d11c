"""The paths of the package that are timed: files to block statistics, and a renderer with a clock on every stage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from csst_dask.config import Config, IngestConfig, SimulationConfig
from csst_dask.io.pixels import open_pixels
from csst_dask.pipeline.frame import PixelPass
from csst_dask.preprocess import Measured
from csst_dask.schema import FRAME_SHAPE, ChipFiles, ChipKey
from csst_dask.simulation import exposure as exposures
from csst_dask.simulation import renderer, shot
from csst_dask.simulation.exposure import Chip, Exposure
from csst_dask.simulation.survey import plan_survey
from csst_dask.store import SurveyStore
from csst_dask.store.writer import ChipWriter, task_arrays

STAGES = {
    "catalogue": (exposures, "draw_scene"),
    "PSF": (shot, "make_exposure_psf"),
    "stars": (renderer, "paint_stars"),
    "galaxies": (renderer, "add_galaxies"),
    "cosmic rays": (renderer.ccd, "add_cosmic_rays"),
    "bleeding": (renderer.ccd, "bleed"),
    "defects": (renderer.ccd, "add_defects"),
    "sky and noise": (renderer, "observe"),
}


def config_of(frame: tuple[int, int]) -> Config:
    """A configuration that keeps no pixels."""
    return Config(ingest=IngestConfig(pixels="none", frame=frame, chunks=frame))


@cache
def pixel_pass(config: Config) -> PixelPass:
    """One pass object for each configuration, as a worker thread has it."""
    return PixelPass(config)


def maps_of_file(path: str, config: Config | None = None) -> Measured:
    """Reduce a FITS image as ingestion does, without flags and weights."""
    with open_pixels(path) as image:
        return pixel_pass(config or config_of(FRAME_SHAPE)).run(lambda a, b: (image.read_rows(a, b), None, None), None)


def maps_of_triplet(files: ChipFiles) -> Measured:
    """Reduce a FITS image with its weights and flags as ingestion does."""
    with open_pixels(files.image) as image, open_pixels(files.weight) as wht, open_pixels(files.flag) as flg:
        return pixel_pass(config_of(FRAME_SHAPE)).run(
            lambda a, b: (image.read_rows(a, b), flg.read_rows(a, b), wht.read_rows(a, b)), None
        )


@contextmanager
def store_without_pixels(folder: Path) -> Iterator[ChipWriter]:
    """The place of one chip in a store that keeps masks and no pixels."""
    config = Config(ingest=IngestConfig(pixels="none"))
    with SurveyStore.write(folder / "s.zarr", config.ingest, config.mask) as store:
        store.allocate([ChipKey("100000001", 6, 1)])
        yield ChipWriter(task_arrays(store.location, store.rows), 0)


def triplet_to_store(files: ChipFiles, writer: ChipWriter) -> Measured:
    """What a task of ``csst-dask ingest --pixels none`` does with a chip, but for its headers."""
    with open_pixels(files.image) as image, open_pixels(files.weight) as wht, open_pixels(files.flag) as flg:
        found = pixel_pass(Config(ingest=IngestConfig(pixels="none"))).run(
            lambda a, b: (image.read_rows(a, b), flg.read_rows(a, b), wht.read_rows(a, b)), writer
        )
    writer.write_measured(found.stored(), np.full(80, 32, np.uint8))
    return found


def read_files(buffer: bytearray, *paths: str | None) -> None:
    """Read files once from beginning to end into a buffer that is used again and again."""
    for path in filter(None, paths):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def plan(stars: float, band_detector: int, galaxies: bool = False, seed: int = 0) -> Exposure:
    """One exposure of the demonstration region with so many stars on a detector; cosmic rays come with galaxies."""
    [exposure] = plan_survey(
        SimulationConfig(
            region="demo",
            seed=seed,
            star_counts=(int(stars),),
            detectors=(band_detector,),
            galaxies=galaxies,
            cosmic_rays=galaxies,
        )
    )
    return exposure


def render_and_reduce(rendering: renderer.Renderer, exposure: Exposure, detector: int) -> Chip:
    """What a task of ``csst-dask simulate --store`` does before it writes: noise comes with the rows."""
    chip, ready = rendering.expose(exposure, detector)

    def rows(y0: int, y1: int) -> tuple:
        ready(y0, y1)
        return chip.image[y0:y1], chip.flags[y0:y1], None

    pixel_pass(config_of(FRAME_SHAPE)).run(rows, None)
    return chip


@contextmanager
def stage_clock() -> Iterator[dict[str, float]]:
    """CPU seconds that the threads of each stage of rendering spend while the context lasts."""
    seconds: dict[str, float] = defaultdict(float)
    originals = {name: getattr(module, attribute) for name, (module, attribute) in STAGES.items()}
    for name, (module, attribute) in STAGES.items():
        setattr(module, attribute, _timed(originals[name], name, seconds))
    try:
        yield seconds
    finally:
        for name, (module, attribute) in STAGES.items():
            setattr(module, attribute, originals[name])


def _timed(function: Callable, name: str, seconds: dict[str, float]) -> Callable:
    def call(*args: object, **kwargs: object) -> object:
        start = time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.thread_time() - start

    return call
