import math

import pytest
from astropy.io import fits

from csst_dask.io import headers


def test_times():
    assert headers.read_exptime(fits.Header(), fits.Header([("EXPTIME", 150)])) == 150.0
    assert math.isnan(headers.read_exptime(fits.Header([("EXPTIME", -9999)]), fits.Header()))
    assert headers.read_mjd(fits.Header([("EXPSTART", 61000.5)])) == 61000.5
    for cards in (
        [("DATE-OBS", "2000-01-01T12:00:00")],
        [("DATE-OBS", "2000-01-01"), ("TIME-OBS", "12:00:00.0")],
        [("DATE-OBS", "2000-01-01T12:00:00Z"), ("EXPSTART", -9999)],
    ):
        assert headers.read_mjd(fits.Header(), fits.Header(cards)) == 51544.5  # J2000.0
    assert math.isnan(headers.read_mjd(fits.Header([("DATE-OBS", "?")])))


NUMBERS = [
    (headers.read_exptime, {"EXPTIME": 150.0}, {"EXPTIME": 300.0}),
    (headers.read_mjd, {"EXPSTART": 61000.5}, {"EXPSTART": 61001.5}),
    (headers.read_pointing, {"RA_PNT0": 10.0, "DEC_PNT0": -20.0}, {"RA_PNT0": 30.0, "DEC_PNT0": 40.0}),
]


@pytest.mark.parametrize(("read", "cards", "others"), NUMBERS)
def test_numbers_of_the_exposure_stand_in_the_primary_header(read, cards, others):
    """Where both headers hold a number the primary one counts, and the image's serves where that has none."""
    one, other, nothing = (fits.Header(list(some.items())) for some in (cards, others, {}))
    assert read(one, nothing) == read(nothing, one) == read(one, None)
    assert read(one, nothing) != read(other, nothing)
    assert read(one, other) == read(nothing, other)
    for useless in (headers.FILL, "N/A", True):
        assert read(one, fits.Header([(name, useless) for name in cards])) == read(one, nothing)


def test_band_comes_from_filter_then_label_then_detector():
    filters = fits.Header([("FILTER", "N"), ("CCDLABEL", "z-1")])
    assert headers.read_band(filters, None, 12) == ("NUV", "")
    assert headers.read_band(fits.Header([("FILTER", "?"), ("CCDLABEL", "z-1")]), None, 11) == ("z", "")
    assert headers.read_band(fits.Header(), fits.Header(), 11) == ("z", "")
    band, note = headers.read_band(fits.Header([("FILTER", "y")]), None, 8)
    assert band == "y"
    assert "usually sees g" in note


def test_one_exposure_is_one_field():
    primary = fits.Header([("RA_OBJ", 90.0), ("DEC_OBJ", -66.56)])
    here = {headers.read_field(fits.Header(), primary, ra, -66.0) for ra in (80.0, 90.0, 100.0)}
    assert len(here) == 1
    assert headers.read_field(fits.Header(), None, 90.0, -66.56) in here
    assert headers.read_field(fits.Header(), None, 270.0, 66.56) not in here
    assert headers.read_field(fits.Header([("FIELD", "W1")]), primary, 0, 0) == "W1"
    # NESTED cell 0 has its southern corner on the equator at 45 deg.
    assert headers.read_field(fits.Header(), None, 45.0, 0.5) == "nside8-0"


def test_cards_are_kept_whole():
    primary, image = fits.Header([("OBSID", "1")]), fits.Header([("FILTER", "g", "band")])
    text = headers.card_bytes(image, primary).tobytes()
    assert len(text) == 3 * 80
    cards = [text[i : i + 80].decode() for i in range(0, len(text), 80)]
    assert [card.split()[0] for card in cards] == ["OBSID", "FILTER", "END"]
    assert headers.card_bytes(image, image).tobytes() == text[80:]


@pytest.mark.parametrize(
    ("cards", "key"),
    [
        ({"OBSID": "100000100", "DETECTOR": "CCD-MSC-08"}, ("100000100", 8)),
        ({"OBSID": 100000100, "CHIPLAB": "24"}, ("100000100", 24)),
        ({"OBSID": "100000100", "CCDCHIP": 8}, ("100000100", 8)),
        ({"OBSID": "100000100"}, None),
        ({"DETECTOR": "08"}, None),
        ({"OBSID": "N/A", "DETECTOR": "08"}, None),
    ],
)
def test_keys_from_headers(cards, key):
    for parts in (
        (fits.Header(), fits.Header(list(cards.items()))),
        (fits.Header(list(cards.items())), None),
    ):
        assert headers.key_parts(*parts) == key
