import os
import random

import numpy as np
import pytest
from astropy.io import fits

from csst_dask.errors import ConfigError
from csst_dask.io import discover
from csst_dask.schema import ChipFiles, ChipKey

STEM = "CSST_MSC_MS_WIDE_20220706125114_20220706125344_{}_{:02d}"
EXPOSURE = "10600000012"


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return [str(folder / name) for name in names]


def triplet(folder, obs_id=EXPOSURE, detector=8, version=1):
    stem = f"{STEM.format(obs_id, detector)}_L1_V{version:02d}"
    return touch(folder, *(f"{stem}_{product}.fits" for product in ("img", "wht", "flg")))


def fits_file(path, data=None, **cards):
    primary = fits.PrimaryHDU()
    primary.header.update(cards)
    fits.HDUList([primary, fits.ImageHDU(np.zeros((4, 5), "f4") if data is None else data)]).writeto(path)
    return str(path)


def test_files_of_one_chip_are_put_together(tmp_path):
    image, weight, flag = triplet(tmp_path / "b" / "c")
    (truth,) = touch(tmp_path / "truth", STEM.format(EXPOSURE, 8) + "_L0_V07.cat")
    touch(tmp_path, "README.md", "plot.png", STEM.format(EXPOSURE, 8) + "_L1_V01_psf.fits")
    assert discover([tmp_path]) == ([ChipFiles(ChipKey(EXPOSURE, 8, 1), image, weight, flag, truth, level=1)], [])


def test_order_and_repetition_of_inputs_do_not_matter(tmp_path):
    for number, detector in enumerate((25, 6, 8, 17)):
        triplet(tmp_path / f"night{number}", detector=detector, version=number)
    whole = discover([tmp_path])
    assert [chip.key.detector for chip in whole[0]] == [6, 8, 17, 25]
    files = [str(path) for path in tmp_path.rglob("*.fits")]
    random.Random(0).shuffle(files)
    assert discover(files) == whole
    assert discover([*files, tmp_path, tmp_path / "night2"]) == whole


def test_versions_are_different_chips(tmp_path):
    first, second = triplet(tmp_path, version=1), triplet(tmp_path, version=2)
    chips, left = discover([tmp_path])
    assert [chip.paths() for chip in chips] == [tuple(first), tuple(second)]
    assert left == []


def test_names_without_version(tmp_path):
    stem = STEM.format("100000100", 6)
    image, flag = touch(tmp_path, f"{stem}_img.fits", f"{stem}_flg.fits")
    (truth,) = touch(tmp_path, "MSC_10000100_chip_06_filt_y.cat")
    assert discover([tmp_path]) == (
        [ChipFiles(ChipKey("100000100", 6), image, None, flag, truth, truth_filter="y")],
        [],
    )


def test_the_whole_truth_goes_before_an_excerpt(tmp_path):
    image = triplet(tmp_path)[0]
    stem = STEM.format(EXPOSURE, 8)
    excerpt, whole = touch(tmp_path, f"{stem}_L0_V01_top1000.cat", f"{stem}_L0_V02.cat")
    chips, left = discover([tmp_path])
    assert (chips[0].image, chips[0].truth, chips[0].truth_excerpt) == (image, whole, False)
    assert left == [(excerpt, f"duplicate of {whole}")]
    os.remove(whole)
    [chip] = discover([tmp_path])[0]
    assert (chip.truth, chip.truth_excerpt) == (excerpt, True)


def test_duplicates_and_orphans_are_listed(tmp_path):
    a, b = triplet(tmp_path / "a"), triplet(tmp_path / "b")
    orphan = triplet(tmp_path / "c", detector=9)[1:]
    os.remove(triplet(tmp_path / "c", detector=9)[0])
    (truth,) = touch(tmp_path / "c", STEM.format(EXPOSURE, 11) + "_L0_V01.cat")
    chips, left = discover([tmp_path])
    assert [chip.paths() for chip in chips] == [tuple(a)]
    reasons = dict(left)
    assert {path: reasons[path] for path in b} == {y: f"duplicate of {x}" for x, y in zip(a, b, strict=True)}
    assert all("without an image" in reasons[path] for path in [*orphan, truth])
    assert len(left) == 6
    assert left == sorted(left)


def test_level_1_takes_the_place_of_level_0(tmp_path):
    image = triplet(tmp_path)[0]
    (raw,) = touch(tmp_path, STEM.format(EXPOSURE, 8) + "_L0_V03.fits")
    chips, left = discover([tmp_path])
    assert [chip.image for chip in chips] == [image]
    assert left == [(raw, f"level 0 of a chip that is here reduced: {image}")]
    assert discover([raw])[0] == [ChipFiles(ChipKey(EXPOSURE, 8, 3), raw, level=0)]


def test_keys_from_headers(tmp_path):
    image = fits_file(tmp_path / "mine.fits", OBSID=EXPOSURE, DETECTOR="MSC-08")
    flag = fits_file(tmp_path / "mine_flg.fits", np.zeros((4, 5), "u2"), OBSID=EXPOSURE, DETECTOR="MSC-08")
    packed = fits_file(tmp_path / "other.fits.gz", OBSID=EXPOSURE, CHIPLAB="09")
    no_key = fits_file(tmp_path / "third.fits", OBSID=EXPOSURE)
    chips, left = discover([tmp_path])
    assert chips == [
        ChipFiles(ChipKey(EXPOSURE, 8), image, None, flag, None),
        ChipFiles(ChipKey(EXPOSURE, 9), packed, None, None, None),
    ]
    assert [path for path, _ in left] == [no_key]
    assert "no key" in left[0][1]


def test_links_folders_and_other_files(tmp_path):
    image = triplet(tmp_path / "data")[0]
    (tmp_path / "data" / "loop").symlink_to(tmp_path)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "broken.fits").symlink_to(tmp_path / "nowhere")
    (tmp_path / "harmless.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.fits").mkdir()
    touch(tmp_path, "README.md", "empty.fits")
    (tmp_path / "text.fits").write_text("no FITS file" * 500)
    chips, left = discover([tmp_path])
    assert [chip.image for chip in chips] == [image]
    reasons = {os.path.basename(path): reason for path, reason in left}
    assert set(reasons) == {"broken.fits", "folder.fits", "empty.fits", "text.fits"}
    assert reasons["broken.fits"] == "a broken link"
    assert "folder" in reasons["folder.fits"]
    assert "is empty" in reasons["empty.fits"]
    assert "not a FITS file" in reasons["text.fits"]


def test_what_is_named_is_answered_for(tmp_path):
    names = (
        "README.md",
        STEM.format(EXPOSURE, 8) + "_L1_V01_psf.fits",
        STEM.format(EXPOSURE, 8) + "_L1_V01.log",
    )
    paths = touch(tmp_path, *names)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    chips, left = discover([*paths, tmp_path / "gone.txt"])
    assert chips == []
    assert [path for path, _ in left] == sorted([*paths, str(tmp_path / "gone.txt")])
    assert discover([tmp_path]) == ([], [])


def test_other_instruments_are_listed(tmp_path):
    (path,) = touch(tmp_path, STEM.format(EXPOSURE, 8).replace("MSC", "MCI") + "_L1_V01_img.fits")
    assert discover([tmp_path]) == ([], [(path, "instrument MCI, expected MSC")])


def test_a_path_that_does_not_exist_stops_the_run(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        discover([tmp_path, tmp_path / "nowhere"])
