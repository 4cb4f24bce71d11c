"""Methods side by side, and the tables 4 and 5 of Lai et al. (2026)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.scores import DRAWS, class_scores, dex_scores, mean_scores, row_of
from csst_dask.evaluation.trust import within
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
    """Peak memory of the device, MB."""


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
PUBLISHED_DEX = {"mae": 0.0824, "mse": 0.0178, "rmse": 0.1333, "r2": 0.9076}
"""Of bright stars, dex: Table 5 and section 4.2."""


def compare_methods(methods: Mapping[str, Judged], draws: int = DRAWS) -> pd.DataFrame:
    """One line for each method.

    Parameters
    ----------
    methods : mapping of str to Judged
    draws : int

    Returns
    -------
    pandas.DataFrame
        ``method``, ``chips``; with errors ``accuracy``, ``accuracy_published`` (reweighted), ``macro_f1``,
        ``beyond_adjacent``, ``class5_recall``; ``counted`` chips, and of their bright stars ``mae``, ``rmse``,
        ``r2`` and ``coverage``, flat.
    """
    rows = []
    for name, judged in methods.items():
        flat, published = (class_scores(judged, weighting, draws) for weighting in ("flat", "published"))
        dex = dex_scores(judged, judged.true_log_bright, judged.log_bright, draws=draws)
        rows.append(
            {"method": name, "chips": len(judged)}
            | row_of({"accuracy": flat["accuracy"], "accuracy_published": published["accuracy"]})
            | row_of({score: flat[score] for score in ("macro_f1", "beyond_adjacent", "class5_recall")})
            | {"counted": int(judged.counted.sum())}
            | row_of({score: dex[score] for score in ("mae", "rmse", "r2")})
            | row_of(mean_scores(judged, {"coverage": within(judged)[0]}, draws=draws))
        )
    return pd.DataFrame(rows)


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
        ``model``, then accuracy (%), macro F1 (%), parameters (million), time (ms per image) and memory (MB), each
        followed by its published value; published times and memory are those of another machine.
    """

    def cells(record: Architecture | None) -> list[float]:
        if record is None:
            return [float("nan")] * 5
        return [
            100 * record.accuracy,
            100 * record.macro_f1,
            record.parameters / 1e6,
            float(record.ms_per_image),
            float(record.memory_mb),
        ]

    names = ("accuracy_percent", "macro_f1_percent", "parameters_million", "ms_per_image", "memory_mb")
    rows = []
    for record in records:
        published = PUBLISHED_ARCHITECTURES.get(record.name.lower().replace("-", "").replace("_", ""))
        row: dict[str, str | float] = {"model": published.name if published else record.name}
        for name, ours, theirs in zip(names, cells(record), cells(published), strict=True):
            row |= {name: ours, f"{name}_published": theirs}
        rows.append(row)
    return pd.DataFrame(rows)


def performance_table(judged: Judged, draws: int = DRAWS) -> pd.DataFrame:
    """Table 5 of Lai et al. (2026), for people: measured values with errors, and the published ones.

    Its accuracy of a class is the share of the class's chips that are recognised, its recall.

    Parameters
    ----------
    judged : Judged
    draws : int

    Returns
    -------
    pandas.DataFrame
        Text. ``model``, ``class_or_range``, ``accuracy_or_mae``, ``precision_or_mse``, ``recall_or_rmse``,
        ``f1`` and each followed by its published value.
    """
    scores = class_scores(judged, "flat", draws)
    columns = ("accuracy_or_mae", "precision_or_mse", "recall_or_rmse", "f1")
    rows = []
    for k, (precision, recall, f1) in enumerate(PUBLISHED_CLASSES):
        row = {"model": "classification", "class_or_range": f"class {k}"}
        published = (recall, precision, recall, f1)
        for column, name, theirs in zip(columns, ("recall", "precision", "recall", "f1"), published, strict=True):
            value, error = 100 * scores[name][0, k], 100 * float(scatter(scores[name])[k])
            row |= {column: _with_error(value, error, 2, " %"), f"{column}_published": f"{100 * theirs:.2f} %"}
        rows.append(row)
    dex = row_of(dex_scores(judged, judged.true_log_bright, judged.log_bright, draws=draws))
    row = {"model": "regression", "class_or_range": "global"}
    for column, name in zip(columns, ("mae", "mse", "rmse"), strict=False):
        row |= {
            column: _with_error(dex[name], dex[f"{name}_error"], 4),
            f"{column}_published": f"{PUBLISHED_DEX[name]:.4f}",
        }
    rows.append(row | {"f1": "", "f1_published": ""})
    return pd.DataFrame(rows)


def _with_error(value: float, error: float, digits: int, unit: str = "") -> str:
    if np.isnan(value):
        return ""
    return f"{value:.{digits}f}{unit}" if np.isnan(error) else f"{value:.{digits}f} ± {error:.{digits}f}{unit}"
