import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from plain_statistics import plain_statistics

from csst_dask.preprocess.inputs import SCALARS, make_inputs, map_statistics
from csst_dask.preprocess.statistics import STATISTICS

MEAN, VALID, STD, MAX = range(4)
SKY, SIGMA, PIXELS = 0.2, 0.05, 1696


def sky_maps(n_star=0, size=64, seed=0, share=0.25, light=20.0):
    """Maps of noise and of stars (or of galaxies, by the share of their light in one pixel), each in its own block."""
    rng = np.random.default_rng(seed)
    maps = np.empty((1, 6, size, size), np.float32)
    flux = np.zeros((size, size))
    where = rng.choice(np.arange(1, size, 2) * size + rng.integers(0, size // 2, size // 2) * 2, n_star, replace=False)
    flux.flat[where] = light
    peak, squares = share * flux, (share * flux) ** 2 / 0.6
    maps[0, MEAN] = SKY + flux / PIXELS + SIGMA / 41 * rng.normal(size=(size, size))
    maps[0, VALID] = 1
    maps[0, STD] = np.sqrt(SIGMA**2 * rng.normal(1, 0.02, (size, size)) + squares / PIXELS)
    maps[0, MAX] = SKY + np.maximum(peak, SIGMA * rng.normal(3.3, 0.3, (size, size)))
    maps[0, 4:] = 1
    return maps


def sky_scalars(n=1, **other):
    return {
        "pixel_mean": [SKY] * n,
        "pixel_std": [2 * SIGMA] * n,
        "sky_level": [SKY] * n,
        "sky_sigma": [SIGMA] * n,
    } | other


def named(maps, scalars=None):
    return dict(zip(STATISTICS, map_statistics(maps, scalars or sky_scalars(len(maps)))[0].tolist(), strict=True))


def test_every_statistic_has_one_name_and_is_of_order_one_on_a_field_of_stars():
    values = map_statistics(np.concatenate([sky_maps(0), sky_maps(30)]), sky_scalars(2))
    assert values.shape == (2, len(STATISTICS))
    assert values.dtype == np.float32
    assert len(set(STATISTICS)) == len(STATISTICS)
    assert np.abs(values).max() < 5


def test_flips_and_transposition_change_nothing():
    maps = sky_maps(25)
    maps[:, :4, 3:9, 5:30] = np.nan
    maps[:, VALID, 3:9, 5:30] = 0
    expected = map_statistics(maps, sky_scalars())
    for turned in (maps[..., ::-1], maps[..., ::-1, :], maps.swapaxes(2, 3)):
        np.testing.assert_allclose(map_statistics(turned, sky_scalars()), expected, atol=1e-6)


@pytest.mark.parametrize(("gain", "offset"), [(3.0, 0.0), (0.2, 0.0), (1.0, 0.7)])
def test_only_the_noise_level_tells_the_unit(gain, offset):
    maps = sky_maps(25).astype(np.float64)
    other = maps.copy()
    other[:, [MEAN, MAX]] = gain * maps[:, [MEAN, MAX]] + offset
    other[:, STD] *= gain
    scalars = {name: gain * np.array(value) for name, value in sky_scalars().items()}
    scalars |= {name: scalars[name] + offset for name in ("pixel_mean", "sky_level")}
    before, after = named(maps), named(other, scalars)
    assert after.pop("log_sigma") - before.pop("log_sigma") == pytest.approx(np.log10(gain), abs=1e-6)
    assert after == pytest.approx(before, abs=2e-4)


def test_blocks_without_a_valid_pixel_count_as_if_they_were_not_there():
    maps = sky_maps(0, size=32)
    wide = np.full((1, 6, 32, 64), np.nan, np.float32)
    wide[..., :32] = maps
    wide[:, VALID, :, 32:] = 0
    alone, beside = named(maps), named(wide)
    assert beside.pop("valid") == pytest.approx(alone.pop("valid") / 2)
    assert beside == pytest.approx(alone, abs=1e-6)


def test_stars_are_counted_as_summits_and_exceedances():
    found = named(sky_maps(30))
    assert 10 ** found["max_summits_20"] - 1 == pytest.approx(30)
    assert 10 ** (2 * found["max_above_20"]) - 1 == pytest.approx(30 * 224**2 / 64**2, rel=1e-4)
    assert named(sky_maps(0))["max_summits_20"] == 0


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (1, 1), (1, -1)])
def test_a_star_on_the_border_of_two_blocks_is_one_summit(step):
    maps = sky_maps(0)
    maps[0, MAX, 30, 30], maps[0, MAX, 30 + step[0], 30 + step[1]] = 9.0, 8.0
    found = named(maps)
    assert 10 ** found["max_summits_50"] - 1 == pytest.approx(1)
    assert 10 ** (2 * found["max_above_50"]) - 1 == pytest.approx(2 * 224**2 / 64**2, rel=1e-4)


def test_stars_are_told_from_galaxies_of_the_same_light():
    stars, galaxies = named(sky_maps(30)), named(sky_maps(30, share=0.05, light=60.0))
    assert stars["mean_summits_0.1"] == pytest.approx(galaxies["mean_summits_0.1"], abs=0.1)
    assert stars["peak_to_flux_10_q0.5"] == pytest.approx(np.log10(0.25), abs=0.05)
    assert galaxies["peak_to_flux_10_q0.5"] == pytest.approx(np.log10(0.05), abs=0.05)


def test_quantiles_are_those_of_the_map():
    maps = sky_maps(0)
    above = np.arcsinh((maps[0, MEAN].astype(np.float64) - SKY) / SIGMA / 0.05) / 3
    found = named(maps)
    for level in (0.001, 0.5, 0.999):
        assert found[f"mean_q{level:g}"] == pytest.approx(np.quantile(above, level), abs=1e-5)
    assert found["mean_average"] == pytest.approx(above.mean(), abs=1e-5)
    assert found["mean_spread"] == pytest.approx(above.std(), abs=1e-5)


def test_neighbours_that_are_alike_show_in_the_autocorrelation():
    maps = sky_maps(0)
    maps[:, MEAN] += 0.02 * np.sin(np.arange(64) / 8)[:, None]
    assert named(sky_maps(0))["mean_lag_1"] == pytest.approx(0, abs=0.05)
    assert named(maps)["mean_lag_1"] > 0.8


def assert_as_plain(maps, scalars):
    """Equal in float32; what compares a map's values with each other shows their rounding more."""
    found, expected = map_statistics(maps, scalars), plain_statistics(maps, scalars)
    relative = np.array([name.rpartition("_")[2] in ("skewness", "kurtosis") or "_lag_" in name for name in STATISTICS])
    np.testing.assert_allclose(found[:, ~relative], expected[:, ~relative], rtol=2e-7, atol=2e-7)
    np.testing.assert_allclose(found[:, relative], expected[:, relative], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n_star", "light"), [(0, 0.0), (5, 3.0), (30, 200.0), (31, 9000.0)])
@pytest.mark.parametrize("holes", [0.0, 0.3, 0.98, 1.0])
def test_statistics_equal_those_of_plain_numpy(n_star, light, holes):
    maps = np.concatenate([sky_maps(n_star, seed=seed, light=light, share=0.1 * (1 + seed)) for seed in range(3)])
    rng = np.random.default_rng(7)
    maps[:, MAX] += SIGMA * light * rng.exponential(1, maps[:, MAX].shape).astype(np.float32)
    maps[:, MEAN] -= SIGMA * light * 1e-4 * rng.exponential(1, maps[:, MEAN].shape).astype(np.float32)
    hole = rng.random(maps.shape[2:]) < holes
    maps[:, :4, hole], maps[:, VALID, hole] = np.nan, 0
    maps[1, MAX, 5, 5] = np.inf
    scalars = sky_scalars(3, sky_sigma=[SIGMA, np.nan, 0.0])
    assert_as_plain(maps, scalars)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (1, 6, 5, 7), elements=st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 2.0, 30.0, 1e3, np.nan])),
    st.sampled_from([0.01, 0.05, 1.0]),
)
def test_ties_and_gaps_equal_those_of_plain_numpy(maps, sigma):
    scalars = sky_scalars(1, sky_sigma=[sigma])
    assert_as_plain(maps, scalars)


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, 0.0, 1.0, 3e38, -3e38])
def test_maps_of_one_value_give_finite_statistics(fill):
    maps = np.full((2, 6, 16, 16), fill, np.float32)
    for scalar in (np.nan, 0.0, 1e300, 1.0):
        values = map_statistics(maps, {name: [scalar, 1.0] for name in SCALARS})
        assert np.isfinite(values).all()
        assert np.abs(values).max() <= 20


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.float32, (1, 6, 4, 5), elements=st.floats(width=32, allow_nan=True)),
    st.lists(st.floats(), min_size=4, max_size=4),
)
def test_anything_gives_finite_statistics(maps, numbers):
    values = map_statistics(maps, {name: [number] for name, number in zip(SCALARS, numbers, strict=True)})
    assert np.isfinite(values).all()
    assert np.abs(values).max() <= 20


def test_each_chip_stands_for_itself():
    maps = np.concatenate([sky_maps(n, seed=n) for n in (0, 5, 20)])
    together = map_statistics(maps, sky_scalars(3))
    for chip in range(3):
        np.testing.assert_array_equal(map_statistics(maps[chip : chip + 1], sky_scalars()), together[chip : chip + 1])


def test_inputs_share_the_scale_of_the_statistics():
    maps = sky_maps(10)
    inputs = make_inputs("maps", maps, sky_scalars(), ["g"])[0]
    found = named(maps)
    assert found["mean_q0.5"] == pytest.approx(np.median(inputs[0]), abs=1e-5)
    assert found["std_average"] == pytest.approx(inputs[1].mean(dtype=float), abs=1e-5)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="expected"):
        map_statistics(np.zeros((1, 4, 8, 8), np.float32), sky_scalars())
    with pytest.raises(ValueError, match="sky_sigma"):
        map_statistics(sky_maps(), {name: [1.0] for name in SCALARS[:3]})
