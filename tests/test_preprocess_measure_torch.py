"""The reduction on a torch device gives what the compiled one gives, from sums that are formed in another way."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csst_dask.preprocess.measure import FrameSums, Measured, measure_image
from csst_dask.preprocess.measure_torch import TorchMeasurer, footprints, overlaps


def frame(shape, seed=0, offset=0.3):
    rng = np.random.default_rng(seed)
    image = (rng.standard_normal(shape) * 0.2 + offset).astype(np.float32)
    image[rng.random(shape) < 1e-3] += 500
    image[rng.random(shape) < 1e-2] = rng.choice([np.nan, np.inf, -np.inf])
    return image


def assert_same(found: Measured, expected: Measured, level: float = 1.0) -> None:
    """Maps to 1e-5 of the pixels' size; what is no sum of pixels to the last bit."""
    for name in ("valid", "max", "point_valid"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(found["mean"], expected["mean"], rtol=1e-5, atol=1e-6 * level)
    np.testing.assert_allclose(found["point"], expected["point"], rtol=1e-12, atol=1e-12)
    # rounding of the sums of squares shows in the variance
    np.testing.assert_allclose(found["std"] ** 2, expected["std"] ** 2, rtol=1e-5, atol=1e-6 * level**2)
    assert found.n_valid == expected.n_valid
    assert (found.sky_level, found.sky_sigma) == pytest.approx((expected.sky_level, expected.sky_sigma), nan_ok=True)
    assert found.pixel_mean == pytest.approx(expected.pixel_mean, rel=1e-6, nan_ok=True)
    assert found.pixel_std == pytest.approx(expected.pixel_std, rel=1e-5, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(
    ny=st.integers(9, 150),
    nx=st.integers(9, 150),
    oy=st.integers(1, 40),
    ox=st.integers(1, 40),
    bad=st.sampled_from([0.0, 0.3, 0.99]),
    kind=st.sampled_from(["none", "bool", "uint8", "int16", "uint16", "int32"]),
    invalid=st.sampled_from([None, 4, 0x8005]),
    seed=st.integers(0, 1000),
)
def test_equals_the_compiled_reduction(ny, nx, oy, ox, bad, kind, invalid, seed):
    image, rng, flags = frame((ny, nx), seed), np.random.default_rng(seed + 1), None
    if kind != "none":
        bits = rng.choice([1, 2, 4, 32768 if "16" in kind or "32" in kind else 128], (ny, nx))
        flags = np.where(rng.random((ny, nx)) < bad, bits, 0).astype("uint16" if kind == "int16" else kind)
        invalid = invalid if kind not in ("bool", "uint8") or invalid is None else invalid & 0xFF
    mine = None if flags is None else torch.from_numpy(flags)
    mine = mine.view(torch.int16) if kind == "int16" else mine
    found = TorchMeasurer((ny, nx), out=(oy, ox)).measure(torch.from_numpy(image), mine, invalid=invalid)
    expected = measure_image(image, flags, invalid=invalid, out=(oy, ox))
    assert_same(found, expected, level=500)


@pytest.mark.parametrize("shape", [(512, 640), (523, 611)])
def test_a_frame_with_masked_blocks(shape):
    image, flags = frame(shape, 4), np.zeros(shape, np.uint16)
    flags[40:200, 100:400], flags[:, 17] = 8, 1
    found = TorchMeasurer(shape).measure(torch.from_numpy(image), torch.from_numpy(flags))
    assert_same(found, measure_image(image, flags), level=500)
    assert np.isnan(found["mean"]).any()
    assert (found["valid"] == 0).any()


def test_a_frame_without_a_valid_pixel():
    image = torch.full((60, 70), torch.nan)
    assert_same(TorchMeasurer((60, 70), out=(5, 6)).measure(image), measure_image(image.numpy(), out=(5, 6)))


def test_a_high_level_costs_no_precision():
    image = (np.random.default_rng(0).standard_normal((300, 300)) * 0.01 + 5000).astype(np.float32)
    found = TorchMeasurer((300, 300), out=(7, 7)).measure(torch.from_numpy(image))
    rows = overlaps(300, 7) / 7
    exact = image.astype(np.float64)
    weight = rows.sum(1)[:, None] * rows.sum(1)
    mean = rows @ exact @ rows.T / weight
    std = np.sqrt(rows @ (exact - 5000) ** 2 @ rows.T / weight - (mean - 5000) ** 2)
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(found["std"], std, rtol=1e-9)


@given(n=st.integers(1, 300), out=st.integers(1, 60))
def test_pixels_are_shared_out_whole(n, out):
    weight = overlaps(n, out)
    np.testing.assert_array_equal(weight.sum(0), out)
    np.testing.assert_array_equal(weight.sum(1), n)
    for block, pixels in zip(weight, footprints(n, out), strict=True):
        np.testing.assert_array_equal(np.flatnonzero(block), np.unique(pixels))


def test_sums_merge_with_those_of_the_compiled_reduction():
    image = frame((96, 80), 7)
    upper, lower = image.copy(), image.copy()
    upper[:50], lower[50:] = np.nan, np.nan
    sums = TorchMeasurer((96, 80), out=(9, 8)).sums(torch.from_numpy(upper))
    other = FrameSums((96, 80), (9, 8))
    other.add(lower[:50])
    sums.merge(other)
    assert_same(sums.finish(), measure_image(image, out=(9, 8)), level=500)


def test_wrong_frames_are_refused():
    measurer = TorchMeasurer((20, 30), out=(2, 3))
    with pytest.raises(ValueError, match="expected \\(20, 30\\)"):
        measurer.measure(torch.zeros((30, 20)))
    with pytest.raises(ValueError, match="float32"):
        measurer.measure(torch.zeros((20, 30), dtype=torch.float64))
    with pytest.raises(ValueError, match="integers or bool"):
        measurer.measure(torch.zeros((20, 30)), torch.zeros((20, 30)))
