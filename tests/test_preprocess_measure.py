"""Reduction: exact against a dense float64 reference, whatever the chunks, threads and byte order."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csst_dask.preprocess.measure import FrameSums, measure_image, sky_of_sample, standardised
from csst_dask.schema import BLOCK_STATS, FRAME_SHAPE


def area_weights(n: int, m: int) -> np.ndarray:
    """(m, n) overlap of output block i with input pixel j, in pixels."""
    low, high = np.arange(m)[:, None] * n / m, (np.arange(m)[:, None] + 1) * n / m
    return np.clip(np.minimum(high, np.arange(1, n + 1)) - np.maximum(low, np.arange(n)), 0, None)


def reference(image, good, out):
    """Dense float64 reduction."""
    rows, columns = area_weights(image.shape[0], out[0]), area_weights(image.shape[1], out[1])
    x = np.where(good, image.astype(np.float64), 0)
    weight = rows @ good.astype(np.float64) @ columns.T
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (rows @ x @ columns.T) / weight
        centred = np.where(good, image.astype(np.float64) - x[good].mean(), 0) if good.any() else x
        square = (rows @ centred**2 @ columns.T) / weight - ((rows @ centred @ columns.T) / weight) ** 2
    touched = np.full(out, np.nan)
    for i in range(out[0]):
        for j in range(out[1]):
            block = image[np.ix_(rows[i] > 1e-9, columns[j] > 1e-9)]
            ok = good[np.ix_(rows[i] > 1e-9, columns[j] > 1e-9)]
            if ok.any():
                touched[i, j] = block[ok].max()
    valid = weight * out[0] * out[1] / image.size
    return {"mean": mean, "valid": valid, "std": np.sqrt(np.clip(square, 0, None)), "max": touched}


def frame(shape, seed=0, scale=0.2, offset=0.3):
    rng = np.random.default_rng(seed)
    image = (rng.standard_normal(shape) * scale + offset).astype(np.float32)
    image[rng.random(shape) < 1e-3] += 50
    return image


@settings(max_examples=25, deadline=None)
@given(
    ny=st.integers(9, 90),
    nx=st.integers(9, 90),
    oy=st.integers(1, 30),
    ox=st.integers(1, 30),
    bad=st.sampled_from([0.0, 0.3, 0.97]),
    seed=st.integers(0, 1000),
)
def test_equals_dense_reference(ny, nx, oy, ox, bad, seed):
    image = frame((ny, nx), seed)
    flags = np.where(np.random.default_rng(seed + 1).random((ny, nx)) < bad, 4, 0).astype(np.uint8)
    found = measure_image(image, flags, out=(oy, ox))
    expected = reference(image, flags == 0, (oy, ox))
    for name, tolerance in {"mean": 2e-6, "valid": 1e-12, "max": 0}.items():
        np.testing.assert_allclose(found[name], expected[name], atol=tolerance * 50, rtol=tolerance)
    # squares are summed about some sky pixel, here within 1 of 0: a variance is exact to rounding of the mean square
    seen = np.isfinite(expected["mean"])
    square = expected["std"] ** 2 + expected["mean"] ** 2 + 1
    error = np.abs(found["std"] ** 2 - expected["std"] ** 2)
    assert (error[seen] <= 2e-6 * square[seen]).all()
    np.testing.assert_array_equal(np.isfinite(found["std"]), seen)
    assert found.n_valid == (flags == 0).sum()


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 118), max_size=5), seed=st.integers(0, 100), data=st.data())
def test_chunks_in_any_order_add_up(cuts, seed, data):
    image, out = frame((120, 130), seed), (28, 28)
    image[image > 40] = np.nan
    edges = sorted({0, 120, *cuts})
    pieces = [(a, b, c, d) for a, b in pairwise(edges) for c, d in ((0, 50), (50, 130))]
    whole, parts = measure_image(image, out=out), FrameSums((120, 130), out)
    for a, b, c, d in data.draw(st.permutations(pieces)):
        part = FrameSums((120, 130), out)
        part.add(image[a:b, c:d], y0=a, x0=c)
        parts.merge(part)
    merged = parts.finish()
    np.testing.assert_allclose(merged.maps, whole.maps, rtol=2e-5, atol=2e-5)
    assert merged.n_valid == whole.n_valid
    assert (merged.sky_level, merged.sky_sigma) == (whole.sky_level, whole.sky_sigma)
    assert merged.pixel_std == pytest.approx(whole.pixel_std, rel=1e-5)


def test_input_types_and_threads_give_the_same_bits():
    image = frame((300, 310))
    image[5, 7], image[200:210] = np.inf, np.nan
    flags = (np.random.default_rng(3).random(image.shape) < 0.1).astype(np.uint8)
    expected = measure_image(image, flags).maps
    for pixels in (image, image.astype(">f4"), image.astype(np.float64)):
        for bits in (flags, flags.astype(bool), flags.astype(np.uint16) << 9, flags.astype(">u2")):
            for threads in (1, 3):
                np.testing.assert_array_equal(measure_image(pixels, bits, threads=threads).maps, expected)


def test_only_chosen_flag_bits_count():
    image, flags = frame((60, 60)), np.full((60, 60), 64, np.uint8)
    assert measure_image(image, flags, invalid=0b10111111).n_valid == 3600
    assert measure_image(image, flags).n_valid == 0


def test_point_samples_are_those_of_torch_interpolate():
    torch = pytest.importorskip("torch")
    image = frame((97, 120))
    image[10:40, 20:60] = np.nan
    good = np.isfinite(image)
    stack = np.stack([np.where(good, image, 0), good]).astype(np.float64)[None]
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(stack), size=(24, 31), mode="bilinear", align_corners=False
    )
    found = measure_image(image, out=(24, 31))
    np.testing.assert_allclose([found["point"], found["point_valid"]], expected.numpy()[0], atol=1e-6)


@pytest.mark.parametrize("value", [0.3, 1e4, -7.0, 0.0])
def test_constant_frame_is_exact(value):
    found = measure_image(np.full((90, 100), value, np.float32), out=(20, 20))
    np.testing.assert_array_equal(found["mean"], np.float32(value))
    assert (found["std"] == 0).all()
    assert found.pixel_std == 0
    assert (standardised(found)[0] == 0).all()


def test_frame_without_valid_pixels():
    found = measure_image(np.full((90, 100), np.nan, np.float32), out=(20, 20))
    assert found.n_valid == 0
    assert np.isnan(found["mean"]).all()
    assert np.isnan(found["max"]).all()
    assert (found["valid"] == 0).all()
    assert (standardised(found) == 0).all()
    assert np.isnan([found.pixel_mean, found.pixel_std, found.sky_level, found.sky_sigma]).all()


def test_gain_and_offset_leave_the_standardised_image_alone():
    image = frame((150, 140))
    one, two = measure_image(image), measure_image(image * np.float32(8) + np.float32(3))
    np.testing.assert_allclose(standardised(one), standardised(two), atol=2e-6)


@pytest.mark.parametrize("dtype", ["f4", ">f4"])
def test_flagged_first_rows_do_not_spoil_the_statistics(dtype):
    image = (np.random.default_rng(2).standard_normal((320, 300)) * 5 + 30_000).astype(dtype)
    flags = np.zeros(image.shape, np.uint8)
    flags[:32] = 1
    sums = FrameSums(image.shape, (20, 20))
    for y in range(0, 320, 32):
        sums.add(image[y : y + 32], flags[y : y + 32], y0=y)
    found, good = sums.finish(), image[32:].astype(float)
    assert found.pixel_std == pytest.approx(good.std(), rel=1e-4)
    assert found.pixel_mean == pytest.approx(good.mean(), rel=1e-7)


def test_chunk_outside_the_frame_is_an_error():
    with pytest.raises(ValueError, match="does not lie on the frame"):
        FrameSums((50, 50)).add(np.zeros((10, 10), np.float32), y0=45)
    with pytest.raises(ValueError, match="flags have shape"):
        FrameSums((50, 50)).add(np.zeros((10, 10), np.float32), np.zeros((9, 10), np.uint8))


@pytest.mark.full_size
@pytest.mark.parametrize("case", ["plain", "offset 1e4", "30 % NaN", "saturated"])
def test_full_size_error_of_the_standardised_map(case):
    image = frame(FRAME_SHAPE, scale=0.1, offset=0.2)
    image[3000:3020, 4000:4010] = 600.0
    if case == "offset 1e4":
        image += np.float32(1e4)
    if case == "30 % NaN":
        image[np.random.default_rng(1).random(FRAME_SHAPE, dtype=np.float32) < 0.3] = np.nan
    if case == "saturated":
        image *= np.float32(150)
        image[:, 5000:5003] = 9e4
    found = measure_image(image)
    good = np.isfinite(image)
    x = np.where(good, image, 0).astype(np.float64)
    mu = x.sum() / good.sum()
    sigma = np.sqrt((np.where(good, x - mu, 0) ** 2).sum() / good.sum())
    assert found.n_valid == good.sum()
    assert found.pixel_mean == pytest.approx(mu, abs=1e-7 * sigma)
    assert found.pixel_std == pytest.approx(sigma, rel=1e-6)
    rows, columns = area_weights(FRAME_SHAPE[0], 224), area_weights(FRAME_SHAPE[1], 224)
    area = FRAME_SHAPE[0] * FRAME_SHAPE[1] / 224**2
    expected = rows @ np.where(good, (x - mu) / sigma, 0) @ columns.T / area
    assert np.abs(standardised(found)[0] - expected).max() <= 2e-6
    assert found.maps.shape == (len(BLOCK_STATS), 224, 224)
    sample = x[good][:: good.sum() // 1_000_000]
    assert found.sky_level == pytest.approx(np.median(sample), abs=0.02 * found.sky_sigma)


def sky(sample):
    return sky_of_sample(np.asarray(sample, np.float32))


@pytest.mark.parametrize("steps", [64, 32, 16, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_sky_does_not_move_with_the_steps_that_pixels_are_rounded_to(steps, seed):
    rng = np.random.default_rng(seed)
    level, sigma = rng.uniform(0, 1), rng.uniform(0.01, 1)
    pixels = level + sigma * np.concatenate([rng.standard_normal(150_000), rng.exponential(20, 5000)])
    step = sigma / steps
    exact, found = sky(pixels), sky(np.round(pixels / step) * step)
    assert found[0] == pytest.approx(exact[0], abs=0.003 * sigma)
    # rounding adds a twelfth of the squared step to the variance (Sheppard 1898)
    assert found[1] == pytest.approx(exact[1] * np.sqrt(1 + 1 / (12 * steps**2)), rel=0.004)


def test_pixels_that_were_not_rounded_have_their_median_and_mad():
    pixels = frame((301, 300)).ravel()
    half = np.where(np.arange(pixels.size) % 5 < 3, np.float32(0), pixels)  # its deviation is 0, not a little more
    few = np.concatenate([pixels[:60_000], pixels[:20_000]])  # half are tied, but to one other
    for sample in (pixels, half, few, np.full(1000, 3.0), [1.0], [1.0, 2.0]):
        sample = np.asarray(sample, np.float32)
        median = np.median(sample.astype(np.float64))
        mad = np.median(np.abs(sample - np.float32(median)).astype(np.float64))
        assert sky(sample) == pytest.approx((median, 1.4826 * mad), rel=1e-6)
    assert np.isnan(sky([np.nan])).all()
