"""Measured point spread functions: what goes in as an image comes out as stamps."""

import numpy as np
import pytest
from astropy.io import fits

from csst_dask.errors import ConfigError
from csst_dask.instrument.focal_plane import PIXEL_SCALE
from csst_dask.simulation import psf as module
from csst_dask.simulation.psf import WING_RADIUS, ee80, encircled_energy, gaussian_fwhm, make_psf
from csst_dask.simulation.psf_files import psf_from_image, psf_path, read_psf

WAVELENGTH, JITTER = 4754.5, 0.115
MODEL = make_psf(WAVELENGTH, JITTER)


def oversampled(n=256, scale=0.037, offset=(0.0, 0.0), total=1.0):
    """The model's light in each cell of a fine image; offsets in cells."""
    parts, step = 8, scale / PIXEL_SCALE
    axis = ((np.arange(n * parts) + 0.5) / parts - n / 2) * step
    y, x = axis - offset[0] * step, axis - offset[1] * step
    fine = module._profile(np.hypot(y[:, None], x[None, :]), gaussian_fwhm(WAVELENGTH, JITTER))
    return total * fine.reshape(n, parts, n, parts).sum((1, 3)) * (step / parts) ** 2


IMAGE = oversampled()


def write(path, image=IMAGE, primary=True, **cards):
    header = fits.Header(cards)
    if primary:
        fits.writeto(path, image, header)
    else:
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image.astype(np.float32), header)]).writeto(path)


@pytest.mark.parametrize(
    ("n", "scale", "offset"),
    [(256, 0.037, (0, 0)), (256, 0.037, (0.5, -0.5)), (301, 0.03, (0.3, 1.2)), (400, 0.0185, (0, 0))],
)
def test_the_model_comes_back_from_its_own_image(n, scale, offset):
    found = psf_from_image(oversampled(n, scale, offset, total=37.0), scale)
    assert found.stamps.shape == MODEL.stamps.shape
    assert np.abs(found.stamps - MODEL.stamps).max() < 1e-3 * MODEL.peak
    np.testing.assert_allclose(
        found.stamps.sum((2, 3), dtype=np.float64), MODEL.stamps.sum((2, 3), dtype=np.float64), atol=2e-4
    )
    assert found.peak == pytest.approx(MODEL.peak, rel=1e-3)
    # rings of cells are ragged near the middle; the wings begin beyond the stamps
    np.testing.assert_allclose(found.wings[42 : 2 * WING_RADIUS], MODEL.wings[42 : 2 * WING_RADIUS], rtol=0.1)
    radius = np.linspace(0.1, 10, 100)
    assert np.abs(encircled_energy(found, radius) - encircled_energy(MODEL, radius)).max() < 0.01
    assert ee80(found) == pytest.approx(ee80(MODEL), rel=0.01)
    assert MODEL.core < found.core < 1.06 * MODEL.core


def test_pixels_take_exactly_the_light_of_the_cells_they_cover():
    """At two cells to a pixel and a source in the corner of four, one phase lies on cell edges but for half a step."""
    rng = np.random.default_rng(0)
    image = oversampled(128, 0.037, (0.0, 0.0)) * (1 + 0.05 * rng.standard_normal((128, 128)))
    image = 0.25 * (image + image[::-1] + image[:, ::-1] + image[::-1, ::-1])
    psf = psf_from_image(image, 0.037)
    pixels = image.reshape(64, 2, 64, 2).sum((1, 3))[32 - 15 : 32 + 15, 32 - 15 : 32 + 15]
    # phases 15 and 0 straddle the corner where the source sits: their mean is the pixel on the cells, to second order
    corner = 0.25 * (
        psf.stamps[0, 0, 5:35, 5:35].astype(np.float64)
        + psf.stamps[0, 15, 5:35, 6:36]
        + psf.stamps[15, 0, 6:36, 5:35]
        + psf.stamps[15, 15, 6:36, 6:36]
    )
    scale = pixels.sum() / corner.sum()
    assert np.abs(corner * scale - pixels).max() < 0.01 * pixels.max()
    # the whole is exact: all pixels of a phase hold all cells that they cover
    total = psf.stamps.sum((2, 3), dtype=np.float64).mean() * scale
    cut = slice(64 - 41, 64 + 41)
    assert total == pytest.approx(image[cut, cut].sum(), rel=2e-3)


def test_wings_beyond_a_small_image_are_a_power_law_that_completes_the_flux():
    found = psf_from_image(oversampled(90), 0.037)
    assert np.abs(found.stamps - MODEL.stamps).max() < 2e-3 * MODEL.peak
    far = np.arange(80, 2 * WING_RADIUS)
    slope = np.diff(np.log(found.wings[far])) / np.diff(np.log(far))
    assert np.ptp(slope) < 0.05
    assert slope.mean() == pytest.approx(-3.5, abs=0.15)
    np.testing.assert_allclose(found.stamps[8, 8, 0], MODEL.stamps[8, 8, 0], rtol=0.15)


def test_an_asymmetric_psf_keeps_its_shape():
    sheared = make_psf(WAVELENGTH, JITTER, ellipticity=(0.06, 0.0))
    n, parts = 256, 8
    axis = ((np.arange(n * parts) + 0.5) / parts - n / 2) * 0.5
    norm = np.sqrt(1 - 0.06**2)
    r = np.hypot(axis[:, None] * 1.06 / norm, axis[None, :] * 0.94 / norm)
    image = module._profile(r, gaussian_fwhm(WAVELENGTH, JITTER)).reshape(n, parts, n, parts).mean((1, 3))
    found = psf_from_image(image, 0.037)
    assert np.abs(found.stamps - sheared.stamps).max() < 1.5e-3 * sheared.peak


@pytest.mark.parametrize(
    "cards",
    [
        {"PIXSCALE": 0.037},
        {"PIXSIZE": 0.037},
        {"PIXSIZE": 5.0},
        {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -0.037 / 3600, "CDELT2": 0.037 / 3600},
    ],
    ids=["PIXSCALE", "arcsec", "micron", "WCS"],
)
def test_the_scale_may_stand_in_several_cards(tmp_path, cards):
    write(tmp_path / "psf_g.fits", **cards)
    assert np.abs(read_psf(tmp_path, "g").stamps - MODEL.stamps).max() < 1e-3 * MODEL.peak


def test_a_detector_may_have_a_psf_of_its_own(tmp_path):
    write(tmp_path / "psf_g.fits", PIXSCALE=0.037)
    write(tmp_path / "psf_g_08.fits", primary=False, PIXSCALE=0.03)
    assert psf_path(tmp_path, "g", 8).name == "psf_g_08.fits"
    assert psf_path(tmp_path, "g", 23).name == psf_path(tmp_path, "g").name == "psf_g.fits"
    assert read_psf(tmp_path, "g", 8).core == pytest.approx(read_psf(tmp_path, "g", 23).core * 0.03 / 0.037, rel=0.01)


def changed(value, where=(3, 3)):
    image = IMAGE.copy()
    image[where] = value
    return image


@pytest.mark.parametrize(
    ("image", "cards", "message"),
    [
        (IMAGE, {}, "no scale"),
        (IMAGE, {"PIXSCALE": "fine"}, "expected a number"),
        (IMAGE, {"PIXSCALE": 0.074}, "oversampled"),
        (IMAGE, {"PIXSCALE": -0.037}, "oversampled"),
        (changed(np.nan), {"PIXSCALE": 0.037}, "1 values are not finite"),
        (changed(-2.0), {"PIXSCALE": 0.037}, "expected the light"),
        (np.roll(IMAGE, 5, 0), {"PIXSCALE": 0.037}, "off the middle"),
        (IMAGE[100:116, 100:116], {"PIXSCALE": 0.037}, "expected two axes"),
        (np.stack([IMAGE[:4, :4]] * 2), {"PIXSCALE": 0.037}, "no two-dimensional image"),
    ],
)
def test_files_that_hold_no_psf_are_refused(tmp_path, image, cards, message):
    write(tmp_path / "psf_r.fits", image, **cards)
    with pytest.raises(ConfigError, match=message) as caught:
        read_psf(tmp_path, "r")
    assert "psf_r.fits" in str(caught.value)


def test_missing_and_broken_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"psf_z_11\.fits, psf_z\.fits"):
        read_psf(tmp_path, "z", 11)
    (tmp_path / "psf_z.fits").write_bytes(b"not FITS" * 1000)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_psf(tmp_path, "z")
