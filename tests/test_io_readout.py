"""Raw frames: strips and frame are two faces of one array, and counts come back as the electrons they were."""

import gzip
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from csst_dask.errors import ChipRejected
from csst_dask.instrument import detector_wcs
from csst_dask.io import open_pixels, parse_name, read_detector
from csst_dask.io.readout import (
    OVERSCAN,
    OVERSCAN_ROWS,
    PRESCAN,
    assemble,
    frame_of,
    readout_shape,
    split,
    strip_bias,
    strip_place,
)
from csst_dask.schema import FRAME_SHAPE, ChipFiles, ChipKey

FRAME = (92, 96)
KEY = ChipKey("10600000012", 14, 1)
POINTING = (90.0, -66.5607, 180.0)
STEM = "CSST_MSC_MS_WIDE_20270101000000_20270101000230_10600000012_14_L0_V01"
GAIN, EXPTIME = 1.25, 150.0
NOISE = 4.5
"""Of the read-out, ADU."""


def write(path, data, primary=None, **cards):
    image = fits.ImageHDU(data)
    image.header.update(detector_wcs(14, *POINTING).to_header())
    image.header.update({"FILTER": "u", "BUNIT": "ADU", "GAIN1": GAIN} | cards)
    for word in [word for word, value in image.header.items() if value == "drop"]:
        del image.header[word]
    head = fits.PrimaryHDU()
    head.header.update({"OBSID": KEY.obs_id, "EXPTIME": EXPTIME} if primary is None else primary)
    fits.HDUList([head, image]).writeto(path, overwrite=True)
    name = parse_name(str(path))
    return ChipFiles(KEY, str(path), level=name.level if name else None)


def counts(shape=FRAME, seed=0):
    return np.random.default_rng(seed).integers(300, 60_000, shape).astype(np.uint16)


def rows_of(source, step, ny=FRAME[0]):
    return np.vstack([source.read_rows(y, min(y + step, ny)).copy() for y in range(0, ny, step)])


def test_the_layout_of_the_survey():
    assert readout_shape(FRAME_SHAPE) == (4700, 20000)
    assert frame_of((4700, 20000)) == FRAME_SHAPE
    # 0-3 lower left as they are, 4-7 lower right mirrored, 8-11 upper right and 12-15 upper left, both from the right
    places = [strip_place(strip) for strip in range(16)]
    assert [place[1] for place in places] == [0, 1, 2, 3, 4, 5, 6, 7, 7, 6, 5, 4, 3, 2, 1, 0]
    assert [place[0] for place in places] == [False] * 8 + [True] * 8
    assert [place[2] for place in places] == [1] * 4 + [-1] * 8 + [1] * 4


def test_every_strip_begins_at_its_outer_corner():
    """The first pixel that is read is the frame's outer one, and prescan would lie beyond the strip's outer side."""
    ny, nx = FRAME
    frame = np.arange(ny * nx, dtype=np.uint32).reshape(FRAME)
    strips, width = split(frame, 7), nx // 8
    for number, strip in enumerate(np.split(strips, 16, axis=1)):
        upper, column, step = strip_place(number)
        y, x = (ny - 1) * upper, column * width + (width - 1) * (step < 0)
        assert strip[0, PRESCAN] == frame[y, x]
        assert strip[1, PRESCAN] == frame[y + (-1 if upper else 1), x]
        assert strip[0, PRESCAN + 1] == frame[y, x + step]
    assert np.count_nonzero(strips == 7) >= strips.size - frame.size


@settings(max_examples=30, deadline=None)
@given(half=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_assembling_undoes_splitting(half, width, seed):
    frame = counts((2 * half, 8 * width), seed)
    strips = split(frame, np.arange(16))
    assert strips.shape == readout_shape(frame.shape)
    np.testing.assert_array_equal(assemble(strips), frame)
    for number, strip in enumerate(np.split(strips, 16, axis=1)):
        assert (strip[:, :PRESCAN] == number).all()
        assert (strip[:, -OVERSCAN:] == number).all()
        assert (strip[-OVERSCAN_ROWS:] == number).all()


@pytest.mark.parametrize("shape", [(4700, 20001), (4701, 19999), (84, 1584), (10, 1600), (94, 1568)])
def test_other_shapes_are_no_readout(shape):
    with pytest.raises(ValueError, match="no read-out of 16 strips"):
        frame_of(shape)
    with pytest.raises(ValueError, match="cannot be cut"):
        readout_shape((93, 96))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("ending", [".fits", ".fits.gz"])
def test_plain_counts_become_electrons_per_second(tmp_path, named, ending):
    adu = counts()
    adu[5, 6] = adu[90, 0] = 65535
    path = tmp_path / f"{STEM if named else 'x'}{ending}"
    files = write(path, adu, BIAS=480.0, DARK=0.02)
    with read_detector(files, FRAME) as chip:
        expected = (adu - 480.0) * GAIN / EXPTIME - 0.02
        for step in (92, 7, 1):
            np.testing.assert_allclose(rows_of(chip.image, step), expected, rtol=1e-6, atol=1e-5)
            np.testing.assert_array_equal(rows_of(chip.flag, step), 8 * (adu == 65535))
        assert chip.image.read_rows(0, 3).dtype == np.float32
        assert chip.notes == ["no flags: only saturated pixels are masked"]
        assert chip.shape == FRAME


def test_image_and_flags_may_be_read_apart_and_two_results_stay_good(tmp_path):
    adu = counts()
    with read_detector(write(tmp_path / f"{STEM}.fits", adu, BIAS=0.0), FRAME) as chip:
        first = chip.image.read_rows(0, 30)
        chip.flag.read_rows(50, 60)
        second = chip.image.read_rows(30, 60)
        np.testing.assert_allclose(first, adu[:30] * GAIN / EXPTIME, rtol=1e-6)
        np.testing.assert_allclose(second, adu[30:60] * GAIN / EXPTIME, rtol=1e-6)


def test_a_plain_frame_without_bias_is_noted(tmp_path):
    with read_detector(write(tmp_path / f"{STEM}.fits", counts()), FRAME) as chip:
        assert chip.notes[0] == "raw counts without a BIAS card: the bias level stays in"
        np.testing.assert_allclose(chip.image.read_rows(0, 92), counts() * GAIN / EXPTIME, rtol=1e-6)


@pytest.mark.parametrize("ending", [".fits", ".fits.gz"])
def test_strips_are_assembled_with_bias_and_gain_of_their_own(tmp_path, ending):
    bias, gains = 500 + 13 * np.arange(16), np.round(1.1 + 0.01 * np.arange(16), 3)
    adu = counts()
    adu[3, 95] = adu[70, 20] = 65535
    path = tmp_path / f"{STEM}{ending}"
    files = write(path, split(adu, bias), **{f"GAIN{k + 1}": gains[k] for k in range(16)})
    offset, factor = np.empty(FRAME), np.empty(FRAME)
    for strip in range(16):
        upper, column, _ = strip_place(strip)
        part = np.s_[46 * upper : 46 * (upper + 1), 12 * column : 12 * (column + 1)]
        offset[part], factor[part] = bias[strip], gains[strip]
    with read_detector(files, FRAME) as chip:
        assert chip.shape == chip.image.shape == chip.flag.shape == FRAME
        for step in (92, 46, 7, 1):  # blocks that end at the middle, and that straddle it
            np.testing.assert_allclose(
                rows_of(chip.image, step), (adu - offset) * factor / EXPTIME, rtol=1e-6, atol=1e-4
            )
            np.testing.assert_array_equal(rows_of(chip.flag, step), 8 * (adu == 65535))
        # the header's astrometry is that of the assembled frame
        expected = detector_wcs(14, *POINTING).all_pix2world(48.5, 46.5, 1)
        np.testing.assert_allclose((chip.ra, chip.dec), expected, atol=1e-9)
        assert chip.info().exptime == EXPTIME


def test_the_bias_is_found_in_noise_and_in_spite_of_charge_that_spills_over(tmp_path):
    rng, level = np.random.default_rng(3), 500 + np.arange(16.0)
    strips = split(counts((400, 96)), level).astype(float)
    for number, strip in enumerate(np.split(strips, 16, axis=1)):
        over = strip[:, -OVERSCAN:]
        over += 4.5 * rng.standard_normal(over.shape)
        over[:, :3] += 300  # deferred charge
        over[rng.random(over.shape) < 0.02] = 65535
        if number == 3:
            over[10:14] = 65535  # bled rows
    path = tmp_path / "x.fits"
    fits.PrimaryHDU(np.clip(strips + 0.5, 0, 65535).astype(np.uint16)).writeto(path)
    with open_pixels(path) as source:
        found = strip_bias(source)
    # 128 rows of 63 columns: the mean's own scatter is 0.05 ADU
    np.testing.assert_allclose(found, level, atol=0.3)


@pytest.fixture
def overscan(tmp_path):
    """Bias of the strips of a noisy frame whose overscan (rows, strip, column) a function may change."""

    def bias(change=lambda over: None):
        strips = split(counts((400, 96)), 500 + np.arange(16)).astype(float)
        over = strips.reshape(len(strips), 16, -1)[:, :, -OVERSCAN:]
        over += NOISE * np.random.default_rng(3).standard_normal(over.shape)
        change(over)
        path = tmp_path / "x.fits"
        fits.PrimaryHDU(np.rint(strips).astype(np.uint16)).writeto(path, overwrite=True)
        with open_pixels(path) as source:
            return strip_bias(source)

    return bias


def test_the_bias_does_not_depend_on_how_bright_outliers_are(overscan):
    """A tenth of the overscan is hit by cosmic rays: by 5 or 40 sigma or up to the limit, the bias is the same."""
    hit = np.random.default_rng(4).random((200 + OVERSCAN_ROWS, 16, OVERSCAN)) < 0.1

    def rays(height):
        def change(over):
            over[hit] = min(520 + height, 65535)

        return change

    found = [overscan(rays(height)) for height in (5 * NOISE, 40 * NOISE, 65535)]
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])
    np.testing.assert_allclose(found[0], overscan(), atol=0.3)


def test_charge_that_was_left_behind_does_not_move_the_bias(overscan):
    """Too faint to be an outlier, deferred charge is kept out by its place: the first 8 columns of the overscan."""

    def deferred(columns):
        def change(over):
            over[:, :, :columns] += 1.5 * NOISE

        return change

    np.testing.assert_array_equal(overscan(deferred(8)), overscan())
    assert (overscan(deferred(9)) > overscan() + 0.03).all()


def test_a_flag_file_adds_to_the_saturated_pixels(tmp_path):
    adu = counts()
    adu[4, 4] = 65535
    flags = np.zeros(FRAME, np.uint16)
    flags[4, 4], flags[8, 9] = 1, 16
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(flags)]).writeto(tmp_path / "f.fits")
    files = replace(write(tmp_path / f"{STEM}.fits", adu, BIAS=500.0), flag=str(tmp_path / "f.fits"))
    with read_detector(files, FRAME) as chip:
        bits = chip.flag.read_rows(0, 92)
        assert chip.notes == []
    assert (bits[4, 4], bits[8, 9], np.count_nonzero(bits)) == (9, 16, 2)


@pytest.mark.parametrize(
    ("name", "data", "cards", "reason"),
    [
        (STEM, counts().astype("f4"), {}, "holds float32 in ADU, expected uint16 in ADU for level 0"),
        (STEM, counts(), {"BUNIT": "e-/s"}, "holds uint16 in E-/S, expected uint16 in ADU for level 0"),
        (STEM, (counts() // 2).astype("i2"), {}, "holds int16 in ADU, expected uint16"),
        (STEM.replace("L0", "L1") + "_img", counts(), {}, "holds uint16 in ADU, but its name says level 1"),
        (STEM.replace("L0", "L1") + "_img", split(counts()), {}, "but its name says level 1"),
        ("x", split(counts().astype("f4")), {}, "expected uint16 in ADU for a read-out frame"),
        (STEM, counts(), {"GAIN1": "drop"}, "without a gain: GAIN1 is None"),
        (STEM, counts(), {"GAIN1": -9999}, "without a gain"),
        (STEM, split(counts()), {"GAIN1": 0.0}, "GAIN1 is 0.0"),
        (STEM, counts(), {"primary": {}}, "without an exposure time; add EXPTIME"),
        (STEM, counts((96, 92)), {}, "image of 96 x 92 pixels .y, x., expected 92 x 96"),
        (STEM, split(counts((92, 104))), {}, "expected 92 x 96"),
    ],
)
def test_what_is_ambiguous_is_refused(tmp_path, name, data, cards, reason):
    with pytest.raises(ChipRejected, match=reason):
        read_detector(write(tmp_path / f"{name}.fits", data, **cards), FRAME)


def test_the_level_is_that_of_the_record_not_of_the_file_name(tmp_path):
    """A hand-made record says nothing of levels, so that the header decides whatever the file is called."""
    rate = counts().astype("f4")
    raw = write(tmp_path / f"{STEM}.fits", rate, BUNIT="e-/s")
    assert raw.level == 0
    with pytest.raises(ChipRejected, match="for level 0"):
        read_detector(raw, FRAME)
    with read_detector(replace(raw, level=None), FRAME) as chip:
        np.testing.assert_array_equal(chip.image.read_rows(0, 92), rate)


def test_whole_numbers_without_a_unit(tmp_path):
    # of another camera they are taken as they stand; of ours they could be either
    files = write(tmp_path / "x.fits", counts(), BUNIT="drop", GAIN1="drop")
    with read_detector(files, FRAME) as chip:
        np.testing.assert_array_equal(chip.image.read_rows(0, 92), counts())
    header = fits.Header([("SIMPLE", True), ("BITPIX", 16), ("NAXIS", 2), ("NAXIS1", 9216), ("NAXIS2", 9232)])
    header["BZERO"] = 32768
    path = tmp_path / "y.fits"
    path.write_bytes(header.tostring().encode())
    os.truncate(path, 2880 + 2 * 9216 * 9232)
    with pytest.raises(ChipRejected, match="cannot be told from calibrated pixels; add BUNIT"):
        read_detector(ChipFiles(KEY, str(path)))


def test_strip_files_cut_short_are_refused(tmp_path):
    files = write(tmp_path / f"{STEM}.fits", split(counts()))
    whole = Path(files.image).read_bytes()
    os.truncate(files.image, len(whole) // 2)
    with pytest.raises(ChipRejected, match="truncated: found"):
        read_detector(files, FRAME)
    packed = tmp_path / f"{STEM}.fits.gz"
    squeezed = gzip.compress(whole)
    packed.write_bytes(squeezed[: len(squeezed) // 2])
    with pytest.raises(ChipRejected), read_detector(ChipFiles(KEY, str(packed)), FRAME) as chip:
        chip.image.read_rows(0, 5)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    files = write(tmp_path / f"{STEM}.fits", split(counts()))
    with read_detector(files, FRAME) as chip:
        chip.image.read_rows(0, 10)
        os.truncate(files.image, 20_000)
        with pytest.raises(ChipRejected, match="ends at byte"):
            chip.image.read_rows(60, 80)


@pytest.mark.parametrize("box", [(0, 92, 0, 96), (3, 40, 5, 6), (91, 92, 90, 96)])
@pytest.mark.parametrize(("dtype", "ending"), [("u2", ".fits"), ("f4", ".fits"), ("f8", ".fits.gz")])
def test_parts_of_rows(tmp_path, box, dtype, ending):
    data, (y0, y1, x0, x1) = counts().astype(dtype), box
    fits.PrimaryHDU(data).writeto(tmp_path / f"x{ending}")
    with open_pixels(tmp_path / f"x{ending}") as source:
        np.testing.assert_array_equal(source.read_part(y0, y1, x0, x1), data[y0:y1, x0:x1])
        for wrong in ((y0, y1, 5, 97), (y0, y1, 5, 5), (90, 93, x0, x1)):
            with pytest.raises(ValueError, match="expected 0 <= "):
                source.read_part(*wrong)


@pytest.mark.full_size
def test_a_readout_frame_of_the_survey(tmp_path):
    """Straight lines in y and x come out straight, from a 4700 x 20000 file, in blocks as the store asks for them."""
    y, x = np.arange(FRAME_SHAPE[0], dtype=np.uint16)[:, None], np.arange(FRAME_SHAPE[1], dtype=np.uint16)[None]
    files = write(tmp_path / f"{STEM}.fits", split(y + x + np.uint16(500), 500), GAIN1=1.0)
    with read_detector(files) as chip:
        assert chip.shape == FRAME_SHAPE
        for start in range(0, FRAME_SHAPE[0], 1154):
            stop = min(start + 1154, FRAME_SHAPE[0])
            rows = chip.image.read_rows(start, stop)
            expected = (y[start:stop] + x).astype(np.float32)
            expected *= np.float32(1 / EXPTIME)
            assert np.abs(rows - expected).max() < 1e-4
