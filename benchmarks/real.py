"""The paths of the package that are timed: files to reduced maps, and a renderer with a clock on every stage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from csst_dask.config import Config, IngestConfig, SimulationConfig
from csst_dask.io.pixels import open_pixels
from csst_dask.preprocess import Reduced
from csst_dask.runners.chips import PixelPass
from csst_dask.schema import FRAME_SHAPE, ChipFiles
from csst_dask.simulation import exposure as simulation

STAGES = {
    "draw": (simulation, "_draw_stars"),
    "PSF": (simulation, "make_psf"),
    "stars": (simulation, "add_stars"),
    "bleed": (simulation.ccd, "bleed"),
    "defects": (simulation.ccd, "add_defects"),
    "noise": (simulation, "observe"),
}


def config_of(frame: tuple[int, int]) -> Config:
    """A configuration that keeps no pixels."""
    return Config(ingest=IngestConfig(pixels="none", frame=frame, chunks=frame))


@cache
def pixel_pass(config: Config) -> PixelPass:
    """One pass object for each configuration, as a worker thread has it."""
    return PixelPass(config)


def maps_of_file(path: str, config: Config | None = None) -> Reduced:
    """Reduce a FITS image as ingestion does, without flags and weights."""
    with open_pixels(path) as image:
        return pixel_pass(config or config_of(FRAME_SHAPE)).run(lambda a, b: (image.read_rows(a, b), None, None), None)


def maps_of_triplet(files: ChipFiles) -> Reduced:
    """Reduce a FITS image with its weights and flags as ingestion does."""
    with open_pixels(files.image) as image, open_pixels(files.weight) as wht, open_pixels(files.flag) as flg:
        return pixel_pass(config_of(FRAME_SHAPE)).run(
            lambda a, b: (image.read_rows(a, b), flg.read_rows(a, b), wht.read_rows(a, b)), None
        )


def read_files(buffer: bytearray, *paths: str | None) -> None:
    """Read files once from beginning to end into a buffer that is used again and again."""
    for path in filter(None, paths):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def plan(stars: float, band_detector: int, seed: int = 0) -> simulation.Exposure:
    """One exposure of the demonstration region with so many stars on a detector."""
    [exposure] = simulation.plan_survey(
        SimulationConfig(region="demo", seed=seed, star_counts=(int(stars),), detectors=(band_detector,))
    )
    return exposure


@contextmanager
def stage_clock() -> Iterator[dict[str, float]]:
    """CPU seconds spent in each stage of rendering while the context lasts."""
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
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.process_time() - start

    return call
