"""Joint histograms of block maps: against numpy, and what must not change them."""

import numpy as np
import pytest

from csst_dask.preprocess.inputs import make_context
from csst_dask.preprocess.statistics import ANSCOMBE, BINS, BLOCKS, EDGES, HISTOGRAMS, PAIRS, compressed
from csst_dask.schema import BLOCK_STATS

SKY, SIGMA = 0.2, 0.05


@pytest.fixture
def chips():
    rng = np.random.default_rng(0)
    mean = SKY + SIGMA * rng.standard_t(2, (3, 1, 30, 40))
    std = SIGMA * (1 + rng.exponential(0.5, mean.shape))
    maps = {"mean": mean, "std": std, "max": mean + rng.exponential(8, mean.shape) * std, "valid": np.ones_like(mean)}
    maps["point"], maps["point_valid"] = mean, maps["valid"]
    return np.concatenate([maps[name] for name in BLOCK_STATS], axis=1).astype(np.float32)


def scalars(n, scale=1.0, shift=0.0):
    level, scatter = np.full(n, scale * SKY + shift), np.full(n, scale * SIGMA)
    return {"pixel_mean": level, "pixel_std": scatter, "sky_level": level, "sky_sigma": scatter}


def map_histograms(block_stats, scalars):
    """The last numbers of the context."""
    return make_context("context", block_stats, scalars, ["g"] * len(block_stats))[:, -len(HISTOGRAMS) :]


def test_bins_are_those_of_numpy(chips):
    found = map_histograms(chips, scalars(3)).reshape(3, len(PAIRS), BINS, BINS)
    edges = {name: [-np.inf, *np.float32(values), np.inf] for name, values in EDGES.items()}
    for chip, histograms in zip(chips, found, strict=True):
        named = dict(zip(BLOCK_STATS, chip.astype(np.float64), strict=True))
        sigmas = [np.float32(values / SIGMA) for values in (named["mean"] - SKY, named["max"] - SKY, named["std"])]
        maps = dict(zip(("mean", "max", "std"), compressed(*sigmas), strict=True))
        for histogram, (one, other) in zip(histograms, PAIRS, strict=True):
            counts = np.histogram2d(maps[one].ravel(), maps[other].ravel(), [edges[one], edges[other]])[0]
            expected = np.sqrt(counts * BLOCKS / counts.sum() + ANSCOMBE)
            assert np.abs(histogram**2 - expected**2).max() <= 2.1 * BLOCKS / counts.sum()  # a block on an edge
            assert np.abs(histogram**2 - expected**2).sum() <= 8 * BLOCKS / counts.sum()


def test_every_block_is_in_one_bin_of_each_pair(chips):
    found = map_histograms(chips, scalars(3)).astype(np.float64).reshape(3, len(PAIRS), -1)
    np.testing.assert_allclose((found**2 - ANSCOMBE).sum(2), BLOCKS, rtol=1e-5)
    assert len(HISTOGRAMS) == found[0].size


def test_flips_scale_and_shift_change_nothing(chips):
    expected = map_histograms(chips, scalars(3))
    np.testing.assert_array_equal(map_histograms(chips[:, :, ::-1].swapaxes(2, 3), scalars(3)), expected)
    scaled = chips * np.float32(2)
    for name in ("valid", "point_valid"):
        scaled[:, BLOCK_STATS.index(name)] = 1
    np.testing.assert_array_equal(map_histograms(scaled, scalars(3, 2.0)), expected)


def test_blocks_without_pixels_are_left_out_and_nothing_seen_is_survived(chips):
    expected = map_histograms(chips[:, :, :15], scalars(3))
    chips[:, :, 15:] = np.nan
    chips[:, [BLOCK_STATS.index("valid"), BLOCK_STATS.index("point_valid")], 15:] = 0
    np.testing.assert_allclose(map_histograms(chips, scalars(3)), expected, rtol=1e-6)
    chips[1] = np.nan
    found = map_histograms(chips, scalars(3) | {"sky_sigma": np.array([SIGMA, np.nan, SIGMA])})
    np.testing.assert_allclose(found[1], np.sqrt(ANSCOMBE), rtol=1e-6)
    assert np.isfinite(found).all()
