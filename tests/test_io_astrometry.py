import warnings

import numpy as np
import pytest
from astropy.io import fits

from csst_dask.errors import ChipRejected
from csst_dask.instrument import detector_wcs, frame_corners
from csst_dask.io import clean_wcs
from csst_dask.schema import FRAME_SHAPE

POINTING = (90.0, -66.5607, 180.0)


def header_of(detector=14, **changes):
    header = detector_wcs(detector, *POINTING).to_header()
    header["RADESYS"] = "ICRS"
    for i in (1, 2):
        for j in (1, 2):
            header.remove(f"PC{i}_{j}", ignore_missing=True)
            header[f"CD{i}_{j}"] = detector_wcs(detector, *POINTING).wcs.cd[i - 1, j - 1]
        header.remove(f"CDELT{i}", ignore_missing=True)
    header.update(changes)
    return header


def distorted(**changes):
    pv = {f"PV{axis}_{term}": value for axis in (1, 2) for term, value in ((0, 1e-3), (1, 1.0), (2, 1e-4))}
    return header_of(CTYPE1="RA---TPV", CTYPE2="DEC--TPV", **pv, **changes)


def corners(wcs):
    return np.array(frame_corners(wcs, FRAME_SHAPE))


def check_same(a, b, arcsec=1e-6):
    np.testing.assert_allclose(corners(a), corners(b), atol=arcsec / 3600)


def test_a_plain_header_gives_its_own_wcs():
    check_same(clean_wcs(header_of()), detector_wcs(14, *POINTING))
    assert clean_wcs(header_of()).array_shape == FRAME_SHAPE


def test_distortion_is_kept_where_it_is_good():
    moved = corners(clean_wcs(distorted())) - corners(detector_wcs(14, *POINTING))
    assert np.abs(moved).min() > 1e-4
    check_same(clean_wcs(distorted(STA_DIST=0, STA_POSI=0)), clean_wcs(distorted()))


@pytest.mark.parametrize(
    "changes",
    [{"PV1_1": -9999.0}, {"PV2_6": -9999}, {"STA_DIST": 1}, {"STA_POSI": 1}, {"CTYPE1": "RA---TAN"}],
)
def test_failed_astrometry_falls_back_to_a_tangent_plane(changes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wcs = clean_wcs(_with(distorted(), changes))
    check_same(wcs, detector_wcs(14, *POINTING))
    assert list(wcs.wcs.ctype) == ["RA---TAN", "DEC--TAN"]


def _with(header, changes):
    header.update(changes)
    return header


def test_old_and_foreign_cards_make_no_noise():
    header = header_of(RADECSYS="ICRS", WCSDIM=2, EQUINOX=2000.0, **{"DATE-OBS": "yesterday", "MJD-OBS": "?"})
    del header["RADESYS"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wcs = clean_wcs(header)
    assert wcs.wcs.radesys == "ICRS"
    check_same(wcs, detector_wcs(14, *POINTING))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"CD2_1": 3.7e-3}, "pixel scales"),
        ({"CD1_1": 0.0, "CD2_2": 0.0, "CD1_2": 0.0, "CD2_1": 0.0}, "no usable WCS"),
        ({"CD1_1": -2.2e-5, "CD2_2": 2.2e-5}, "pixel scales"),
        ({"CRVAL2": 90.5}, "CRVAL2 is 90.5, expected at most 90"),
        ({"CRVAL1": -9999.0}, "CRVAL1 is -9999"),
        ({"CRVAL1": "?"}, "CRVAL1 is '\\?', expected a finite number"),
        ({"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}, "expected RA and DEC"),
        ({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, "expected RA and DEC"),
        ({"CTYPE1": "RA---TAN", "CTYPE2": "RA---TAN"}, "no usable WCS"),
        ({"RADESYS": "FK4", "EQUINOX": 1950.0}, "expected ICRS or FK5"),
    ],
)
def test_a_wcs_that_cannot_be_is_refused(changes, reason):
    with pytest.raises(ChipRejected, match=reason):
        clean_wcs(header_of(**changes))


def test_other_cameras_may_have_other_pixels():
    header = header_of(**{f"CD{i}_{i}": 1e-4 for i in (1, 2)})
    assert clean_wcs(header, (1000, 1100)).array_shape == (1000, 1100)
    with pytest.raises(ChipRejected, match="pixel scales"):
        clean_wcs(header, FRAME_SHAPE)


@pytest.mark.parametrize(
    "cards",
    [
        {"RA_PNT0": 90.0, "DEC_PNT0": -66.5607, "POS_ANG0": 180.0},
        {"RA_PNT0": -9999.0, "DEC_PNT0": -9999.0, "RA_OBJ": 90.0, "DEC_OBJ": -66.5607, "POS_ANG1": 180.0},
        {"OBJ_RA": 90.0, "OBJ_DEC": -66.5607, "POS_ANG0": 180.0},
    ],
)
def test_the_focal_plane_serves_where_the_header_has_no_wcs(cards):
    primary = fits.Header(list(cards.items()))
    check_same(clean_wcs(fits.Header(), primary=primary, detector=14), detector_wcs(14, *POINTING))
    for missing in ({"primary": primary}, {"primary": fits.Header(), "detector": 14}):
        with pytest.raises(ChipRejected, match="no usable WCS"):
            clean_wcs(fits.Header(), **missing)
    with pytest.raises(ChipRejected, match="no usable WCS"):
        clean_wcs(fits.Header(), (92, 96), primary=primary, detector=14)
