"""Dwarf galaxies and clusters: shares that add up to one, radii as the sky has them, and places that are right."""

import dataclasses

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord

from csst_dask.simulation.population import POPULATIONS
from csst_dask.simulation.systems import CLUSTERS, DWARFS, System, elliptical_radius, surface_density

SYSTEM = System("it", 359.95, -40.0, 18.0, -10.0, 12.0, 4, axis_ratio=0.6, position_angle=35.0)


@pytest.mark.parametrize("profile", ["plummer", "exponential"])
@pytest.mark.parametrize("axis_ratio", [1.0, 0.5])
def test_all_stars_are_somewhere_and_half_within_the_half_light_radius(profile, axis_ratio):
    system = dataclasses.replace(SYSTEM, profile=profile, axis_ratio=axis_ratio)
    half = system.radius / 60
    radius = np.linspace(0, 60 * half, 300_001)
    # an ellipse of major axis r covers pi q r^2
    rings = surface_density(system, radius) * 2 * np.pi * axis_ratio * radius * radius[1]
    assert rings.sum() == pytest.approx(1, abs=1e-3)
    assert rings[radius < half].sum() == pytest.approx(0.5, abs=1e-3)
    assert (np.diff(surface_density(system, radius)) < 0).all()


@pytest.mark.parametrize(("ra", "dec"), [(359.95, -40.0), (10.0, 0.0), (123.0, 89.7), (200.0, -90.0)])
def test_elliptical_radii_follow_separation_and_position_angle(ra, dec):
    system = dataclasses.replace(SYSTEM, ra=ra, dec=dec)
    centre = SkyCoord(ra, dec, unit="deg")
    rng = np.random.default_rng(2)
    distance, angle = rng.uniform(0.001, 0.5, 40), rng.uniform(0, 360, 40)
    places = centre.directional_offset_by(angle * u.deg, distance * u.deg)
    turn = np.deg2rad(angle - 35.0)
    expected = distance * np.hypot(np.cos(turn), np.sin(turn) / 0.6)
    np.testing.assert_allclose(elliptical_radius(system, places.ra.deg, places.dec.deg), expected, rtol=1e-6)
    assert elliptical_radius(system, np.array([ra]), np.array([dec]))[0] == pytest.approx(0, abs=1e-6)


def test_the_systems_are_those_of_the_sky():
    systems = DWARFS + CLUSTERS
    assert len({s.name for s in systems}) == len(systems)
    at = {s.name: s for s in systems}
    # SIMBAD
    for name, place in {
        "Fornax": "02h39m59s -34d26m57s", "LMC": "05h23m34.6s -69d45m22s", "SMC": "00h52m38s -72d48m01s",
        "Sculptor": "01h00m09.3s -33d42m33s", "NGC 104": "00h24m05.4s -72d04m53s", "NGC 7078": "21h29m58.3s +12d10m01s",
    }.items():  # fmt: skip
        where = SkyCoord(place)
        assert where.separation(SkyCoord(at[name].ra, at[name].dec, unit="deg")).arcmin < 6
    for system in systems:
        assert 0 <= system.population < len(POPULATIONS)
        assert 0.3 < system.axis_ratio <= 1
        assert -20 < system.absolute < -5
        assert 10 < system.modulus < 22
