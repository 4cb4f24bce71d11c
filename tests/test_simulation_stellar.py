"""Stellar parameters are those of known stars and motions those of known populations, whoever asks for them."""

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import CartesianDifferential, Galactic, Galactocentric, SkyCoord

from csst_dask.simulation.population import POPULATIONS
from csst_dask.simulation.stellar import colour_temperature, motions, stellar_parameters

NAMES = [p.name for p in POPULATIONS]
N = 4000
IDS = (np.arange(N, dtype=np.uint64) << np.uint64(32)) + np.uint64(3)


def parameters(m_v, g_minus_r, population="thin disc", ids=None, seed=1):
    m_v = np.atleast_1d(np.asarray(m_v, float))
    m_g = m_v + 0.5784 * np.asarray(g_minus_r) + 0.0038
    kinds = np.full(m_v.size, NAMES.index(population), np.uint8)
    return stellar_parameters(m_v, kinds, m_g, IDS[: m_v.size] if ids is None else ids, seed)


def test_the_sun_and_a_red_dwarf():
    sun = parameters(4.81, 0.44)
    assert sun["teff"][0] == pytest.approx(5772, abs=30)
    assert sun["logg"][0] == pytest.approx(4.44, abs=0.03)
    assert sun["stellarmass"][0] == pytest.approx(1.0, abs=0.01)
    dwarf = parameters(15.5, 1.45)  # Proxima Centauri: 2900 K, 0.12 solar masses, log g 5.2 (Mann et al. 2015)
    assert dwarf["teff"][0] == pytest.approx(2900, abs=80)
    assert dwarf["stellarmass"][0] == pytest.approx(0.12, abs=0.01)
    assert dwarf["logg"][0] == pytest.approx(5.16, abs=0.1)


def test_a_giant_is_told_by_its_colour():
    # Arcturus: M_V -0.3, g-r about 0.95, 4290 K, log g 1.7 (Ramirez & Allende Prieto 2011, ApJ 743, 135)
    giant, hot = parameters(-0.3, 0.97, "thick disc"), parameters(-0.3, -0.35)
    assert giant["teff"][0] == pytest.approx(4290, rel=0.08)
    assert giant["logg"][0] == pytest.approx(1.7, abs=0.3)
    assert hot["teff"][0] > 11_000
    assert hot["logg"][0] == pytest.approx(4.0, abs=0.3)
    old = parameters(np.linspace(-2, 12, 300), 0.4, "halo")
    assert old["stellarmass"].max() <= 0.8


def test_the_main_sequence_is_smooth_and_heads_downward():
    m_v = np.linspace(-5, 19.5, 500)
    found = parameters(m_v, -0.3)  # bluer than any giant
    for name in ("teff", "stellarmass"):
        assert (np.diff(found[name]) < 0).all()
    assert ((found["logg"] > 3.5) & (found["logg"] < 5.6)).all()
    beyond = parameters([-30.0, 40.0], 0.0)
    assert np.isfinite([*beyond.values()]).all()


def test_colour_temperatures():
    gr = np.linspace(-0.5, 1.4, 300)
    assert (np.diff(colour_temperature(gr)) < 0).all()
    assert colour_temperature(np.array([0.44]))[0] == pytest.approx(5700, abs=60)


@pytest.mark.parametrize("name", NAMES)
def test_metallicities_scatter_about_the_population(name):
    feh = parameters(np.full(N, 5.0), 0.5, name)["feh"]
    assert feh.mean() == pytest.approx(POPULATIONS[NAMES.index(name)].feh, abs=5 * 0.4 / np.sqrt(N))
    assert 0.04 < feh.std() < 0.45


def moved(population="thin disc", modulus=5.0, ra=None, dec=None, ids=IDS, seed=1):
    n = len(ids)
    ra = np.random.default_rng(0).uniform(0, 360, n) if ra is None else np.full(n, ra)
    dec = np.rad2deg(np.arcsin(np.random.default_rng(1).uniform(-1, 1, n))) if dec is None else np.full(n, dec)
    kinds = np.full(n, NAMES.index(population), np.uint8)
    return ra, dec, motions(ra, dec, np.full(n, float(modulus)), kinds, ids, seed)


def velocities(ra, dec, found):
    """(n, 3) U, V, W against the Sun, km/s, by astropy."""
    place = SkyCoord(
        ra * units.deg,
        dec * units.deg,
        distance=1 / found["parallax"] * units.kpc,
        pm_ra_cosdec=found["pm_ra"] * units.mas / units.yr,
        pm_dec=found["pm_dec"] * units.mas / units.yr,
        radial_velocity=found["RV"] * units.km / units.s,
    )
    return place.transform_to(Galactic()).velocity.d_xyz.to_value(units.km / units.s).T


@pytest.mark.parametrize(
    ("name", "sigma", "lag"),
    [("thin disc", (35, 20, 16), 15), ("thick disc", (67, 38, 35), 46), ("halo", (160, 90, 90), 220)],
)
def test_near_the_sun_the_populations_move_as_they_should(name, sigma, lag):
    ra, dec, found = moved(name)
    np.testing.assert_allclose(found["parallax"], 10.0, rtol=1e-9)  # 100 pc
    uvw = velocities(ra, dec, found)
    sigma = np.array(sigma)
    np.testing.assert_allclose(uvw.std(axis=0), sigma, rtol=5 / np.sqrt(2 * N))
    expected = np.array([-11.1, -12.24 - lag, -7.25])
    assert (np.abs(uvw.mean(axis=0) - expected) < 5 * sigma / np.sqrt(N) + 1.0).all()


def test_far_away_the_disc_turns_about_the_centre():
    """Stars beyond the centre come back the other way; astropy's Galactocentric frame says so."""
    ids = IDS[:500]
    frame = Galactocentric(
        galcen_distance=8.0 * units.kpc,
        z_sun=0 * units.pc,
        galcen_v_sun=CartesianDifferential([11.1, 232.24, 7.25] * units.km / units.s),
    )
    for ra, dec in ((266.405, -28.936), (300.0, 30.0), (140.0, -50.0)):
        _, _, found = moved(modulus=5 * np.log10(12_000) - 5, ra=ra, dec=dec, ids=ids)
        star = SkyCoord(
            ra * units.deg,
            dec * units.deg,
            distance=12 * units.kpc,
            pm_ra_cosdec=found["pm_ra"].mean() * units.mas / units.yr,
            pm_dec=found["pm_dec"].mean() * units.mas / units.yr,
            radial_velocity=found["RV"].mean() * units.km / units.s,
        ).transform_to(frame)
        place, speed = star.cartesian.xyz.to_value(units.kpc), star.velocity.d_xyz.to_value(units.km / units.s)
        turn = np.array([place[1], -place[0]]) / np.hypot(*place[:2])
        assert speed[:2] @ turn == pytest.approx(205, abs=6)
        assert speed[:2] @ place[:2] / np.hypot(*place[:2]) == pytest.approx(0, abs=8)


def test_members_of_a_distant_system_move_together():
    for name in ("dwarf galaxy", "cluster", "thin disc"):  # the Magellanic Clouds' stars are the disc's kind
        _, _, found = moved(name, 18.5, 80.9, -69.8)
        assert found["RV"].std() < 12
        assert np.hypot(found["pm_ra"].std(), found["pm_dec"].std()) < 0.1
        assert np.isfinite([*found.values()]).all()


def test_a_star_is_the_same_in_every_exposure():
    order = np.random.default_rng(2).permutation(N)[:100]
    ra, dec, all_of_them = moved("halo", 12.0)
    kinds = np.full(100, NAMES.index("halo"), np.uint8)
    some = motions(ra[order], dec[order], np.full(100, 12.0), kinds, IDS[order], 1)
    for name, values in some.items():
        np.testing.assert_allclose(values, all_of_them[name][order], rtol=1e-9, atol=1e-9)
    alone = parameters(np.full(100, 5.0), 0.5, ids=IDS[order])["feh"]
    np.testing.assert_array_equal(alone, parameters(np.full(N, 5.0), 0.5)["feh"][order])
    assert not np.allclose(moved("halo", 12.0, seed=2)[2]["RV"], all_of_them["RV"], atol=1)
