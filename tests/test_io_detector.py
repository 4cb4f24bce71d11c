import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from csst_dask.errors import ChipRejected
from csst_dask.instrument import PIXEL_SCALE, detector_wcs, frame_center, frame_corners
from csst_dask.io import read_detector
from csst_dask.schema import ChipFiles, ChipKey

FRAME = (92, 96)
POINTING = (90.0, -66.5607, 180.0)
KEY = ChipKey("10600000012", 14, 1)


def write(path, data, detector=14, wcs=True, **cards):
    image = fits.ImageHDU(data)
    if wcs:
        image.header.update(detector_wcs(detector, *POINTING).to_header())
    image.header["FILTER"] = "u"
    primary = fits.PrimaryHDU()
    primary.header.update({"OBSID": KEY.obs_id, "EXPTIME": 150.0, "EXPSTART": 61000.25} | cards)
    fits.HDUList([primary, image]).writeto(path, overwrite=True)
    return str(path)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).normal(size=FRAME).astype("f4")


@pytest.fixture
def files(tmp_path, pixels):
    flags = np.arange(FRAME[0] * FRAME[1], dtype="u2").reshape(FRAME)
    return ChipFiles(
        KEY,
        write(tmp_path / "i.fits", pixels),
        write(tmp_path / "w.fits", np.ones(FRAME, "f4"), wcs=False),
        write(tmp_path / "f.fits", flags, wcs=False),
    )


def changed(files, **paths):
    return ChipFiles(**{name: getattr(files, name) for name in ("key", "image", "weight", "flag", "truth")} | paths)


def test_a_chip_with_all_its_files(files, pixels):
    with read_detector(files, FRAME) as chip:
        assert (chip.key, chip.band, chip.exptime, chip.mjd, chip.shape) == (KEY, "u", 150.0, 61000.25, FRAME)
        assert chip.notes == []
        np.testing.assert_array_equal(chip.image.read_rows(0, 92), pixels)
        np.testing.assert_array_equal(chip.flag.read_rows(5, 6)[0], np.arange(5 * 96, 6 * 96))
        assert (chip.weight.read_rows(0, 92) == 1).all()
        info = chip.info()
    wcs = detector_wcs(14, *POINTING)
    np.testing.assert_allclose((info.corner_ra, info.corner_dec), frame_corners(wcs, FRAME), atol=1e-9)
    np.testing.assert_allclose((info.ra, info.dec), frame_center(wcs, FRAME), atol=1e-9)
    assert (info.n_star, info.n_valid) == (-1, 0)
    side = np.hypot((info.corner_ra[1] - info.corner_ra[0]) * np.cos(np.radians(info.dec)), np.diff(info.corner_dec)[0])
    assert side * 3600 == pytest.approx(96 * PIXEL_SCALE, rel=1e-3)


def test_cards_hold_both_headers(files):
    with read_detector(files, FRAME) as chip:
        assert chip.cards.dtype == np.uint8
        text = chip.cards.tobytes().decode("ascii")
    cards = [fits.Card.fromstring(text[i : i + 80]) for i in range(0, len(text), 80)]
    found = {card.keyword: card.value for card in cards}
    assert (found["OBSID"], found["FILTER"], found["NAXIS1"]) == (KEY.obs_id, "u", 96)


def test_companions_may_be_missing(files):
    with read_detector(changed(files, flag=None, weight=None), FRAME) as chip:
        assert chip.flag is None
        assert chip.weight is None
        assert any("no flags" in note for note in chip.notes)


def test_packed_and_scaled_images_are_read_alike(files, tmp_path, pixels):
    packed = tmp_path / "i.fits.gz"
    packed.write_bytes(gzip.compress(Path(files.image).read_bytes()))
    with (
        read_detector(changed(files, image=str(packed)), FRAME) as chip,
        read_detector(files, FRAME) as plain,
    ):
        np.testing.assert_array_equal(chip.image.read_rows(0, 92), pixels)
        assert chip.info() == plain.info()
    counts = np.arange(FRAME[0] * FRAME[1], dtype="u2").reshape(FRAME)
    with read_detector(changed(files, image=write(tmp_path / "u.fits", counts)), FRAME) as chip:
        np.testing.assert_array_equal(chip.image.read_rows(0, 92), counts)


def test_the_name_gives_the_filter_before_the_header(files, tmp_path, pixels):
    image = write(tmp_path / "i.fits", pixels, detector=6)
    files = changed(files, key=ChipKey(KEY.obs_id, 6), image=image)
    with read_detector(files, FRAME) as chip:
        assert chip.band == "u"
        assert chip.notes == ["band u given, detector 6 usually sees y"]


@pytest.mark.parametrize(("detector", "reason"), [(0, "does not exist"), (31, "does not exist"), (1, "not an imaging")])
def test_other_detectors_are_rejected(files, detector, reason):
    with pytest.raises(ChipRejected, match=reason):
        read_detector(changed(files, key=ChipKey(KEY.obs_id, detector)), FRAME)


@pytest.mark.parametrize("which", ["image", "weight", "flag"])
def test_damaged_files_are_rejected(files, tmp_path, which):
    os.truncate(getattr(files, which), 2 * 2880 + 100)
    with pytest.raises(ChipRejected, match=r"FITS file|truncated"):
        read_detector(files, FRAME)
    (tmp_path / "text.fits").write_text("nothing")
    with pytest.raises(ChipRejected, match="not a FITS file"):
        read_detector(changed(files, **{which: str(tmp_path / "text.fits")}), FRAME)


@pytest.mark.parametrize("which", ["image", "weight", "flag"])
def test_other_shapes_are_rejected(files, tmp_path, which):
    path = write(tmp_path / "other.fits", np.zeros((96, 92), "u2"))
    with pytest.raises(ChipRejected, match=f"{which} of 96 x 92 pixels .y, x., expected 92 x 96"):
        read_detector(changed(files, **{which: path}), FRAME)


def test_flags_must_be_integers(files, tmp_path, pixels):
    with pytest.raises(ChipRejected, match="float32 flags, expected unscaled integers"):
        read_detector(changed(files, flag=write(tmp_path / "other.fits", pixels)), FRAME)


def test_an_image_without_wcs_is_rejected(files, tmp_path, pixels):
    path = write(tmp_path / "other.fits", pixels, wcs=False)
    with pytest.raises(ChipRejected, match="no usable WCS"):
        read_detector(changed(files, image=path), FRAME)


def test_rejected_chips_leave_no_file_open(files, tmp_path, pixels):
    path = write(tmp_path / "other.fits", pixels, wcs=False)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        with pytest.raises(ChipRejected):
            read_detector(changed(files, image=path), FRAME)
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before


@pytest.mark.parametrize("names", [("SCI", "WHT", "FLG"), ("sci", "wht", "dq")])
def test_one_file_may_hold_image_weight_and_flag(tmp_path, files, pixels, names):
    path = write(tmp_path / "mef.fits", pixels)
    flags = np.full(FRAME, 9, "u2")
    with fits.open(path, mode="update") as hdus:
        hdus[1].name = names[0]
        hdus.append(fits.ImageHDU(np.full(FRAME, 2, "f4"), name=names[1]))
        hdus.append(fits.ImageHDU(np.ones(FRAME, "f4"), name="ERR"))
        hdus.append(fits.ImageHDU(flags, name=names[2]))
    with read_detector(ChipFiles(KEY, path), FRAME) as chip:
        np.testing.assert_array_equal(chip.image.read_rows(0, 92), pixels)
        assert (chip.weight.read_rows(0, 92) == 2).all()
        assert (chip.flag.read_rows(0, 92) == 9).all()
        assert chip.notes == ["further images of the file are not used: ERR"]
    with read_detector(changed(files, image=path), FRAME) as chip:  # files of their own go first
        assert chip.flag.read_rows(0, 1)[0, 5] == 5
