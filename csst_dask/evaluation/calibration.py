"""From detections to true counts: what the classical baseline learns from chips with truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.errors import ConfigError
from csst_dask.evaluation.classical import COUNTS
from csst_dask.schema import BANDS, CLASS_BORDERS

PENALTIES = np.logspace(-2, 4, 25)
"""Ridge penalties that are tried."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ridge regressions of log10(1 + truth) on logarithmic counts and band."""

    star: Any
    bright: Any
    """Fitted estimators of scikit-learn."""


def fit_calibration(
    counts: Sequence[Mapping[str, float]],
    band: Sequence[str] | NDArray[np.str_],
    n_star: ArrayLike,
    n_bright: ArrayLike,
) -> Calibration:
    """Learn what counts mean: how many stars are too faint or blended to be seen, and how many galaxies pass for stars.

    Ridge regression on log10(1 + count), their squares and the band, with the penalty of least leave-one-out
    error [1]_.

    Parameters
    ----------
    counts : sequence of n mappings
        As `count_sources` gives them.
    band : sequence of n str
    n_star, n_bright : (n,) array_like of int
        Truth; all known.

    Returns
    -------
    Calibration

    Raises
    ------
    ConfigError
        If there are fewer than 10 frames.
    ValueError
        If the lengths differ, a count is missing or the truth is negative.

    References
    ----------
    .. [1] Golub, Heath & Wahba (1979), Technometrics 21, 215.
    """
    features = _features(counts, band)
    truth = np.stack([np.asarray(n_star, np.float64), np.asarray(n_bright, np.float64)], axis=1)
    if len(truth) != len(features) or not (truth >= 0).all():
        raise ValueError(f"{len(truth)} true counts for {len(features)} frames; give a known one for each frame")
    if len(features) < 10:
        raise ConfigError(f"{len(features)} frames are too few to calibrate counts; give at least 10")
    target = np.log10(1 + truth)
    return Calibration(*(_ridge().fit(features, one) for one in target.T))


def _ridge() -> Any:
    try:
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise ConfigError(
            "calibrating counts needs scikit-learn, which is not installed: pip install 'csst_dask[evaluate]'"
        ) from None
    return make_pipeline(StandardScaler(), RidgeCV(PENALTIES))


def apply_calibration(
    calibration: Calibration, counts: Sequence[Mapping[str, float]], band: Sequence[str] | NDArray[np.str_]
) -> dict[str, NDArray]:
    """Counts as the truth would have them.

    Parameters
    ----------
    calibration : Calibration
    counts : sequence of n mappings
        As `count_sources` gives them.
    band : sequence of n str

    Returns
    -------
    dict of str to (n,) array
        ``log_star`` and ``log_bright`` (float32, log10(1 + count), dex) and ``density_class`` (int8).
    """
    features = _features(counts, band)
    star, bright = (np.maximum(fitted.predict(features), 0.0) for fitted in (calibration.star, calibration.bright))
    classes = np.searchsorted(CLASS_BORDERS, star, side="right")
    return {
        "log_star": star.astype(np.float32),
        "log_bright": bright.astype(np.float32),
        "density_class": classes.astype(np.int8),
    }


def _features(counts: Sequence[Mapping[str, float]], band: Sequence[str] | NDArray[np.str_]) -> NDArray[np.float64]:
    """(n, features) logarithmic counts, their squares, and bands alone and times two of the counts."""
    missing = [name for name in COUNTS if any(name not in one for one in counts)]
    if missing or len(counts) != len(band):
        raise ValueError(
            f"{len(counts)} frames for {len(band)} bands, missing counts: {', '.join(missing) or 'none'}; "
            "give what count_sources gave and a band for each frame"
        )
    logs = np.log10(
        1 + np.array([[one[name] for name in COUNTS] for one in counts], np.float64).reshape(-1, len(COUNTS))
    )
    bands = np.array([[str(one) == name for name in BANDS] for one in band], np.float64).reshape(-1, len(BANDS))
    slopes = [bands * logs[:, [COUNTS.index(name)]] for name in ("stars_10", "bright")]
    return np.hstack([logs, logs**2, bands, *slopes])
