import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import binom

from csst_dask.errors import ConfigError
from csst_dask.models import interval, residual_quantiles
from csst_dask.models.calibrate import LEVELS, TEMPERATURES, fit_temperature


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
    with pytest.raises(ConfigError, match="not given"):
        interval([1.0], {"residual_quantiles": residual_quantiles([1.0], [1.0], scale=[1.0])}, 0.9)
    with pytest.raises(ValueError, match="positive"):
        residual_quantiles([1.0, 2.0], [1.0, 1.0], scale=[1.0, 0.0])
    with pytest.raises(ValueError, match="positive"):
        residual_quantiles([1.0, 2.0], [1.0, 1.0], scale=[1.0])


def log_loss(logits, truth, temperature=1.0):
    return -np.mean(log_softmax(logits / temperature, axis=1)[np.arange(len(truth)), truth])


def drawn(n, temperature, seed):
    """Logits, and classes drawn from what they say at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 6)) * 3
    likely = softmax(logits / temperature, axis=1).cumsum(axis=1)
    return logits, np.minimum((rng.random((n, 1)) > likely).sum(axis=1), 5)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_a_known_temperature_is_found(temperature):
    """With so many chips it scatters by less than 2%."""
    assert fit_temperature(*drawn(8000, temperature, 0)) == pytest.approx(temperature, rel=0.08)


def test_a_temperature_never_makes_the_log_loss_worse():
    for seed in range(60):
        logits, truth = drawn(3 + seed, (0.1, 1.0, 9.0)[seed % 3], seed)
        found = fit_temperature(logits, truth)
        assert TEMPERATURES[0] <= found <= TEMPERATURES[1]
        assert log_loss(logits, truth, found) <= log_loss(logits, truth)


def test_chips_that_are_all_right_do_not_make_a_network_certain():
    truth = np.arange(6)
    assert fit_temperature(5 * np.eye(6), truth) == pytest.approx(TEMPERATURES[0], rel=1e-3)
    assert fit_temperature(np.zeros((6, 6)), truth) == 1.0  # all temperatures say the same


def heteroscedastic(rng, n):
    """True and predicted counts whose skewed errors are ten times wider for some chips, and their scale."""
    scale = np.where(rng.random(n) < 0.5, 0.05, 0.5)
    predicted = rng.uniform(10, 12, n)
    return predicted + scale * (rng.exponential(size=n) - 0.7), predicted, scale


@pytest.mark.parametrize("level", LEVELS)
def test_intervals_in_units_of_a_scale_cover_their_share_of_certain_and_of_uncertain_chips(level):
    rng = np.random.default_rng(3)
    truth, predicted, scale = heteroscedastic(rng, 20_000)
    stored = {"residual_quantiles": residual_quantiles(truth, predicted, scale=scale)}
    truth, predicted, scale = heteroscedastic(rng, 8000)
    lower, upper = interval(predicted, stored, level, scale=scale)
    inside = (lower <= truth) & (truth <= upper)
    for chips in (scale < 0.1, scale > 0.1):
        low, high = binom.interval(1 - 1e-4, chips.sum(), level)
        slack = 4 * np.sqrt(level * (1 - level) / 20_000) * chips.sum()  # of the bounds themselves
        assert low - slack <= inside[chips].sum() <= high + slack
    assert np.median((upper - lower)[scale > 0.1]) == pytest.approx(
        10 * np.median((upper - lower)[scale < 0.1]), rel=0.01
    )


def test_without_the_scale_certain_chips_are_covered_too_often():
    """What the scale is for: one width for all is too wide for some and too narrow for others."""
    rng = np.random.default_rng(4)
    truth, predicted, scale = heteroscedastic(rng, 4000)
    lower, upper = interval(predicted, {"residual_quantiles": residual_quantiles(truth, predicted)}, 0.8)
    inside = (lower <= truth) & (truth <= upper)
    assert inside[scale < 0.1].mean() > 0.95
    assert inside[scale > 0.1].mean() < 0.7
