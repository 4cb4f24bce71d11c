"""Direct counts against truth: how far off, how often within their errors, by magnitude and by band.

Run as ``python benchmarks/direct.py STORE...`` on stores with truth, which hold what the pass over the pixels measured.
Errors are mean absolute differences of log10(1 + N), dex.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from csst_dask import Survey, direct_counts
from csst_dask.preprocess import Measured
from csst_dask.schema import BANDS, BRIGHT_LIMIT, MAGNITUDES
from csst_dask.store.layout import MEASURED

MANY = 30
"""Stars from which on a chip counts in the second column of errors."""


def measured_chips(store: str) -> list[tuple[Measured, str, np.ndarray]]:
    """What is stored of each chip that is done and has truth: measurements, band and N(< m)."""
    chips = Survey(store, quiet=True).chips
    chips = chips.isel(chip=np.flatnonzero((chips["status"] == "done") & (chips["n_bright"] >= 0)))
    found = []
    for row in range(chips.sizes["chip"]):
        chip = chips.isel(chip=row).load()
        scalars = (float(chip[name]) for name in ("pixel_mean", "pixel_std", "n_valid", "sky_level", "sky_sigma"))
        mean, std, n_valid, level, sigma = scalars
        stats = chip["block_stats"].values.astype(np.float64)
        rest = {name: chip[name].values for name in MEASURED if name != "block_stats"}
        measured = Measured(stats, mean, std, int(n_valid), level, sigma, **rest, zero_point=float(chip["zero_point"]))
        found.append((measured, str(chip["band"].values), chip["n_brighter"].values.astype(float)))
    return found


def summary(chips: pd.DataFrame) -> pd.Series:
    """Number of chips, errors and coverage of some counts."""
    many = chips[chips["true"] >= MANY]
    return pd.Series(
        {
            "chips": len(chips),
            "MAE, dex": chips["off"].abs().mean(),
            f"chips of {MANY} or more": len(many),
            "their MAE, dex": many["off"].abs().mean(),
            "their bias, dex": many["off"].median(),
            "90 % intervals hold": (chips["pull"].abs() < 1.645).mean(),
        }
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Direct counts against truth")
    parser.add_argument("stores", nargs="+")
    rows = []
    for store in parser.parse_args().stores:
        for measured, band, true in measured_chips(store):
            found = direct_counts(measured, band)
            for m, n, error, wanted in zip(MAGNITUDES, found.counts, found.error, true, strict=True):
                if np.isfinite(n) and wanted >= 0:
                    off, pull = np.log10((1 + n) / (1 + wanted)), (n - wanted) / error
                    rows.append({"band": band, "magnitude": m, "true": wanted, "off": off, "pull": pull})
    table = pd.DataFrame(rows)
    shown = {"display.width": 160, "display.max_columns": 20, "display.precision": 3}
    with pd.option_context(*(part for pair in shown.items() for part in pair)):
        print(table.groupby("magnitude").apply(summary, include_groups=False))
        bright = table[table["magnitude"] == BRIGHT_LIMIT]
        print(f"\nbrighter than {BRIGHT_LIMIT}:")
        print(bright.groupby("band").apply(summary, include_groups=False).reindex(list(BANDS)))
        print(summary(bright).to_string())


if __name__ == "__main__":
    main()
