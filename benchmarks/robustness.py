"""What imperfect frames do to the counts, and who notices: each case against the same chip without it.

    python benchmarks/robustness.py                      # a chip for each of 2 bands and 4 densities, all cases
    python benchmarks/robustness.py --bands g i NUV --out robustness.csv

Chips are simulated full size by nominal laws, then changed (`robustness_cases.CASES`), or drawn under another sky or
instrument. A count moves if it changes by more than 0.1 dex, and silently if neither out of distribution, nor physics,
nor doubt sends the chip to review. Counts below `FEW` are not looked at: 0.1 dex is about one star there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.progress import track
from robustness_cases import CASES, Frame

import csst_dask as cd
from csst_dask.config import MaskConfig, SimulationConfig
from csst_dask.instrument import BAND_TABLE, mask_table
from csst_dask.instrument.focal_plane import DETECTORS
from csst_dask.schema import BANDS, FRAME_SHAPE, MAGNITUDES
from csst_dask.simulation.exposure import Exposure
from csst_dask.simulation.renderer import Renderer
from csst_dask.simulation.survey import plan_survey

DENSITIES = (40, 400, 4_000, 30_000)
"""Stars on a chip."""
MOVED, FEW = 0.1, 10
"""dex, and stars."""
BRIGHT = MAGNITUDES.index(23.5)

OTHER: dict[str, Callable[[Exposure], Exposure]] = {
    "sky twice as bright": lambda e: replace(e, optics=replace(e.optics, sky_factor=2 * e.optics.sky_factor)),
    "sky four times as bright": lambda e: replace(e, optics=replace(e.optics, sky_factor=4 * e.optics.sky_factor)),
    "read noise of 6 e-": lambda e: replace(e, optics=replace(e.optics, read_noise=6.0)),
    "images 15 % wider": lambda e: replace(e, optics=replace(e.optics, jitter=1.2 * e.optics.jitter)),
    "images 30 % wider": lambda e: replace(e, optics=replace(e.optics, jitter=1.4 * e.optics.jitter)),
    "exposure of 300 s": lambda e: replace(e, exptime=300.0),
}
"""What is drawn again under another sky or instrument."""


def predict(frame: Frame, band: str, weights: str | None) -> dict[str, float]:
    """Counts of a frame, log10(1 + n), and whether somebody notices."""
    mask = MaskConfig()
    bits = None if frame.flags is None else mask_table(mask.flag_bits)[frame.flags]
    measured = cd.measure_image(frame.image, bits, invalid=mask.invalid_bits)
    found = cd.predict_chips(measured, band, frame.exptime, weights=weights)
    direct = np.nan_to_num(found["direct_counts"][0, BRIGHT])
    return {
        "bright": float(found["log_bright"][0]),
        "star": float(found["log_star"][0]),
        "direct": float(np.log10(1 + max(direct, 0))),
        "review": float(found["review_reason"][0] > 0),
    }


def frames(exposure: Exposure, detector: int, renderer: Renderer) -> Iterator[tuple[str, Frame]]:
    """The chip as it is, and each case of it."""
    band = DETECTORS[detector].band

    def drawn(exposure: Exposure) -> Frame:
        chip = renderer.render(exposure, detector)
        sky = BAND_TABLE[band].sky * exposure.optics.sky_factor
        return Frame(chip.image.copy(), chip.flags.copy(), exposure.exptime, sky)

    base = drawn(exposure)
    yield "as it is", base
    for name, case in CASES.items():
        yield name, case(base, np.random.default_rng([exposure.index, detector, len(name)]))
    for name, change in OTHER.items():
        yield name, drawn(change(exposure))


def measure(
    bands: list[str], densities: tuple[int, ...], seed: int, shape: tuple[int, int], weights: str | None = None
) -> pd.DataFrame:
    """A row for each chip and case.

    Returns
    -------
    pandas.DataFrame
        ``case``, ``chip``, what `predict` gives, and how far ``bright``, ``star`` and ``direct`` are from those of the
        chip as it is, dex, in columns with ``moved_`` before.
    """
    detectors = [next(d for d, spec in DETECTORS.items() if spec.band == band) for band in bands]
    config = SimulationConfig(
        seed=seed, exposures=len(densities), region="mixed", star_counts=densities, detectors=tuple(sorted(detectors))
    )
    renderer, rows = Renderer(shape), []
    chips = [(e, d) for e in plan_survey(config) for d in detectors]
    for exposure, detector in track(chips, "chips"):
        before: dict[str, float] = {}
        for name, frame in frames(exposure, detector, renderer):
            found = predict(frame, DETECTORS[detector].band, weights)
            before = before or found
            moved = {f"moved_{what}": found[what] - before[what] for what in ("bright", "star", "direct")}
            few = {f"few_{what}": 10 ** before[what] - 1 < FEW for what in ("bright", "star", "direct")}
            rows.append({"case": name, "chip": f"{exposure.index}-{detector}", **found, **moved, **few})
    return pd.DataFrame(rows)


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """How far counts move by case: median and largest change, the share that moves, and that which does so silently."""
    rows = []
    for name, chips in found.groupby("case", sort=False):
        row: dict[str, object] = {"case": name, "chips": len(chips), "reviewed": chips["review"].mean()}
        for what in ("bright", "star", "direct"):
            counts = chips[~chips[f"few_{what}"]]
            moved = counts[f"moved_{what}"].abs()
            silent = (moved > MOVED) & (counts["review"] == 0)
            row |= {f"{what}: median": moved.median(), f"{what}: largest": moved.max()}
            row |= {f"{what}: moved": (moved > MOVED).mean(), f"{what}: silently": silent.mean()}
        rows.append(row)
    return pd.DataFrame(rows).set_index("case")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What imperfect frames do to the counts")
    parser.add_argument("--bands", nargs="+", choices=BANDS, default=["g", "i"])
    parser.add_argument("--seed", type=int, default=770)
    parser.add_argument("--weights", help="folder of networks; by default those that ship")
    parser.add_argument("--shape", help="frame such as 1846x1843; by default a whole one")
    parser.add_argument("--out", type=Path, help="CSV file of all chips and cases")
    options = parser.parse_args()
    shape = tuple(map(int, options.shape.split("x"))) if options.shape else FRAME_SHAPE
    found = measure(options.bands, DENSITIES, options.seed, shape, options.weights)
    table = summary(found)
    changed = summary(found[found["case"] != "as it is"].assign(case="all cases"))
    print(pd.concat([table, changed]).to_string(float_format="{:.3f}".format))
    if options.out:
        found.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
