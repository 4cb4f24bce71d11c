import numpy as np
import pytest

from csst_dask.errors import ChipRejected
from csst_dask.instrument import (
    DETECTORS,
    IMAGING_DETECTORS,
    PIXEL_SCALE,
    detector_band,
    detector_wcs,
    frame_center,
    frame_corners,
)
from csst_dask.schema import BANDS, FRAME_SHAPE

NY, NX = FRAME_SHAPE
# The two published exposures whose sky boxes fix the boresight and the angle.
EXPOSURES = [
    ((90.0000, -66.5607, 180.000), (7, 14, 18, 25)),
    ((180.8806, -29.5641, 116.405), (9, 12, 23)),
]


def gnomonic(detector, ra0, dec0, theta, x, y):
    """Sky position by plain trigonometry, from the focal-plane formula."""
    spec, s = DETECTORS[detector], PIXEL_SCALE / 3600
    dx, dy = x - (4608 - spec.xc), y - (4616 - spec.yc)
    cos, sin = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    xi = np.radians(s * (cos * dx - sin * dy))
    eta = np.radians(s * (-sin * dx - cos * dy))
    d0 = np.radians(dec0)
    below = np.cos(d0) - eta * np.sin(d0)
    ra = np.radians(ra0) + np.arctan2(xi, below)
    dec = np.arctan2(np.sin(d0) + eta * np.cos(d0), np.hypot(xi, below))
    return np.degrees(ra) % 360, np.degrees(dec)


def separation(ra1, dec1, ra2, dec2):
    """Angle, arcsec, exact also for small ones."""

    def unit(ra, dec):
        ra, dec = np.radians(ra), np.radians(dec)
        return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])

    chord = np.linalg.norm(unit(ra1, dec1) - unit(ra2, dec2), axis=0)
    return np.degrees(2 * np.arcsin(chord / 2)) * 3600


def test_eighteen_imaging_detectors_with_the_known_bands():
    assert set(IMAGING_DETECTORS) == {6, 7, 8, 9, *range(11, 21), 22, 23, 24, 25}
    assert len(IMAGING_DETECTORS) == 18
    bands = [detector_band(detector) for detector in IMAGING_DETECTORS]
    assert {band: bands.count(band) for band in BANDS} == {
        "NUV": 4, "u": 2, "g": 2, "r": 2, "i": 2, "z": 2, "y": 4,
    }  # fmt: skip
    assert [detector_band(d) for d in (1, 8, 12, 20, 28, 30)] == ["GI", "g", "NUV", "z", "GU", "GI"]
    assert len(DETECTORS) == 30


def test_the_focal_plane_is_point_symmetric():
    for detector, spec in DETECTORS.items():
        other = DETECTORS[31 - detector]
        assert (spec.xc, spec.yc) == (-other.xc, -other.yc)
        assert (spec.row + other.row, spec.col + other.col) == (6, 7)
        assert (spec.band, spec.imaging) == (other.band, other.imaging)


@pytest.mark.parametrize(("detector", "crpix"), [(12, (-267, 14746)), (30, (29758, -15644)), (6, (-10017, 24876))])
def test_reference_pixels_of_published_headers(detector, crpix):
    assert tuple(detector_wcs(detector, 10, 20, 30).wcs.crpix) == crpix


def test_the_mosaic_has_the_published_size():
    x, y = ([getattr(spec, name) for spec in DETECTORS.values()] for name in ("xc", "yc"))
    assert max(x) - min(x) + NX == 59516
    assert max(y) - min(y) + NY == 49752


@pytest.mark.parametrize("detector", [0, 31, -1, 99])
def test_other_detectors_are_refused(detector):
    for call in (lambda: detector_band(detector), lambda: detector_wcs(detector, 0, 0, 0)):
        with pytest.raises(ChipRejected, match=f"detector {detector} does not exist; expected 1 to 30"):
            call()


@pytest.mark.parametrize(("pointing", "detectors"), EXPOSURES)
def test_wcs_of_published_exposures(pointing, detectors):
    ra0, dec0, theta = pointing
    cos, sin = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    for detector in detectors:
        wcs = detector_wcs(detector, *pointing)
        assert tuple(wcs.wcs.crval) == (ra0, dec0)
        assert wcs.array_shape == FRAME_SHAPE
        s = PIXEL_SCALE / 3600
        np.testing.assert_allclose(wcs.wcs.cd, [[s * cos, -s * sin], [-s * sin, -s * cos]], atol=1e-18)
        assert np.linalg.det(wcs.wcs.cd) < 0
        np.testing.assert_allclose(np.linalg.norm(wcs.wcs.cd, axis=0) * 3600, PIXEL_SCALE, atol=1e-9)
        # The published boxes span the readout frame of 20000 x 4700 pixels.
        x, y = np.array([1.0, 20000, 20000, 1]), np.array([1.0, 1, 4700, 4700])
        mine = gnomonic(detector, *pointing, x, y)
        astropy = wcs.all_pix2world(x, y, 1)
        assert separation(*mine, *astropy).max() < 1e-3


@pytest.mark.parametrize(
    ("a", "b", "axis", "gap"),
    [(11, 6, 0, 534), (22, 17, 0, 534), (12, 11, 1, 898), (9, 8, 1, 898), (7, 2, 0, 1309), (27, 22, 0, 1309)],
)
def test_gaps_between_neighbours_are_found_on_the_sky(a, b, axis, gap):
    pointing = (123.0, -45.0, 37.0)
    first, second = (detector_wcs(detector, *pointing) for detector in (a, b))
    edge = np.array([[4608.5, 4616.5]])
    low, high = edge.copy(), edge.copy()
    size = (NX, NY)[axis]
    first_is_low = (DETECTORS[a].xc, DETECTORS[a].yc)[axis] < (DETECTORS[b].xc, DETECTORS[b].yc)[axis]
    low[0, axis], high[0, axis] = size + 0.5, 0.5
    lower, upper = (first, second) if first_is_low else (second, first)
    # The near edge of the upper detector, in the pixels of the lower one.
    seen = lower.wcs_world2pix(upper.wcs_pix2world(high, 1), 1)
    assert seen[0, axis] - low[0, axis] == pytest.approx(gap, abs=1e-4)
    assert seen[0, 1 - axis] == pytest.approx(edge[0, 1 - axis], abs=1e-4)


@pytest.mark.parametrize("pointing", [(0.05, 1.0, 0.0), (359.9, -80.0, 200.0), (12.0, 89.9, 45.0)])
def test_corners_are_outer_pixel_edges_in_order(pointing):
    wcs = detector_wcs(14, *pointing)
    ra, dec = frame_corners(wcs, FRAME_SHAPE)
    assert np.all((ra >= 0) & (ra < 360))
    x, y = np.array([0, NX, NX, 0]) + 0.5, np.array([0, 0, NY, NY]) + 0.5
    assert separation(*gnomonic(14, *pointing, x, y), ra, dec).max() < 1e-3
    center = frame_center(wcs, FRAME_SHAPE)
    middle = gnomonic(14, *pointing, np.array([4608.5]), np.array([4616.5]))
    assert separation(*middle, *np.array(center)[:, None]).max() < 1e-3
    # A frame of this size measures 11.37 x 11.39 arcmin, less the shrinking off the tangent point.
    sides = separation(ra, dec, np.roll(ra, -1), np.roll(dec, -1)) / PIXEL_SCALE
    np.testing.assert_allclose(sides, [NX, NY, NX, NY], rtol=3e-4)
