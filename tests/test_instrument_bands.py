import math
from itertools import pairwise

import pytest

from csst_dask.errors import ChipRejected
from csst_dask.instrument import BAND_TABLE, normalise_band
from csst_dask.schema import BANDS

PLANCK = 6.62607015e-27  # erg s
AB_FLUX = 3.631e-20  # erg / s / cm2 / Hz at magnitude 0
AREA = math.pi * 1e4  # cm2, a 2 m aperture


def test_the_table_holds_the_bands_of_the_schema_in_order():
    assert tuple(BAND_TABLE) == BANDS
    assert all(band.name == name for name, band in BAND_TABLE.items())


@pytest.mark.parametrize("name", BANDS)
def test_zero_points_follow_from_efficiency_and_aperture(name):
    band = BAND_TABLE[name]
    rate = AB_FLUX / PLANCK * AREA * band.efficiency * band.width / band.wavelength
    assert 2.5 * math.log10(rate) == pytest.approx(band.zero_point, abs=0.05)


def test_bands_run_from_blue_to_red_and_can_see_between_their_limits():
    bands = list(BAND_TABLE.values())
    assert all(a.wavelength < b.wavelength for a, b in pairwise(bands))
    assert all(band.saturation_mag < band.limit_mag for band in bands)


@pytest.mark.parametrize("name", BANDS)
def test_every_spelling_of_a_band_is_understood(name):
    for text in (name, name.lower(), name.upper(), f" {name} ", f"{name}-1", f"{name}_2"):
        assert normalise_band(text) == name
    assert normalise_band(normalise_band(name)) == name


def test_n_is_nuv():
    assert {normalise_band(text) for text in ("N", "n", "NUV", "nuv", "N-3")} == {"NUV"}


@pytest.mark.parametrize("text", ["", "?", "N/A", "GI", "GV", "GU", "clear", "1", "ug"])
def test_what_is_no_imaging_band_is_refused_by_name(text):
    with pytest.raises(ChipRejected, match="expected one of NUV, u, g") as caught:
        normalise_band(text)
    assert repr(text) in str(caught.value)
