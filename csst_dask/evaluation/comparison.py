"""Methods side by side, and the tables 4 and 5 of Lai et al. (2026)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.scores import DRAWS, class_scores, dex_scores, mean_scores, row_of
from csst_dask.evaluation.tables import logs
from csst_dask.evaluation.trust import within
from csst_dask.evaluation.weighting import WEIGHTINGS
from csst_dask.metrics import scatter


@dataclass(frozen=True)
class Architecture:
    """What was measured of one classifier."""

    name: str
    accuracy: float
    """Share of test chips."""
    macro_f1: float
    parameters: int
    ms_per_image: float
    """Wall time, ms."""
    memory_mb: float
    """Peak memory, MB."""
    accuracy_reweighted: float = float("nan")
    macro_f1_reweighted: float = float("nan")
    """With the classes in the published shares."""
    method: str = ""
    """Name of the method, where it differs."""
    device: str = ""
    """What it was timed on: ``cpu``, or the name of the GPU."""
    batch: int = 0
    """Chips of a call."""


PUBLISHED_ARCHITECTURES = {
    "resnet34": Architecture("ResNet-34", 0.9883, 0.9627, 13_670_000, 2.77, 1124),
    "vgg16": Architecture("VGGNet-16", 0.9741, 0.9741, 135_400_000, 3.54, 3350),
    "densenet121": Architecture("DenseNet-121", 0.9599, 0.9599, 4_970_000, 6.56, 4063),
    "alexnet": Architecture("AlexNet", 0.9429, 0.9428, 61_090_000, 7.92, 597),
    "baseline": Architecture("Baseline CNN", 0.9004, 0.9004, 420_000, 0.36, 1039),
}
"""Lai et al. (2026), Table 4, as printed."""
PUBLISHED_CLASSES = (
    (1.0, 1.0, 1.0),
    (0.9937, 0.9874, 0.9905),
    (0.9909, 0.9879, 0.9894),
    (0.9633, 0.9790, 0.9711),
    (0.9946, 0.9919, 0.9932),
    (0.9962, 0.9962, 0.9962),
)
"""Precision, recall and F1 of each class, Table 5; its column accuracy repeats the recall."""
PUBLISHED_OVERALL = {"accuracy": 0.9883, "macro_f1": 0.9627}
"""Of all classes together: section 4.1 and Table 4."""
PUBLISHED_DEX = {"mae": 0.0824, "mse": 0.0178, "rmse": 0.1333, "r2": 0.9076}
"""Of bright stars, dex: Table 5 and section 4.2."""


def compare_methods(methods: Mapping[str, Judged], draws: int = DRAWS) -> pd.DataFrame:
    """Classes of several methods, one line for each.

    Parameters
    ----------
    methods : mapping of str to Judged
    draws : int

    Returns
    -------
    pandas.DataFrame
        ``method``, ``chips``; with errors ``accuracy`` and ``macro_f1``, the same ``_reweighted``,
        ``beyond_adjacent`` and ``class5_recall``.
    """
    rows = []
    for name, judged in methods.items():
        flat, other = (class_scores(judged, weighting, draws) for weighting in WEIGHTINGS)
        scores: dict[str, NDArray[np.float64]] = {}
        for score in ("accuracy", "macro_f1"):
            scores |= {score: flat[score], f"{score}_reweighted": other[score]}
        scores |= {score: flat[score] for score in ("beyond_adjacent", "class5_recall")}
        rows.append({"method": name, "chips": len(judged)} | row_of(scores))
    return pd.DataFrame(rows)


def compare_counts(methods: Mapping[str, Judged], of: str = "bright", draws: int = DRAWS) -> pd.DataFrame:
    """Counts of several methods, one line for each.

    A method that leaves out hard chips looks good on those that it counts, so ``mae_common`` is over the chips that
    all methods counted.

    Parameters
    ----------
    methods : mapping of str to Judged
    of : str
        ``bright`` or ``star``.
    draws : int

    Returns
    -------
    pandas.DataFrame
        ``method``; ``known`` chips with a true count, the share ``counted`` of them; with errors ``mae``,
        ``mae_reweighted``, ``rmse`` and ``r2`` over these; ``common`` chips and ``mae_common``, ``rmse_common`` over
        them (NaN for a method that was judged on other chips than the first, or counted nothing); ``coverage`` of the
        intervals.
    """
    common = common_chips(methods, of)
    rows = []
    for name, judged in methods.items():
        truth, predicted = logs(judged, of)
        known, counted = np.isfinite(truth), np.isfinite(truth) & np.isfinite(predicted)
        flat, other = (dex_scores(judged, truth, predicted, weighting, draws) for weighting in WEIGHTINGS)
        nothing = np.full(len(judged), np.nan)
        both = common if counted.any() and same_chips(next(iter(methods.values())), judged) else None
        seen = nothing if both is None else np.where(both, predicted, np.nan)
        shared = dex_scores(judged, truth, seen, draws=draws)
        scores = {"mae": flat["mae"], "mae_reweighted": other["mae"], "rmse": flat["rmse"], "r2": flat["r2"]}
        rows.append(
            {"method": name, "known": int(known.sum()), "counted": counted.sum() / max(int(known.sum()), 1)}
            | row_of(scores) | {"common": 0 if both is None else int(both.sum())}
            | row_of({"mae_common": shared["mae"], "rmse_common": shared["rmse"]})
            | row_of(mean_scores(judged, {"coverage": within(judged, of)[0]}, draws=draws))
        )  # fmt: skip
    return pd.DataFrame(rows)


def common_chips(methods: Mapping[str, Judged], of: str = "bright") -> NDArray[np.bool_] | None:
    """Chips that every method counted that counts at all and was judged on the chips of the first; None without one."""
    first = next(iter(methods.values()))
    masks = []
    for judged in methods.values():
        truth, predicted = logs(judged, of)
        counted = np.isfinite(truth) & np.isfinite(predicted)
        if counted.any() and same_chips(first, judged):
            masks.append(counted)
    return np.logical_and.reduce(masks) if masks else None


def method_differences(methods: Mapping[str, Judged], draws: int = DRAWS) -> pd.DataFrame:
    """How much each further method differs from the first on the same chips.

    Chips are hard or easy for all methods alike, so the error of a difference is far below that of the scores.

    Parameters
    ----------
    methods : mapping of str to Judged
        A method that was not given the chips of the first, in their order, is left out.
    draws : int

    Returns
    -------
    pandas.DataFrame
        ``method``, ``against``, the gain of ``accuracy`` (positive: better than the first), ``counted`` chips that
        both counted, and the gain of their ``mae`` (negative: better), dex; with errors.
    """
    names = list(methods)
    rows = []
    for name in names[1:]:
        first, other = methods[names[0]], methods[name]
        if not same_chips(first, other):
            continue
        both = first.counted & other.counted
        error, reference = (np.abs(m.log_bright - m.true_log_bright) for m in (other, first))
        values = {
            "accuracy_gain": other.right.astype(float) - first.right,
            "mae_gain": np.where(both, error - reference, np.nan),
        }
        row = row_of(mean_scores(first, values, draws=draws))
        rows.append({"method": name, "against": names[0], "counted_by_both": int(both.sum())} | row)
    return pd.DataFrame(rows)


def same_chips(one: Judged, other: Judged) -> bool:
    """Whether two methods were judged on the same chips, in the same order."""
    return len(one) == len(other) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("band", "field", "n_star", "n_bright")
    )


def architecture_table(records: Sequence[Architecture]) -> pd.DataFrame:
    """Table 4 of Lai et al. (2026) with measured values and the published ones beside them.

    Parameters
    ----------
    records : sequence of Architecture
        Named as in `PUBLISHED_ARCHITECTURES` or otherwise, which leaves the published values empty.

    Returns
    -------
    pandas.DataFrame
        ``method``, ``device`` and ``batch`` if any has them, ``model``, then accuracy (%), macro F1 (%), parameters
        (million), time (ms per image) and memory (MB), each followed by its published value, the first two also
        ``_reweighted``; published times and memory are those of another machine.
    """

    rows = []
    for record in records:
        published = PUBLISHED_ARCHITECTURES.get(record.name.lower().replace("-", "").replace("_", ""))
        row: dict[str, str | float] = {
            name: getattr(record, name)
            for name in ("method", "device", "batch")
            if any(getattr(one, name) for one in records)
        }
        row["model"] = published.name if published else record.name
        ours, theirs = _cells(record), _cells(published)
        for name in ours:
            row |= {name: ours[name]}
            if name in ("accuracy_percent", "macro_f1_percent"):
                row |= {f"{name}_reweighted": 100 * getattr(record, f"{name.removesuffix('_percent')}_reweighted")}
            row |= {f"{name}_published": theirs[name]}
        rows.append(row)
    return pd.DataFrame(rows)


def _cells(record: Architecture | None) -> dict[str, float]:
    nan = float("nan")
    return {
        "accuracy_percent": 100 * record.accuracy if record else nan,
        "macro_f1_percent": 100 * record.macro_f1 if record else nan,
        "parameters_million": record.parameters / 1e6 if record else nan,
        "ms_per_image": float(record.ms_per_image) if record else nan,
        "memory_mb": float(record.memory_mb) if record else nan,
    }


def performance_table(judged: Judged, weighting: str = "flat", draws: int = DRAWS) -> pd.DataFrame:
    """Table 5 of Lai et al. (2026), for people: measured values with errors, and the published ones.

    Its accuracy of a class is the share of the class's chips that are recognised, its recall.

    Parameters
    ----------
    judged : Judged
    weighting : str
        One of `weighting.WEIGHTINGS`.
    draws : int

    Returns
    -------
    pandas.DataFrame
        Text. ``model``, ``class_or_range``, ``accuracy_or_mae``, ``precision_or_mse``, ``recall_or_rmse``,
        ``f1_or_r2`` and each followed by its published value; the row ``all`` has accuracy and macro F1.
    """
    scores = class_scores(judged, weighting, draws)
    columns = ("accuracy_or_mae", "precision_or_mse", "recall_or_rmse", "f1_or_r2")
    rows = []
    for k, (precision, recall, f1) in enumerate(PUBLISHED_CLASSES):
        row = {"model": "classification", "class_or_range": f"class {k}"}
        published = (recall, precision, recall, f1)
        for column, name, theirs in zip(columns, ("recall", "precision", "recall", "f1"), published, strict=True):
            ours = _with_error(100 * scores[name][0, k], 100 * float(scatter(scores[name])[k]), 2, " %")
            row |= {column: ours, f"{column}_published": f"{100 * theirs:.2f} %"}
        rows.append(row)
    row = dict.fromkeys((name for column in columns for name in (column, f"{column}_published")), "")
    for column, name in ((columns[0], "accuracy"), (columns[3], "macro_f1")):
        row[column] = _with_error(100 * scores[name][0], 100 * float(scatter(scores[name])), 2, " %")
        row[f"{column}_published"] = f"{100 * PUBLISHED_OVERALL[name]:.2f} %"
    rows.append({"model": "classification", "class_or_range": "all"} | row)
    dex = row_of(dex_scores(judged, judged.true_log_bright, judged.log_bright, weighting, draws))
    row = {"model": "regression", "class_or_range": "global"}
    for column, name in zip(columns, ("mae", "mse", "rmse", "r2"), strict=True):
        row |= {
            column: _with_error(dex[name], dex[f"{name}_error"], 4),
            f"{column}_published": f"{PUBLISHED_DEX[name]:.4f}",
        }
    rows.append(row)
    return pd.DataFrame(rows)


def _with_error(value: float, error: float, digits: int, unit: str = "") -> str:
    if np.isnan(value):
        return ""
    return f"{value:.{digits}f}{unit}" if np.isnan(error) else f"{value:.{digits}f} ± {error:.{digits}f}{unit}"
