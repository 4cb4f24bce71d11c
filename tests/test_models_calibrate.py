import numpy as np
import pytest

from csst_dask.errors import ConfigError
from csst_dask.models import interval, residual_quantiles


def test_order_statistics_done_by_hand():
    """99 residuals 1..99: level 0.9 takes the 5th and the 95th."""
    truth = np.random.default_rng(0).permutation(np.arange(1.0, 100.0))
    stored = residual_quantiles(truth, np.zeros(99), levels=(0.9,))
    assert stored == {"n": 99, "levels": {"0.9": [5.0, 95.0]}}


def test_coverage_is_at_least_the_level_for_skewed_errors():
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(400):
        residual = rng.exponential(0.1, 60) - 0.05
        predicted = rng.uniform(1, 3, 60)
        truth = predicted + residual
        stored = {"residual_quantiles": residual_quantiles(truth[:50], predicted[:50])}
        lower, upper = interval(predicted[50:], stored, 0.9)
        inside.append(np.mean((lower <= truth[50:]) & (truth[50:] <= upper)))
    assert 0.89 < np.mean(inside) < 0.95


def test_too_few_residuals_bound_nothing():
    stored = {"residual_quantiles": residual_quantiles([1.0, 2.0], [1.0, 1.0])}
    lower, upper = interval([2.0], stored, 0.9)
    assert lower[0] == 0
    assert upper[0] == np.inf


def test_bounds_are_not_negative_counts_and_nan_stays_nan():
    stored = {"residual_quantiles": {"levels": {"0.9": [-0.5, 0.25]}}}
    lower, upper = interval([0.1, 2.0, np.nan], stored, 0.9)
    np.testing.assert_allclose(lower, [0, 1.5, np.nan], rtol=1e-6)
    np.testing.assert_allclose(upper, [0.35, 2.25, np.nan], rtol=1e-6)


def test_wider_levels_hold_the_narrower_ones():
    rng = np.random.default_rng(2)
    levels = residual_quantiles(rng.normal(size=300), np.zeros(300))["levels"]
    bounds = np.array([levels[key] for key in sorted(levels, key=float)])
    assert (np.diff(bounds[:, 0]) <= 0).all()
    assert (np.diff(bounds[:, 1]) >= 0).all()


def test_wrong_use_is_named():
    with pytest.raises(ConfigError, match=r"level 0\.7"):
        interval([1.0], {"residual_quantiles": residual_quantiles([1.0], [1.0])}, 0.7)
    with pytest.raises(ConfigError, match="holds: none"):
        interval([1.0], {}, 0.9)
    with pytest.raises(ValueError, match="finite"):
        residual_quantiles([np.nan], [1.0])
