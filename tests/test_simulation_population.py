"""Luminosity functions and colours: tables that can be inverted, and stars that look like those we know."""

from itertools import pairwise

import numpy as np
import pytest

from csst_dask.schema import BANDS
from csst_dask.simulation.population import COLUMNS, EXTINCTION, POPULATIONS, SCATTER, luminosity_table

NAMES = [p.name for p in POPULATIONS]
G, R, I, V = (COLUMNS.index(name) for name in ("g", "r", "i", "V"))


def colour(table, m_v, bluest=-9.0, reddest=9.0, bands=(G, R)):
    """Mean colour of the stars near an absolute V magnitude, of those with g-r in a range."""
    m, weight = table.magnitudes, np.diff(table.cumulative)
    gr = m[:, G] - m[:, R]
    some = (np.abs(m[:, V] - m_v) < 0.03) & (gr > bluest) & (gr < reddest)
    return np.average((m[:, bands[0]] - m[:, bands[1]])[some], weights=weight[some])


@pytest.mark.parametrize("index", range(len(POPULATIONS)), ids=NAMES)
@pytest.mark.parametrize("tilt", [-0.04, 0.0, 0.04])
def test_tables_run_from_the_most_luminous_to_the_faintest(index, tilt):
    table = luminosity_table(index, tilt)
    n = len(table.magnitudes)
    assert table.magnitudes.shape == (n, len(COLUMNS))
    assert table.cumulative.shape == table.edges.shape == (n + 1,)
    assert (table.cumulative[0], table.cumulative[-1]) == (0, pytest.approx(1))
    assert (np.diff(table.cumulative) > 0).all()
    assert (np.diff(table.edges) > 0).all()
    g = table.magnitudes[:, G]
    assert ((table.edges[:-1] <= g) & (g <= table.edges[1:])).all()
    assert np.isfinite(table.magnitudes).all()


@pytest.mark.parametrize("index", range(len(POPULATIONS)), ids=NAMES)
def test_light_and_number_agree(index):
    table = luminosity_table(index)
    flux = 10 ** (-0.4 * table.magnitudes[:, V])
    assert table.light == pytest.approx(-2.5 * np.log10(np.average(flux, weights=np.diff(table.cumulative))))
    # from the Sun's neighbourhood: about a star per 11 pc3, of which metal-poor populations lack the faintest
    assert 0.03 < table.density < 0.1


def test_the_sun_is_yellow_and_m_dwarfs_are_red():
    disc = luminosity_table(NAMES.index("thin disc"))
    assert colour(disc, 4.83) == pytest.approx(0.44, abs=0.08)
    assert colour(disc, 4.83, bands=(R, I)) == pytest.approx(0.12, abs=0.05)
    for m_v in (10.0, 12.0, 14.0):
        assert colour(disc, m_v) == pytest.approx(1.4, abs=0.06)
    assert colour(disc, 13.0, bands=(R, I)) > 1.2  # M4
    assert colour(disc, 0.65, reddest=0.2) < 0.0  # Vega
    assert 0.6 < colour(disc, 0.6, bluest=0.2) < 0.9  # the red clump


@pytest.mark.parametrize("index", range(len(POPULATIONS)), ids=NAMES)
def test_fainter_dwarfs_are_redder_in_every_colour(index):
    m = luminosity_table(index).magnitudes
    dwarfs = m[(m[:, V] > 4.4) & (m[:, V] < 16)]
    dwarfs = dwarfs[np.argsort(dwarfs[:, V])]
    for blue, red in pairwise(BANDS):
        colours = dwarfs[:, COLUMNS.index(blue)] - dwarfs[:, COLUMNS.index(red)]
        assert (np.diff(colours) > -1e-6).all(), (blue, red)
        assert colours[0] < colours[-1]


def test_metal_poor_giants_are_bluer_and_brighter_in_the_ultraviolet():
    halo, bulge = (luminosity_table(NAMES.index(name)) for name in ("halo", "bulge"))
    assert colour(halo, -1.0, bluest=0.5) < colour(bulge, -1.0, bluest=0.5) - 0.1
    u = COLUMNS.index("u")
    assert colour(halo, 6.0, bands=(u, G)) < colour(bulge, 6.0, bands=(u, G)) - 0.1


def test_old_populations_have_no_bright_main_sequence():
    for name, population in zip(NAMES, POPULATIONS, strict=True):
        m = luminosity_table(NAMES.index(name)).magnitudes
        blue = m[m[:, G] - m[:, R] < 0.2]
        assert (blue[:, V] > 3.5).all() == population.old, name


def test_giants_are_fewer_than_dwarfs_and_a_clump_stands_out():
    bulge = luminosity_table(NAMES.index("bulge"))
    number, edges = np.histogram(bulge.magnitudes[:, V], np.arange(-4, 20), weights=np.diff(bulge.cumulative))
    at = dict(zip(edges[:-1].astype(int), number, strict=True))
    assert at[0] > 1.5 * np.sqrt(at[-1] * at[1])  # 0 to 1 holds the clump
    assert at[2] < 0.2 * at[5]


def test_a_tilt_turns_the_luminosity_function_about_magnitude_5():
    for index in range(len(POPULATIONS)):
        flat, steep = luminosity_table(index), luminosity_table(index, 0.03)
        ratio = np.diff(steep.cumulative) * steep.density / (np.diff(flat.cumulative) * flat.density)
        np.testing.assert_allclose(ratio, 10 ** (0.03 * (flat.magnitudes[:, V] - 5)), rtol=1e-6)
        assert steep.density > flat.density
        assert steep.light > flat.light


def test_dust_and_scatter_redden():
    assert (np.diff([EXTINCTION[band] for band in BANDS]) < 0).all()
    assert EXTINCTION["g"] > EXTINCTION["V"] == 1 > EXTINCTION["r"]
    assert (np.diff(SCATTER[: len(BANDS)]) < 0).all()
    assert SCATTER[G] == 0  # the catalogue's limit is in g
