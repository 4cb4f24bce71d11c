"""The distortion is what its formula says, in astropy's hands and in ours, and the way to the pixels undoes it."""

import time

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from csst_dask.errors import ChipRejected
from csst_dask.instrument import PIXEL_SCALE, detector_wcs
from csst_dask.instrument.distortion import DISTORTION, distort, sky_to_pixel
from csst_dask.instrument.focal_plane import DETECTORS, tpv_terms

POINTINGS = [(90.0, -66.5607, 180.0), (0.01, 0.3, -113.4333), (359.9, 89.7, 31.0)]
STRENGTHS = (0.0, DISTORTION, -4e-3, 0.05)


def places(n=400, seed=0):
    """FITS pixel coordinates on the frame and around it."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-500, 9800, n), rng.uniform(-500, 9800, n)


@pytest.mark.parametrize("k", STRENGTHS)
def test_tpv_cards_say_what_the_formula_says(k):
    # a header of our own: a tangent plane in degrees, pixels of 1 degree
    header = fits.Header({"NAXIS": 2, "CRVAL1": 0.0, "CRVAL2": 0.0, "CRPIX1": 0.0, "CRPIX2": 0.0})
    header.update({"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "CD1_1": 1.0, "CD2_2": 1.0})
    header.update({f"PV{axis}_{term}": value for axis, term, value in tpv_terms(k)})
    xi, eta = np.random.default_rng(1).uniform(-0.8, 0.8, (2, 300))
    ra, dec = WCS(header).all_pix2world(xi, eta, 1)
    plain = fits.Header(header, copy=True)
    for card in list(plain["PV*"]):
        del plain[card]
    plain.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"})
    expected = WCS(plain).all_pix2world(*distort(xi, eta, k), 1)
    np.testing.assert_allclose((np.mod(ra + 180, 360), dec), (np.mod(expected[0] + 180, 360), expected[1]), atol=1e-9)
    if k:
        assert np.hypot(*np.subtract(distort(xi, eta, k), (xi, eta))) == pytest.approx(
            abs(k) * np.hypot(xi, eta) ** 3, rel=1e-6
        )


@pytest.mark.parametrize("k", STRENGTHS)
@pytest.mark.parametrize("pointing", POINTINGS)
@pytest.mark.parametrize("detector", [6, 13, 25])
def test_sky_to_pixel_agrees_with_astropy(detector, pointing, k):
    wcs = detector_wcs(detector, *pointing, k)
    fx, fy = places()
    ra, dec = wcs.all_pix2world(fx, fy, 1)
    y, x = sky_to_pixel(detector, *pointing, ra, dec, k)
    np.testing.assert_allclose((x + 0.5, y + 0.5), (fx, fy), atol=1e-6)
    ax, ay = wcs.all_world2pix(ra, dec, 1)
    np.testing.assert_allclose((x, y), (ax - 0.5, ay - 0.5), atol=1e-6)


def test_without_distortion_nothing_changes_and_with_it_corners_move():
    fx, fy = places()
    plain, none = detector_wcs(6, *POINTINGS[0]), detector_wcs(6, *POINTINGS[0], 0.0)
    np.testing.assert_array_equal(plain.all_pix2world(fx, fy, 1), none.all_pix2world(fx, fy, 1))
    ra, dec = detector_wcs(6, *POINTINGS[0], DISTORTION).all_pix2world(fx, fy, 1)
    y, x = sky_to_pixel(6, *POINTINGS[0], ra, dec)
    spec = DETECTORS[6]
    radius = np.hypot(fx - 4608 + spec.xc, fy - 4616 + spec.yc) * PIXEL_SCALE / 3600
    shift = np.hypot(x + 0.5 - fx, y + 0.5 - fy) * PIXEL_SCALE / 3600
    np.testing.assert_allclose(shift, DISTORTION * radius**3, rtol=1e-4)


def test_the_far_side_of_the_sky_is_nowhere():
    y, x = sky_to_pixel(6, 10.0, 20.0, 0.0, [190.0, 10.0, 10.0], [-20.0, 20.0, -71.0])
    assert np.isnan(y).tolist() == np.isnan(x).tolist() == [True, False, True]
    # a distortion that turns back reaches no further than 2 / (27 |k|)^1/2 degrees
    edge = 2 / np.sqrt(27 * 0.1)
    y, x = sky_to_pixel(6, 10.0, 0.0, 0.0, 10.0 + np.rad2deg(np.arctan(np.deg2rad([0.99, 1.01]) * edge)), 0.0, -0.1)
    assert np.isnan(x).tolist() == [False, True]


def test_shapes_and_bad_detectors():
    assert [part.shape for part in sky_to_pixel(9, 10, 20, 5, np.empty(0), np.empty(0))] == [(0,), (0,)]
    assert [part.shape for part in sky_to_pixel(9, 10, 20, 5, 10.0, 20.0)] == [(), ()]
    with pytest.raises(ChipRejected, match="does not exist"):
        sky_to_pixel(31, 10, 20, 5, [10.0], [20.0])


def test_a_crowded_field_takes_no_time():
    ra, dec = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 200_000))
    sky_to_pixel(8, 0.0, 0.0, 10.0, ra, dec, DISTORTION)
    times = []
    for _ in range(5):
        start = time.thread_time()
        sky_to_pixel(8, 0.0, 0.0, 10.0, ra, dec, DISTORTION)
        times.append(time.thread_time() - start)
    assert min(times) < 0.1  # some 0.013 s on one core
