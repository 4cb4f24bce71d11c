from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from csst_dask.errors import ConfigError
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.neighbours import Joint, class_of, joint_table
from csst_dask.inference.joint import combine, learn_joint
from csst_dask.pipeline.joint import estimate_jointly
from csst_dask.schema import density_class

NOISE = {"NUV": 0.3, "g": 0.03, "i": 0.1}


def sky(exposures=300, scatter=0.05, seed=0):
    """Chips of exposures, two in each of three bands: truth, prediction, scale, band, exposure."""
    rng = np.random.default_rng(seed)
    exposure = np.repeat(np.arange(exposures).astype(str), 6)
    band = np.tile(["NUV", "g", "i"], 2 * exposures)
    truth = np.repeat(rng.uniform(2.2, 4.8, exposures), 6) + scatter * rng.normal(size=6 * exposures)
    scale = rng.uniform(0.5, 2, len(truth))  # a known part of each chip's uncertainty; the band's is to be learned
    noise = np.array([NOISE[name] for name in band])
    return truth, truth + scale * noise * rng.normal(size=len(truth)), scale, band, exposure


def test_what_is_learned_is_what_the_chips_were_drawn_from():
    model = learn_joint(*sky())
    for name, expected in NOISE.items():
        assert model.error[name] == pytest.approx(expected, rel=0.1)
    np.testing.assert_allclose(model.truth[2:5], 0.05, rtol=0.15)


def test_the_estimate_is_the_best_linear_one_and_knows_its_error():
    """Against the same prediction by matrices, for one exposure; and against truth, for many."""
    model = learn_joint(*sky(seed=1))
    truth, y, scale, band, exposure = sky(seed=2)
    found, error = combine(model, y, scale, band, exposure)
    one = slice(0, 6)
    noise = np.diag((scale[one] * [model.error[name] for name in band[one]]) ** 2)
    level = np.digitize(np.median(y[one]), (0.2, 1, 2, 3, 4, 5))
    apart = np.eye(6) * model.truth[level] ** 2
    inverse, ones = np.linalg.inv(noise + apart), np.ones(6)
    mean = ones @ inverse @ y[one] / (ones @ inverse @ ones)
    np.testing.assert_allclose(found[one], mean + apart @ inverse @ (y[one] - mean))
    left = ones - apart @ inverse @ ones
    variance = np.diag(apart - apart @ inverse @ apart) + left**2 / (ones @ inverse @ ones)
    np.testing.assert_allclose(error[one], np.sqrt(variance))
    ratio = (found - truth) / error
    assert np.std(ratio) == pytest.approx(1, abs=0.07)
    for name, least in (("NUV", 3.0), ("i", 1.5), ("g", 1.0)):
        some = band == name
        assert np.abs(y - truth)[some].mean() > least * np.abs(found - truth)[some].mean()


def test_a_chip_alone_keeps_its_prediction_and_order_does_not_matter():
    model = learn_joint(*sky())
    _, y, scale, band, exposure = sky(20, seed=3)
    alone, error = combine(model, y, scale, band, np.arange(len(y)))
    np.testing.assert_allclose(alone, y)
    np.testing.assert_allclose(error, scale * [model.error[name] for name in band])
    order = np.random.default_rng(0).permutation(len(y))
    for plain, mixed in zip(
        combine(model, y, scale, band, exposure),
        combine(model, y[order], scale[order], band[order], exposure[order]),
        strict=True,
    ):
        np.testing.assert_allclose(plain[order], mixed)


def test_chips_without_a_prediction_lend_and_borrow_nothing():
    model = learn_joint(*sky())
    _, y, scale, band, exposure = sky(20, seed=4)
    gone = np.arange(len(y)) % 5 == 0
    bad = np.where(gone & (np.arange(len(y)) % 2 == 0), np.nan, y), np.where(gone, np.nan, scale)
    found, error = combine(model, *bad, band, exposure)
    kept, kept_error = combine(model, y[~gone], scale[~gone], band[~gone], exposure[~gone])
    assert np.isnan(found[gone]).all()
    assert np.isnan(error[gone]).all()
    np.testing.assert_allclose(found[~gone], kept)
    np.testing.assert_allclose(error[~gone], kept_error)


def test_a_band_that_was_not_learned_from_counts_as_all_together():
    model = learn_joint(*sky())
    y, scale = np.array([3.0]), np.array([1.0])
    assert combine(model, y, scale, ["y"], ["a"])[1] == pytest.approx(model.other_bands)


def test_exposures_of_one_chip_teach_nothing():
    truth, y, scale, band, _ = sky()
    with pytest.raises(ConfigError, match="0 pairs of them"):
        learn_joint(truth, y, scale, band, np.arange(len(y)))


def test_the_table_says_what_is_gained():
    truth, y, scale, band, exposure = sky(seed=5)
    n_star = np.round(10**truth - 1).astype(int)
    found, error = combine(learn_joint(*sky(seed=6)), y, scale, band, exposure)
    judged = Judged.build(band=band, field=exposure, n_star=n_star, density_class=class_of(y), log_star=y)
    table = joint_table(judged, Joint(found, error), draws=50).set_index("part")
    flat = table.loc["flat"]
    assert flat["chips"] == len(y)
    assert flat["mae"] == pytest.approx(np.abs(y - judged.true_log_star).mean())
    assert flat["gain"] == pytest.approx(flat["mae_joint"] - flat["mae"])
    assert flat["gain"] < -5 * flat["gain_error"]
    assert flat["accuracy_joint"] > flat["accuracy"] == pytest.approx(judged.right.mean())
    assert flat["within"] == pytest.approx(0.68, abs=0.04)
    nothing = Joint(*np.full((2, len(y)), np.nan))
    assert isinstance(joint_table(judged, nothing), pd.DataFrame)
    assert not len(joint_table(judged, nothing))


def test_counts_lie_in_their_class():
    counts = np.array([0, 1, 99, 100, 999, 1000, 9999, 10_000, 99_999, 100_000])
    np.testing.assert_array_equal(class_of(np.log10(1.0 + counts)), density_class(counts))


def test_no_field_is_judged_by_what_was_learned_from_it():
    truth, y, scale, band, exposure = sky(60, seed=7)
    n_star, chips = np.round(10**truth - 1).astype(int), SimpleNamespace(column={"obs_id": exposure}.get)

    def judged(counts, **bounds):
        return Judged.build(band=band, field=exposure, n_star=counts, density_class=class_of(y), log_star=y, **bounds)

    bounds = {"star_lower": 10 ** (y - scale) - 1, "star_upper": 10 ** (y + scale) - 1}
    plain = estimate_jointly(chips, judged(n_star, **bounds), 0)
    half = np.random.default_rng(0).permutation(60)[np.unique(exposure, return_inverse=True)[1]] % 2 == 0
    other = estimate_jointly(chips, judged(np.where(half, 3 * n_star, n_star), **bounds), 0)
    assert np.isfinite(plain.error).all()
    np.testing.assert_array_equal(plain.log_star[half], other.log_star[half])
    assert (plain.error[~half] < other.error[~half]).all()
    assert estimate_jointly(chips, judged(n_star), 0) is None
