"""The point spread function against direct integration of its profile."""

import galsim
import numpy as np
import pytest

from csst_dask.errors import ConfigError
from csst_dask.instrument.focal_plane import BAND_TABLE, DETECTORS, IMAGING_DETECTORS, PIXEL_SCALE
from csst_dask.simulation import psf as module
from csst_dask.simulation.psf import (
    PHASES,
    STAMP_RADII,
    WING_RADIUS,
    ee80,
    encircled_energy,
    field_psf,
    gaussian_fwhm,
    make_psf,
    spike_profile,
)

BANDS = [(4754.5, 0.115), (10051.0, 0.13)]
RADIUS = STAMP_RADII[-1]


@pytest.fixture(scope="module", params=BANDS, ids=["g", "y"])
def case(request):
    wavelength, jitter = request.param
    return make_psf(wavelength, jitter), gaussian_fwhm(wavelength, jitter)


def profile(radius, fwhm):
    """The three components, written out once more from their definition."""
    parts = 0.0
    for share, width in ((0.80, fwhm), (0.12, 2 * fwhm)):
        variance = (width / PIXEL_SCALE) ** 2 / (8 * np.log(2))
        parts = parts + share / (2 * np.pi * variance) * np.exp(-(radius**2) / (2 * variance))
    beta, alpha2 = 1.75, (0.18 / PIXEL_SCALE / 2) ** 2 / (2 ** (1 / 1.75) - 1)
    return parts + 0.08 * (beta - 1) / (np.pi * alpha2) * (1 + radius**2 / alpha2) ** -beta


def integrate(rows, columns, p, q, fwhm):
    """Gauss-Legendre integrals of the profile over pixels; the source lies in pixel (0, 0)."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    nodes, weights = (nodes + 1) / 2, weights / 2
    y = (rows[:, None] + nodes - (p + 0.5) / PHASES).ravel()
    x = (columns[:, None] + nodes - (q + 0.5) / PHASES).ravel()
    fine = profile(np.hypot(y[:, None], x[None, :]), fwhm).reshape(rows.size, 8, columns.size, 8)
    return np.einsum("iajb,a,b->ij", fine, weights, weights)


@pytest.mark.parametrize(("p", "q"), [(0, 0), (7, 8), (15, 3), (4, 11)])
def test_stamps_are_true_shares_of_the_flux(case, p, q):
    psf, fwhm = case
    offsets = np.arange(-RADIUS, RADIUS + 1)
    expected = integrate(offsets, offsets, p, q, fwhm)
    np.testing.assert_allclose(psf.stamps[p, q], expected, rtol=2e-5, atol=1e-9)
    assert psf.stamps[p, q].sum(dtype=np.float64) == pytest.approx(expected.sum(), rel=1e-6)


def test_the_share_within_the_stamps_is_the_same_at_every_phase_but_for_the_rim(case):
    psf, fwhm = case
    # averaged over phases, the stamp is a square of side 41 blurred by a pixel
    shares = psf.stamps.sum((2, 3), dtype=np.float64)
    assert np.ptp(shares) < 1e-4
    fine = (np.arange(420) + 0.5) / 20
    weight = np.clip(RADIUS + 1 - fine, 0, 1)
    square = 4 / 400 * (weight[:, None] * weight[None, :] * profile(np.hypot(fine[:, None], fine[None, :]), fwhm)).sum()
    assert shares.mean() == pytest.approx(square, abs=1e-4)


def test_the_profile_holds_a_unit_flux_to_infinity(case):
    _, fwhm = case
    edges = np.concatenate([[0], np.geomspace(1e-4, 1e9, 40_000)])
    middle = 0.5 * (edges[1:] + edges[:-1])
    total = (module._profile(middle, fwhm) * np.pi * np.diff(edges**2)).sum()
    assert total == pytest.approx(1, abs=2e-5)
    np.testing.assert_allclose(module._profile(middle[:3000], fwhm), profile(middle[:3000], fwhm), rtol=1e-6)


def test_every_phase_has_its_centroid_where_the_source_is(case):
    psf, fwhm = case
    true = (np.arange(PHASES) + 0.5) / PHASES
    centres = np.arange(-RADIUS, RADIUS + 1) + 0.5
    stamps = psf.stamps.astype(np.float64)
    # the stamp cuts the halo unevenly: a strip of the profile at one edge more than at the other
    offsets = np.arange(-RADIUS, RADIUS + 1)
    for axis, sums in ((0, stamps.sum(3)), (1, stamps.sum(2))):
        found = (sums * centres).sum(2) / sums.sum(2)
        for p in (0, 5, 15):
            exact = integrate(offsets, offsets, p, 7, fwhm).sum(1)
            bias = (exact * centres).sum() / exact.sum() - true[p]
            assert np.abs(np.take(found, p, axis) - bias - true[p]).max() < 0.002
            assert abs(bias) < 0.02
    # a Gaussian weight about the source takes the halo's share away altogether
    distance = centres[None, :] - true[:, None]
    weight = np.exp(-0.5 * (distance / 3) ** 2)
    weighted = stamps * weight[:, None, :, None] * weight[None, :, None, :]
    offset_y = (weighted * distance[:, None, :, None]).sum((2, 3)) / weighted.sum((2, 3))
    offset_x = (weighted * distance[None, :, None, :]).sum((2, 3)) / weighted.sum((2, 3))
    assert max(np.abs(offset_y).max(), np.abs(offset_x).max()) < 0.002


def test_flux_within_four_pixels_of_the_source(case):
    psf, fwhm = case
    edges = np.linspace(0, 4, 4001)
    enclosed = (profile(0.5 * (edges[1:] + edges[:-1]), fwhm) * np.pi * np.diff(edges**2)).sum()
    # whole pixels make a ragged aperture; over all phases its rim averages out
    centres, found = np.arange(-RADIUS, RADIUS + 1) + 0.5, []
    for p in range(PHASES):
        for q in range(PHASES):
            y, x = centres - (p + 0.5) / PHASES, centres - (q + 0.5) / PHASES
            found.append(psf.stamps[p, q][np.hypot(y[:, None], x[None, :]) < 4].sum())
    assert np.mean(found) == pytest.approx(enclosed, abs=0.002)
    assert psf.stamps.sum((2, 3)).max() < 1


def test_stamps_of_mirrored_phases_are_mirrored(case):
    stamps = case[0].stamps
    np.testing.assert_allclose(stamps, stamps[::-1, :, ::-1], rtol=1e-5)
    np.testing.assert_allclose(stamps, stamps.transpose(1, 0, 3, 2), rtol=1e-5)


def test_the_peak_is_that_of_a_source_in_the_middle_of_a_pixel(case):
    psf, fwhm = case
    exact = integrate(np.array([0]), np.array([0]), PHASES / 2 - 0.5, PHASES / 2 - 0.5, fwhm)[0, 0]
    assert psf.peak == pytest.approx(exact, rel=0.005)
    assert 0.1 < psf.peak < 0.3


def test_wings_are_the_profile_at_half_pixels(case):
    psf, fwhm = case
    assert psf.wings.size >= 2 * WING_RADIUS + 2
    np.testing.assert_allclose(psf.wings, profile(np.arange(psf.wings.size) / 2, fwhm), rtol=1e-5)


def test_diffraction_and_jitter_add_in_quadrature():
    diffraction = gaussian_fwhm(6000.0, 0.0)
    assert diffraction == pytest.approx(1.03 * 6000e-10 / 2.0 * 180 / np.pi * 3600)
    assert gaussian_fwhm(6000.0, 0.12) ** 2 == pytest.approx(diffraction**2 + 0.12**2)
    assert make_psf(9000.0, 0.12).peak < make_psf(5000.0, 0.12).peak


def galsim_stamp(wavelength, jitter, p, q, size, halo=1.0, ellipticity=(0.0, 0.0)):
    """The same star drawn by GalSim."""
    fwhm = gaussian_fwhm(wavelength, jitter)
    star = galsim.Add(
        galsim.Gaussian(flux=1 - 0.2 * halo, fwhm=fwhm),
        galsim.Gaussian(flux=0.12 * halo, fwhm=2 * fwhm),
        galsim.Moffat(flux=0.08 * halo, beta=1.75, fwhm=0.18, trunc=9.0),
    ).shear(g1=ellipticity[0], g2=ellipticity[1])
    offset = galsim.PositionD((q + 0.5) / PHASES - 0.5, (p + 0.5) / PHASES - 0.5)
    params = galsim.GSParams(maximum_fft_size=16384)
    image = star.withGSParams(params).drawImage(nx=size, ny=size, scale=PIXEL_SCALE, offset=offset, method="auto")
    return image.array


@pytest.mark.parametrize(
    ("p", "q", "halo", "ellipticity"),
    [(0, 0, 1.0, (0.0, 0.0)), (7, 12, 1.0, (0.04, -0.03)), (15, 3, 1.3, (-0.05, 0.02))],
)
def test_stamps_are_those_of_galsim(p, q, halo, ellipticity):
    psf = make_psf(7653.2, 0.12, halo=halo, ellipticity=ellipticity)
    expected = galsim_stamp(7653.2, 0.12, p, q, 2 * RADIUS + 1, halo, ellipticity)
    found = psf.stamps[p, q]
    centres = np.arange(-RADIUS, RADIUS + 1) + 0.5
    near = np.hypot((centres - (p + 0.5) / PHASES)[:, None], (centres - (q + 0.5) / PHASES)[None, :]) < 4
    # galsim must cut the Moffat off (here at 9 arcsec) and keeps its flux: 0.4 % of the halo
    assert found[near].sum() == pytest.approx(expected[near].sum(), rel=0.003)
    assert np.abs(found - expected).max() < 1e-3 * psf.peak


def test_shear_conserves_flux_and_turns_the_second_moments():
    centres = np.arange(-RADIUS, RADIUS + 1) + 0.5 - 7.5 / PHASES

    def moments(ellipticity):
        stamp = make_psf(7653.2, 0.12, ellipticity=ellipticity).stamps[7, 7].astype(np.float64)
        weight = stamp * np.exp(-0.5 * (centres[:, None] ** 2 + centres[None, :] ** 2) / 3**2)
        yy, xx = (weight * centres[:, None] ** 2).sum(), (weight * centres[None, :] ** 2).sum()
        xy = (weight * centres[:, None] * centres[None, :]).sum()
        return (xx - yy) / (xx + yy), 2 * xy / (xx + yy), stamp.sum()

    round_, along_x, diagonal = moments((0.0, 0.0)), moments((0.05, 0.0)), moments((0.0, 0.05))
    assert round_[:2] == pytest.approx((0, 0), abs=1e-3)
    assert along_x[0] > 0.03
    assert diagonal[1] == pytest.approx(along_x[0], rel=0.05)
    assert along_x[2] == pytest.approx(round_[2], abs=2e-4)
    assert diagonal[2] == pytest.approx(round_[2], abs=2e-4)


def test_more_halo_takes_light_from_the_core():
    plain, wide = make_psf(6199.8, 0.12), make_psf(6199.8, 0.12, halo=1.5)
    assert wide.peak < plain.peak
    radius = np.array([0.5, 1.0, 2.0, 4.0])
    assert (encircled_energy(wide, radius) < encircled_energy(plain, radius)).all()
    # beyond the Gaussians there is only the Moffat
    np.testing.assert_allclose(wide.wings[60:], 1.5 * plain.wings[60:], rtol=1e-5)


def test_spikes_take_their_share_and_stand_along_rows_and_columns():
    plain, spiked = make_psf(6199.8, 0.12), make_psf(6199.8, 0.12, spikes=0.02)
    extra = spiked.stamps[8, 8].astype(np.float64) - 0.98 * plain.stamps[8, 8]
    distance = np.linspace(-20.53, 20.47, 40_001)
    inside = 0.02 * spike_profile(distance).mean() * 41
    assert extra.sum() == pytest.approx(inside, rel=1e-3)
    assert np.abs(extra[3, :]).argmax() == RADIUS
    assert np.abs(extra[:, 36]).argmax() == RADIUS
    assert spike_profile(np.arange(-100_000, 100_001)).sum() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("halo", [0.6, 1.0, 1.6])
def test_the_gaussians_hold_the_light_of_the_profile(case, halo):
    fwhm = case[1]
    wavelength, jitter = next(b for b in BANDS if gaussian_fwhm(*b) == fwhm)
    psf = make_psf(wavelength, jitter, halo=halo)
    assert psf.mixture[:, 0].sum() == pytest.approx(1)
    assert (psf.mixture > 0).all()
    edges = np.linspace(0, 10, 20_001)
    middles = 0.5 * (edges[1:] + edges[:-1])
    true = np.cumsum(module._profile(middles, fwhm, halo) * np.pi * np.diff(edges**2))
    assert np.abs(encircled_energy(psf, edges[1:]) - true).max() < 0.01


def test_images_are_as_sharp_as_the_telescope_must_make_them():
    """80 % of the light within 0.15 arcsec is required, and 0.114 arcsec is the mean of the optical design."""
    found = {}
    for detector in IMAGING_DETECTORS:
        spec = DETECTORS[detector]
        for jitter in (0.115, 0.13):
            found[detector, jitter] = ee80(field_psf(spec.band, spec.xc, spec.yc, jitter))
    assert max(found.values()) < 0.156
    assert np.mean([v for (d, _), v in found.items() if DETECTORS[d].band in ("NUV", "u", "g", "r")]) < 0.13
    assert min(found.values()) > 0.1
    bands = [ee80(make_psf(band.wavelength, 0.12)) for band in BAND_TABLE.values()]
    assert bands == sorted(bands)


def test_the_field_widens_and_stretches_the_psf_away_from_the_boresight():
    middle, corner = field_psf("r", 0, 0, 0.12), field_psf("r", 14625, 20260, 0.12)
    assert 1.03 < corner.core / middle.core < 1.07
    np.testing.assert_array_equal(middle.stamps, make_psf(BAND_TABLE["r"].wavelength, 0.12).stamps)
    # drawn out along the radius: more light on the diagonal that points to the boresight
    stamp = corner.stamps[7:9, 7:9].mean((0, 1))
    assert stamp[RADIUS + 2, RADIUS + 2] > 1.05 * stamp[RADIUS + 2, RADIUS - 2]
    across = field_psf("r", 25_000, 0, 0.12).stamps[7:9, 7:9].mean((0, 1))
    assert across[RADIUS, RADIUS + 3] > 1.05 * across[RADIUS + 3, RADIUS]


def test_detectors_that_mirror_each_other_share_a_psf():
    for detector in IMAGING_DETECTORS:
        here, there = DETECTORS[detector], DETECTORS[31 - detector]
        assert field_psf(here.band, here.xc, here.yc, 0.12) is field_psf(there.band, there.xc, there.yc, 0.12)


@pytest.mark.parametrize("wrong", [{"halo": 0.0}, {"halo": 6.0}, {"spikes": 1.0}, {"ellipticity": (0.5, 0.1)}])
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        make_psf(6000.0, 0.12, **wrong)
