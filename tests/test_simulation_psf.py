"""The point spread function against direct integration of its profile."""

import numpy as np
import pytest

from csst_dask.simulation import psf as module
from csst_dask.simulation.psf import PHASES, PIXEL, STAMP_RADII, WING_RADIUS, gaussian_fwhm, make_psf

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
        variance = (width / PIXEL) ** 2 / (8 * np.log(2))
        parts = parts + share / (2 * np.pi * variance) * np.exp(-(radius**2) / (2 * variance))
    beta, alpha2 = 1.75, (0.18 / PIXEL / 2) ** 2 / (2 ** (1 / 1.75) - 1)
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
    assert np.abs(psf.stamps[p, q] - expected).max() < 2e-3 * expected.max()
    outside = np.hypot(*np.meshgrid(offsets, offsets)) > 6
    np.testing.assert_allclose(psf.stamps[p, q][outside], expected[outside], rtol=2e-3)
    assert psf.stamps[p, q].sum() == pytest.approx(expected.sum(), rel=2e-5)


def test_the_profile_holds_a_unit_flux_to_infinity(case):
    _, fwhm = case
    edges = np.concatenate([[0], np.geomspace(1e-4, 1e9, 40_000)])
    middle = 0.5 * (edges[1:] + edges[:-1])
    total = (module._profile(middle, fwhm) * np.pi * np.diff(edges**2)).sum()
    assert total == pytest.approx(1, abs=2e-5)
    np.testing.assert_allclose(module._profile(middle[:3000], fwhm), profile(middle[:3000], fwhm), rtol=1e-6)


def test_every_phase_has_its_centroid_where_the_source_is(case):
    stamps = case[0].stamps[:, :, RADIUS - 6 : RADIUS + 7, RADIUS - 6 : RADIUS + 7].astype(np.float64)
    stamps /= stamps.sum((2, 3), keepdims=True)
    centres = np.arange(-6, 7) + 0.5
    true = (np.arange(PHASES) + 0.5) / PHASES
    assert np.abs((stamps.sum(3) * centres).sum(2) - true[:, None]).max() < 0.05
    assert np.abs((stamps.sum(2) * centres).sum(2) - true[None, :]).max() < 0.05


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
    np.testing.assert_allclose(stamps, stamps[::-1, :, ::-1], atol=1e-7)
    np.testing.assert_allclose(stamps, stamps.transpose(1, 0, 3, 2), atol=1e-7)


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
