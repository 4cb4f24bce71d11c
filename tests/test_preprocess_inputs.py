import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from csst_dask.errors import ConfigError
from csst_dask.preprocess.inputs import KINDS, SCALARS, input_channels, make_inputs
from csst_dask.schema import BLOCK_STATS

MEAN, VALID, STD, MAX, POINT, POINT_VALID = range(len(BLOCK_STATS))


def chips(n=3, size=12, seed=0):
    """Maps and scalars of chips with a bad corner."""
    rng = np.random.default_rng(seed)
    block_stats = np.empty((n, 6, size, size), np.float32)
    block_stats[:, MEAN] = 0.2 + 0.01 * rng.exponential(size=(n, size, size))
    block_stats[:, VALID] = rng.uniform(0.1, 1, (n, size, size))
    block_stats[:, STD] = 0.05 * rng.uniform(1, 20, (n, size, size))
    block_stats[:, MAX] = block_stats[:, MEAN] + rng.exponential(5, (n, size, size))
    block_stats[:, POINT_VALID] = rng.uniform(0, 1, (n, size, size))
    block_stats[:, POINT] = rng.normal(0.2, 0.05, (n, size, size)) * block_stats[:, POINT_VALID]
    block_stats[:, :4, :2, :2] = np.nan
    block_stats[:, VALID, :2, :2] = 0
    block_stats[:, POINT:, :2, :2] = 0
    scalars = {
        "pixel_mean": rng.uniform(0.2, 0.3, n),
        "pixel_std": rng.uniform(0.5, 2, n),
        "sky_level": rng.uniform(0.19, 0.21, n),
        "sky_sigma": rng.uniform(0.04, 0.06, n),
    }
    return block_stats, scalars, ["g", "y", "NUV"][:n]


def rescaled(block_stats, scalars, gain, offset):
    """The same chips if every pixel x had been gain x + offset."""
    out = block_stats.copy()
    out[:, [MEAN, MAX]] = gain * block_stats[:, [MEAN, MAX]] + offset
    out[:, STD] *= gain
    out[:, POINT] = gain * block_stats[:, POINT] + offset * block_stats[:, POINT_VALID]
    shifted = {name: gain * scalars[name] + offset for name in ("pixel_mean", "sky_level")}
    return out, shifted | {name: gain * scalars[name] for name in ("pixel_std", "sky_sigma")}


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_finite_float32_of_the_stated_shape_and_leave_their_source_alone(kind):
    block_stats, scalars, band = chips()
    before = block_stats.copy()
    inputs = make_inputs(kind, block_stats, scalars, band)
    assert inputs.shape == (3, input_channels(kind), 12, 12)
    assert inputs.dtype == np.float32
    assert np.isfinite(inputs).all()
    np.testing.assert_array_equal(block_stats, before)


@settings(max_examples=25, deadline=None)
@given(gain=st.floats(0.1, 10), offset=st.floats(-1, 1))
def test_gain_and_offset_of_the_image_do_not_change_the_inputs(gain, offset):
    block_stats, scalars, band = chips()
    other, other_scalars = rescaled(block_stats, scalars, gain, offset)
    for kind in ("paper-point", "paper-area"):
        np.testing.assert_allclose(
            make_inputs(kind, other, other_scalars, band),
            make_inputs(kind, block_stats, scalars, band),
            atol=1e-4,
        )
    before, after = (
        make_inputs("maps", block_stats, scalars, band),
        make_inputs("maps", other, other_scalars, band),
    )
    np.testing.assert_allclose(after, before, atol=1e-3)


def test_paper_inputs_equal_the_resize_of_the_standardised_image():
    """The maps are linear in the image, so scaling before or after them must agree."""
    rng = np.random.default_rng(1)
    image, mask = rng.normal(3, 2, (24, 24)), rng.random((24, 24)) > 0.2
    mu, sd = image[mask].mean(), image[mask].std()
    standard = np.where(mask, (image - mu) / sd, 0)

    def block_mean(pixels):
        return pixels.reshape(6, 4, 6, 4).mean(axis=(1, 3))

    def sample(pixels):  # bilinear at the centres of 4 x 4 blocks
        return pixels.reshape(6, 4, 6, 4)[:, 1:3, :, 1:3].mean(axis=(1, 3))

    block_stats = np.full((1, 6, 6, 6), np.nan, np.float32)
    block_stats[0, VALID] = block_mean(mask)
    block_stats[0, MEAN] = block_mean(np.where(mask, image, 0)) / block_mean(mask)
    block_stats[0, POINT], block_stats[0, POINT_VALID] = sample(np.where(mask, image, 0)), sample(mask)
    scalars = {"pixel_mean": [mu], "pixel_std": [sd], "sky_level": [0.0], "sky_sigma": [1.0]}
    for kind, resize in (("paper-point", sample), ("paper-area", block_mean)):
        found = make_inputs(kind, block_stats, scalars, ["r"])[0]
        np.testing.assert_allclose(found, [resize(standard), resize(mask)], atol=1e-5)


def test_a_constant_image_is_exactly_zero_for_the_paper():
    block_stats, scalars, band = chips()
    scalars["pixel_std"] = np.zeros(3)
    for kind in ("paper-point", "paper-area"):
        assert (make_inputs(kind, block_stats, scalars, band)[:, 0] == 0).all()


def test_maps_of_an_ordinary_chip_are_of_order_unity():
    inputs = make_inputs("maps", *chips())
    assert np.abs(inputs).max() < 6


def test_brighter_blocks_give_larger_inputs():
    block_stats, scalars, band = chips()
    brighter = block_stats.copy()
    brighter[:, [MEAN, STD, MAX]] *= 2
    before, after = make_inputs("maps", block_stats, scalars, band), make_inputs("maps", brighter, scalars, band)
    assert (after[:, [0, 1, 3], 2:, 2:] > before[:, [0, 1, 3], 2:, 2:]).all()


WILD = st.sampled_from([0.0, -1.0, np.nan, np.inf, -np.inf, 1e-300, 1e300, 0.05])
PIXELS = st.sampled_from([0.0, np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-38, 0.2])


@settings(max_examples=60, deadline=None)
@given(
    block_stats=arrays(np.float32, (2, 6, 2, 2), elements=PIXELS),
    values=arrays(np.float64, (4, 2), elements=WILD),
)
def test_nothing_makes_an_input_infinite(block_stats, values):
    scalars = dict(zip(SCALARS, values, strict=True))
    for kind in KINDS:
        inputs = make_inputs(kind, block_stats, scalars, ["g", "u"])
        assert np.isfinite(inputs).all()
        assert np.isfinite(inputs.astype(np.float16)).all()


def test_inputs_cost_less_than_ten_milliseconds_a_chip():
    block_stats, scalars, band = chips(size=224)
    make_inputs("maps", block_stats, scalars, band)
    times = []
    for _ in range(5):
        start = time.process_time()
        make_inputs("maps", block_stats, scalars, band)
        times.append(time.process_time() - start)
    assert min(times) / 3 < 0.010


def test_wrong_arguments_are_named():
    block_stats, scalars, band = chips()
    with pytest.raises(ConfigError, match="maps"):
        make_inputs("rgb", block_stats, scalars, band)
    with pytest.raises(ValueError, match=r"\(n, 6, iy, ix\)"):
        make_inputs("maps", block_stats[:, :4], scalars, band)
    with pytest.raises(ValueError, match="sky_sigma"):
        make_inputs("maps", block_stats, {k: v for k, v in scalars.items() if k != "sky_sigma"}, band)
    with pytest.raises(ValueError, match="2 bands for 3"):
        make_inputs("maps", block_stats, scalars, band[:2])
