"""Direct counts against truth: how far off, how often within their errors, by magnitude and by band.

Run as ``python benchmarks/direct.py STORE...`` on stores with truth, which hold what the pass over the pixels measured.
Errors are mean absolute differences of log10(1 + N), dex.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import pandas as pd

from csst_dask import direct_counts
from csst_dask.preprocess.measure import STATISTICS, Measured
from csst_dask.schema import BANDS, BRIGHT_LIMIT, MAGNITUDES
from csst_dask.store import SurveyStore
from csst_dask.store.layout import MEASURED

MANY = 30
"""Stars from which on a chip counts in the second column of errors."""


BLOCK = 50
"""Chips that are read at a time."""


def measured_chips(path: str, most: int) -> Iterator[tuple[Measured, str, np.ndarray]]:
    """What is stored of each chip that is done and has truth: measurements, band and N(< m); ``most`` at random."""
    store = SurveyStore.read(path)
    scalars = store.scalars(("status", "n_bright", "n_brighter", "band", "zero_point", *STATISTICS))
    rows = np.flatnonzero((scalars["status"].values == "done") & (scalars["n_bright"].values >= 0))
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:most])
    for some in np.array_split(rows, max(1, len(rows) // BLOCK)):
        arrays = {name: store.read_chips(name, some) for name in MEASURED}
        for place, row in enumerate(some):
            chip = {name: scalars[name].values[row] for name in ("band", "zero_point", *STATISTICS)}
            measured = Measured.of({name: values[place] for name, values in arrays.items()}, chip)
            yield measured, str(chip["band"]), scalars["n_brighter"].values[row].astype(float)


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
    parser.add_argument("--chips", type=int, default=1000, help="of each store at most, at random")
    options = parser.parse_args()
    rows = []
    for store in options.stores:
        for measured, band, true in measured_chips(store, options.chips):
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
