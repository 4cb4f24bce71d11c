"""Rounded pixels: how far they are off, what photometry loses by them, and what is saved."""

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from csst_dask.store.codecs import STEPS_PER_SIGMA, checked, image_codec, quantisation_step, quantise

APERTURE = 4
"""Side of a square aperture, pixel."""


@pytest.mark.parametrize("sigma", [0.004, 0.03125, 0.05, 0.0624, 1.7])  # 0.03125: the coarsest step that there can be
@pytest.mark.parametrize("flux", [0.0, 0.3, 40.0])
def test_rounding_costs_photometry_less_than_a_fiftieth_of_its_error(sigma, flux):
    """The error of an aperture's sum is that of the sky; what rounding adds is 2 % of it at most, and no offset."""
    rng = np.random.default_rng(0)
    stars = flux * sigma * rng.uniform(0.5, 1.5, (64, 64)).repeat(APERTURE, 0).repeat(APERTURE, 1)
    image = (0.2 + stars + rng.normal(0, sigma, stars.shape)).astype(np.float32)
    rounded = image.copy()
    quantise(rounded, quantisation_step(sigma))
    assert not np.array_equal(rounded, image)
    change = (rounded.astype(np.float64) - image).reshape(64, APERTURE, 64, APERTURE).sum(axis=(1, 3))
    error = sigma * APERTURE  # of a sum over independent pixels
    assert change.std() < 0.02 * error
    assert abs(change.mean()) < 0.002 * error


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-4, 1e3), st.integers(0, 1000))
def test_quantised_pixels_stay_within_half_a_step(sigma, seed):
    step = quantisation_step(sigma)
    assert sigma / STEPS_PER_SIGMA / 2 < step <= sigma / STEPS_PER_SIGMA
    assert np.frexp(step)[0] == 0.5
    rng = np.random.default_rng(seed)
    image = (sigma * rng.normal(size=500) * 10 ** rng.uniform(0, 5, 500)).astype("f4")
    image[:3] = np.nan, np.inf, 0
    packed = image.copy()
    quantise(packed, step)
    good = np.isfinite(image)
    assert np.abs(packed[good].astype("f8") - image[good]).max() <= step / 2
    np.testing.assert_array_equal(packed[:3], image[:3])
    # whole multiples of a power of two: exact in any reader
    multiples = packed[good].astype("f8") / step
    np.testing.assert_array_equal(multiples, np.rint(multiples))
    again = packed.copy()
    quantise(again, step)
    np.testing.assert_array_equal(again, packed)


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan, np.inf])
def test_without_a_sky_sigma_pixels_stay_as_they_are(sigma):
    image = np.random.default_rng(0).normal(size=100).astype("f4")
    packed = image.copy()
    quantise(packed, quantisation_step(sigma))
    np.testing.assert_array_equal(packed, image)


def test_rounded_noise_takes_less_room():
    image, sizes = np.random.default_rng(0).normal(0.2, 0.05, (184, 192)).astype("f4"), []
    for pixels in ("lossless", "quantised"):
        if pixels == "quantised":
            quantise(image, quantisation_step(0.05))
        array = zarr.create_array(
            zarr.storage.MemoryStore(), data=image, chunks=(92, 96), compressors=checked(image_codec(pixels))
        )
        sizes.append(array.nbytes_stored())
        np.testing.assert_array_equal(array[:], image)
    assert sizes[1] < 0.4 * sizes[0]
