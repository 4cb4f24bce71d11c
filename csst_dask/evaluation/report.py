"""A short report of one run: predicted against true counts, as a table and a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from csst_dask.evaluation.trust import SLACK
from csst_dask.metrics import accuracy, dex_errors
from csst_dask.schema import BANDS, density_class


def compare(scalars: xr.Dataset, predictions: xr.Dataset) -> pd.DataFrame:
    """One row for each chip with truth and a prediction.

    Parameters
    ----------
    scalars : xarray.Dataset
        Per-chip variables of a store.
    predictions : xarray.Dataset
        Over the same chips.

    Returns
    -------
    pandas.DataFrame
        ``chip``, ``band``, ``n_star``, ``true_class``, ``density_class``, ``confidence``, ``n_bright``,
        ``bright_count`` with its bounds, and ``route``, in chip order.
    """
    keep = np.flatnonzero((scalars["n_star"].values >= 0) & (predictions["density_class"].values >= 0))
    column = {name: predictions[name].values[keep] for name in (
        "density_class", "confidence", "bright_count", "bright_lower", "bright_upper", "route",
    )}  # fmt: skip
    obs, detector = scalars["obs_id"].values[keep], scalars["detector"].values[keep]
    table = pd.DataFrame(
        {
            "chip": [f"{a}-{b:02d}" for a, b in zip(obs, detector, strict=True)],
            "band": scalars["band"].values[keep].astype(object),
            "n_star": scalars["n_star"].values[keep],
            "true_class": density_class(scalars["n_star"].values[keep]),
            "n_bright": scalars["n_bright"].values[keep],
            **column,
        }
    )
    table["route"] = table["route"].astype(object)
    return table


def measure(table: pd.DataFrame) -> dict[str, float]:
    """Figures of a comparison: chips, accuracy, adjacent accuracy, MAE of bright stars (dex) and interval coverage."""
    counted = table[np.isfinite(table["bright_count"]) & (table["n_bright"] >= 0)]
    found = {
        "chips": len(table),
        "accuracy": accuracy(table["true_class"], table["density_class"]) if len(table) else float("nan"),
        "within_one_class": float((abs(table["true_class"] - table["density_class"]) <= 1).mean()),
        "counted": len(counted),
    }
    if len(counted):
        truth, count = (
            np.log10(1 + counted["n_bright"].to_numpy(float)),
            np.log10(1 + counted["bright_count"].to_numpy(float)),
        )
        lower, upper = (np.log10(1 + counted[f"bright_{side}"].to_numpy(float)) for side in ("lower", "upper"))
        inside = (truth >= lower - SLACK) & (truth <= upper + SLACK)
        found["bright_mae_dex"] = dex_errors(truth, count).mae
        found["interval_coverage"] = float(inside.mean())
    return found


def markdown(table: pd.DataFrame, title: str, pictures: dict[str, str], notes: list[str]) -> str:
    """The report as Markdown.

    Parameters
    ----------
    table : pandas.DataFrame
        As `compare` makes it.
    title : str
    pictures : dict of str to str
        Caption and relative path.
    notes : list of str
        Lines about the run.
    """
    figures = measure(table)
    lines = [f"# {title}", "", *(f"* {note}" for note in notes), ""]
    for caption, path in pictures.items():
        lines += [f"![{caption}]({path})", ""]
    lines += [
        "## Predicted against true",
        "",
        f"* density class right: {figures['accuracy']:.1%} of {len(table)} chips",
    ]
    lines.append(f"* right or one class off: {figures['within_one_class']:.1%}")
    if "bright_mae_dex" in figures:
        lines.append(
            f"* bright stars, mean absolute error: {figures['bright_mae_dex']:.3f} dex ({figures['counted']} chips)"
        )
        lines.append(f"* true count inside the 90 % interval: {figures['interval_coverage']:.1%}")
    lines += [
        "",
        "| chip | band | stars | true class | class | confidence "
        "| bright stars, true | predicted | 90 % interval | route |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in table.itertuples():
        counted = np.isfinite(float(row.bright_count))  # type: ignore[arg-type]
        count = f"{row.bright_count:.0f}" if counted else "bypassed"
        bounds = f"{row.bright_lower:.0f} to {row.bright_upper:.0f}" if counted else ""
        lines.append(
            f"| {row.chip} | {row.band} | {row.n_star} | {row.true_class} | {row.density_class} | {row.confidence:.2f} "
            f"| {row.n_bright} | {count} | {bounds} | {row.route} |"
        )
    return "\n".join(lines) + "\n"


def plot_counts(table: pd.DataFrame, path: Path) -> None:
    """Draw predicted against true bright stars, with intervals, and the density classes beside them."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    counted = table[np.isfinite(table["bright_count"]) & (table["n_bright"] >= 0)]
    top = max(10.0, 2.0 * float(np.nanmax([counted["n_bright"].max(), counted["bright_upper"].max(), 1.0])))
    line = np.geomspace(0.5, top, 50)
    left.plot(line, line, color="0.3", lw=1)
    left.fill_between(line, 0.8 * line, 1.2 * line, color="0.88", label="20 %")
    for band in BANDS:
        some = counted[counted["band"] == band]
        if len(some):
            x, y = some["n_bright"].clip(lower=0.5), some["bright_count"].clip(lower=0.5)
            bounds = [
                (y - some["bright_lower"].clip(lower=0.5)).clip(lower=0),
                (some["bright_upper"] - y).clip(lower=0),
            ]
            left.errorbar(x, y, yerr=bounds, fmt="o", ms=5, lw=1, label=band)
    left.set(
        xscale="log", yscale="log", xlabel="true bright stars (< 23.5 mag) on the chip; none at 0.5", ylabel="predicted"
    )
    left.legend(frameon=False)
    count = np.zeros((6, 6), int)
    np.add.at(count, (table["true_class"].to_numpy(int), table["density_class"].to_numpy(int)), 1)
    right.imshow(count, cmap="Blues", origin="lower")
    for (i, j), n in np.ndenumerate(count):
        if n:
            right.text(j, i, str(n), ha="center", va="center", color="white" if n > count.max() / 2 else "black")
    right.set(xlabel="predicted density class", ylabel="true density class", xticks=range(6), yticks=range(6))
    figure.savefig(path, dpi=120, metadata={"Software": None})
