"""What was counted, as numbers for a network: the counts themselves, how far off they may be, and shapes."""

from dataclasses import replace

import numpy as np
import pytest

import csst_dask as cd
from csst_dask.instrument import BAND_TABLE
from csst_dask.preprocess.counted import (
    ANCHORS,
    COUNTED,
    LEAST_SPAN,
    MOST_SPAN,
    NOTHING_SEEN,
    SEEN,
    SPANS,
    anchored,
    counted_context,
)
from csst_dask.preprocess.direct import DirectCounts, direct_counts
from csst_dask.schema import BANDS, MAGNITUDES, TILES

N = len(ANCHORS)
SHAPES = slice(2 * N + len(SEEN), None)


def field(stars=400, seed=0, scale=1.0, shape=(1200, 1100), faintest=20.0):
    """A frame of Gaussian stars on noise, e-/s, and how many there are."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0.2, 0.05, shape)
    y, x = (rng.uniform(12, size - 12, stars) for size in shape)
    flux = 10 ** (-0.4 * (faintest - 2.0 * rng.random(stars) - BAND_TABLE["g"].zero_point))
    grid = np.arange(-7, 8)
    for a, b, light in zip(y, x, flux, strict=True):
        i, j = int(a), int(b)
        profile = np.exp(-((grid[:, None] + i - a) ** 2 + (grid + j - b) ** 2) / (2 * 0.85**2))
        image[i - 7 : i + 8, j - 7 : j + 8] += light * profile / profile.sum()
    return (scale * image).astype(np.float32)


def measure(image, **options):
    return cd.measure_image(image, **options)


def test_numbers_are_finite_and_begin_with_the_direct_counts():
    measured = measure(field())
    found, direct = counted_context(measured, "g"), direct_counts(measured, "g")
    assert found.shape == (len(COUNTED),)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    seen = np.isfinite(direct.counts)
    np.testing.assert_allclose(found[:N][:-1][seen], np.log10(1 + direct.counts[seen]), rtol=1e-6)
    np.testing.assert_array_equal(found, counted_context(measured, "g", direct))
    assert 10 ** found[MAGNITUDES.index(21)] - 1 == pytest.approx(400, rel=0.1)


@pytest.mark.parametrize("image", [np.full((300, 300), np.nan, np.float32), np.zeros((300, 300), np.float32)])
@pytest.mark.parametrize("band", BANDS)
def test_a_frame_that_shows_nothing_has_numbers_too(image, band):
    assert np.isfinite(counted_context(measure(image), band)).all()


def test_units_do_not_matter():
    one = counted_context(measure(field(), zero_point=BAND_TABLE["g"].zero_point), "g")
    other = counted_context(measure(field(scale=10**0.4), zero_point=BAND_TABLE["g"].zero_point + 1), "g")
    np.testing.assert_allclose(other[:N], one[:N], atol=0.01)
    np.testing.assert_allclose(other[N : 2 * N], one[N : 2 * N], atol=0.05)
    np.testing.assert_allclose(other[SHAPES], one[SHAPES], atol=0.35)  # a peak may pass to the next step
    assert np.abs(other[SHAPES] - one[SHAPES]).mean() < 0.02


def test_peaks_by_shape_are_all_peaks():
    measured = measure(field())
    shapes = 10 ** counted_context(measured, "g")[SHAPES].astype(float) - 1
    assert shapes.sum() == pytest.approx(measured.peaks.sum(), rel=1e-3)


def test_counts_go_on_beyond_what_is_seen_and_are_less_certain_there():
    counts = np.array([1, 4, 15, 60, 240, 960, *[np.nan] * 4])
    direct = DirectCounts(counts, 0.1 * counts, np.zeros((TILES, TILES)), 0.8, 0.02)
    log, span = anchored(direct, "g")
    assert (np.diff(log) > 0).all()
    np.testing.assert_allclose(log[:6], np.log10(1 + counts[:6]))
    assert (np.diff(span[5:]) > 0).all()
    rise = (log[6:10] - log[5]) / (np.array(MAGNITUDES[6:]) - MAGNITUDES[5])
    np.testing.assert_allclose(rise, rise[0])


def test_spans_follow_the_errors_and_have_ends():
    counts = np.full(len(MAGNITUDES), 300.0)
    wide, narrow, zero = (
        anchored(DirectCounts(counts, np.full(10, e), np.zeros((TILES, TILES)), 0.8, 0.02), "g")[1][:10]
        for e in (90.0, 3.0, 0.0)
    )
    assert (wide > narrow).all()
    assert (zero == LEAST_SPAN).all()
    # three errors down there may be no star at all, and the span reaches that far
    none = anchored(DirectCounts(counts, counts / 3, np.zeros((TILES, TILES)), 0.8, 0.02), "g")
    np.testing.assert_allclose(np.minimum(3 * none[1][:10], 3 * MOST_SPAN), none[0][:10])


def test_where_nothing_is_seen_everything_is_open():
    nothing = np.full(len(MAGNITUDES), np.nan)
    log, span = anchored(DirectCounts(nothing, nothing, np.zeros((TILES, TILES)), np.nan, np.nan), "g")
    assert (log == NOTHING_SEEN).all()
    assert (span == MOST_SPAN).all()
    assert len(span) == len(SPANS)


def test_the_header_may_know_the_zero_point():
    measured = measure(field())
    bright = MAGNITUDES.index(19)
    fainter = replace(measured, zero_point=BAND_TABLE["g"].zero_point + 1.0)
    assert counted_context(fainter, "g")[bright] < counted_context(measured, "g")[bright]
