"""How many full-size chips a GPU renders and reduces per second, and where the time goes.

    python benchmarks/gpu_simulate.py --save-scenes scenes.npz     # where astropy is installed
    python benchmarks/gpu_simulate.py --scenes scenes.npz          # where the GPU is
    python benchmarks/gpu_simulate.py                              # both on one machine

Drawing a scene (which stars and galaxies there are) takes the processor; threads do it ahead. With ``--scenes`` they
only sort what the file holds. Without a GPU one small frame is rendered, to show that everything is in place.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from csst_dask.preprocess.measure_torch import TorchMeasurer
from csst_dask.schema import FRAME_SHAPE
from csst_dask.simulation.render_torch import Prepared, TorchRenderer
from csst_dask.simulation.shot import Shot, load_shots, save_shots, take_shot

DETECTORS = {"g": 8, "i": 7}
STARS = (0, 100, 1_000, 10_000, 100_000, 200_000)
SMALL = (512, 640)


class Draw:
    """Draws one scene, each time anew."""

    def __init__(self, exposure, detector: int, shape: tuple[int, int]):
        self.take = lambda: take_shot(exposure, detector, shape)


def scenes(shape: tuple[int, int], bands: list[str], stars: tuple[float, ...]) -> list[Draw]:
    """One scene for each band and number of stars on a full frame, with galaxies and all artefacts."""
    from csst_dask.config import SimulationConfig
    from csst_dask.simulation.survey import plan_survey

    detectors = tuple(DETECTORS[band] for band in bands)
    config = SimulationConfig(seed=3, exposures=len(stars), detectors=detectors, region="demo", star_counts=stars)
    return [Draw(exposure, d, shape) for exposure in plan_survey(config) for d in detectors]


class Clock:
    """Seconds between marks, on the device where it is a GPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks = [("", self._now())]

    def _now(self):
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def __call__(self, name: str) -> None:
        self.marks.append((name, self._now()))

    def seconds(self) -> dict[str, float]:
        """By stage; to be asked when the device has finished."""
        out: dict[str, float] = defaultdict(float)
        for (_, start), (name, end) in zip(self.marks, self.marks[1:], strict=False):
            out[name] += start.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - start
        return out


def prepared(renderer: TorchRenderer, sources: list, chips: int, threads: int) -> Iterator[tuple[Prepared, tuple]]:
    """Shots ready to be painted, with the seconds that drawing and sorting took, some drawn ahead by threads."""

    def make(k: int) -> tuple[Prepared, tuple]:
        source, start = sources[k % len(sources)], time.perf_counter()
        shot = source.take() if isinstance(source, Draw) else source
        drawn = time.perf_counter()
        return renderer.prepare(shot), (drawn - start, time.perf_counter() - drawn)

    with ThreadPoolExecutor(threads) as pool:
        numbers, coming = iter(range(chips)), list[Future]()
        coming += [pool.submit(make, k) for k in islice(numbers, 2 * threads)]
        while coming:
            yield coming.pop(0).result()
            coming += [pool.submit(make, k) for k in islice(numbers, 1)]


def run(renderer: TorchRenderer, measurer: TorchMeasurer, sources: list, chips: int, threads: int) -> None:
    """Render and reduce chips, and say how long it took."""
    rows, start = [], time.perf_counter()
    with ThreadPoolExecutor(2) as finishing:
        results = []
        for ready, host in prepared(renderer, sources, chips, threads):
            clock = Clock(renderer.device)
            chip = renderer.observe(renderer.paint(ready, clock))
            clock("noise")
            sums = measurer.sums(chip.image, chip.flags)
            clock("reduction")
            results.append(finishing.submit(sums.finish))
            rows.append((ready.shot, host, clock))
        reduced = [result.result() for result in results]
    if renderer.device.type == "cuda":
        torch.cuda.synchronize()
    wall = time.perf_counter() - start
    by_kind = defaultdict(list)
    for shot, host, clock in rows:
        times = clock.seconds()
        by_kind[shot.detector, len(shot.flux), shot.galaxies.shape[1]].append(
            {"draw*": host[0], "sort*": host[1], **times, "all": sum(times.values())}
        )
    names = list(next(iter(by_kind.values()))[0])
    print(f"milliseconds, median of each scene; * on the host, by {threads} threads, ahead of the rest")
    print("detector   stars galaxies " + " ".join(f"{name:>9}" for name in names))
    for (detector, stars, galaxies), found in sorted(by_kind.items()):
        medians = (1e3 * float(np.median([one[name] for one in found])) for name in names)
        print(f"{detector:8} {stars:7} {galaxies:8} " + " ".join(f"{value:9.2f}" for value in medians))
    print(f"{chips} chips in {wall:.2f} s: {chips / wall:.2f} chips/s; {reduced[-1].n_valid} valid pixels in the last")


def check(renderer: TorchRenderer, shot: Shot) -> None:
    """Compare the device's expected image with that of the processor, which the tests tie to the compiled renderer."""
    other = TorchRenderer(renderer.shape, "cpu")
    expected = other.paint(other.prepare(shot))
    found = renderer.paint(renderer.prepare(shot))
    image, flags = found.image.cpu(), found.flags.cpu()
    error = (image - expected.image).abs() / expected.image.abs().clamp_min(1)
    print(
        f"expected image, device against processor: largest error {float(error.max()):.1e} of max(pixel, 1 e-), "
        f"{int((error > 1e-4).sum())} pixels above 1e-4; {int((flags != expected.flags).sum())} flags differ"
    )
    renderer.observe(found)
    other.observe(expected)
    pairs = TorchMeasurer(renderer.shape, renderer.device), TorchMeasurer(renderer.shape)
    maps = [r.measure(c.image, c.flags) for r, c in zip(pairs, (found, found_on_host(found)), strict=True)]
    worst = max(np.nanmax(np.abs(a - b)) for a, b in zip(maps[0].maps, maps[1].maps, strict=True))
    print(f"block statistics of one image, device against processor: largest difference {worst:.1e} e-/s")


def found_on_host(chip):
    """The chip in the host's memory."""
    return replace(chip, image=chip.image.cpu(), flags=chip.flags.cpu())


def corner(shot: Shot, shape: tuple[int, int], margin: int = 48) -> Shot:
    """The lower corner of a shot."""

    def near(y, x):
        return (y < shape[0] + margin) & (x < shape[1] + margin)

    stars, galaxies = near(shot.y, shot.x), near(*shot.galaxies[:2])
    return replace(
        shot, shape=shape, y=shot.y[stars], x=shot.x[stars], flux=shot.flux[stars], galaxies=shot.galaxies[:, galaxies]
    )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", type=int, default=96)
    parser.add_argument("--bands", nargs="+", default=list(DETECTORS), choices=list(DETECTORS))
    parser.add_argument("--stars", nargs="+", type=float, default=list(STARS), help="on a full frame, one a scene")
    parser.add_argument("--threads", type=int, default=8, help="that draw ahead")
    parser.add_argument("--batch", type=int, help="pixels to draw at a time")
    parser.add_argument("--save-scenes", metavar="FILE", help="draw the scenes, write them and stop")
    parser.add_argument("--scenes", metavar="FILE", help="take the scenes from here")
    parser.add_argument("--no-compile", action="store_true", help="leave out the run with the compiled galaxies")
    parser.add_argument("--no-check", action="store_true", help="leave out the comparison with the processor")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    shape = FRAME_SHAPE if gpu or options.save_scenes else SMALL
    sources: list = load_shots(options.scenes) if options.scenes else scenes(shape, options.bands, tuple(options.stars))
    if options.save_scenes:
        save_shots(options.save_scenes, (source.take() for source in sources))
        return
    if not gpu:
        print(f"no GPU: one frame of {SMALL} pixels on the processor, to show that everything is in place")
        sources = [corner(s, SMALL) if isinstance(s, Shot) else s for s in sources[-1:]]
        options.chips, options.threads, options.no_compile = 1, 1, True
    device = torch.device("cuda" if gpu else "cpu")
    if gpu:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for compiled in (False, True)[: 1 if options.no_compile else 2]:
        print(f"\ngalaxies {'compiled' if compiled else 'step by step'}")
        renderer = TorchRenderer(shape, device, batch=options.batch, compiled=compiled)
        measurer = TorchMeasurer(shape, device)
        if not options.no_check:
            source = sources[-1]
            check(renderer, source.take() if isinstance(source, Draw) else source)
        if gpu:
            run(renderer, measurer, sources, len(sources), options.threads)
            print("again, warmed up:")
        run(renderer, measurer, sources, options.chips, options.threads)
        if gpu:
            print(f"at most {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of the device's memory")


if __name__ == "__main__":
    main()
