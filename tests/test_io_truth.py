import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from csst_dask.errors import ConfigError
from csst_dask.io import TRUTH_COLUMNS, TruthCounts, discover, read_truth, write_truth
from csst_dask.schema import MAGNITUDES, UNKNOWN_BRIGHTER, ChipFiles, ChipKey

KEY = ChipKey("100000100", 8, 1)
SHAPE = (92, 96)
STEM = "CSST_MSC_MS_WIDE_20220706125114_20220706125344_100000100_08"


def catalogue(n=2000, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "obj_ID": np.arange(n),
        "ID_chip": 8,
        "filter": "g",
        "xImage": rng.uniform(-20, 120, n),
        "yImage": rng.uniform(-20, 120, n),
        "ra": rng.uniform(0, 360, n),
        "mag": rng.uniform(18, 27, n),
        "obj_type": rng.choice(["star", "galaxy", "quasar"], n),
    }


def expected(columns, bright=23.5):
    x, y = columns["xImage"], columns["yImage"]
    on = (x >= 0.5) & (x < 96.5) & (y >= 0.5) & (y < 92.5) & (columns["obj_type"] == "star")
    return on.sum(), (on & (columns["mag"] < bright)).sum()


def counts(path):
    found = read_truth(ChipFiles(KEY, "", truth=str(path)), "g", SHAPE)
    return found.n_star, found.n_bright, found.note


def discovered(folder):
    """The files of the one chip of a folder that holds a truth catalogue already."""
    (folder / f"{STEM}_L1_V01_img.fits").touch()
    [files], left = discover([folder])
    assert left == []
    return files


def test_written_catalogues_are_read_back_exactly(tmp_path):
    path, columns = tmp_path / "t.cat", catalogue()
    write_truth(path, columns)
    assert counts(path) == (*expected(columns), "")
    table = pd.read_csv(path, sep=r"\s+", skiprows=1, names=list(TRUTH_COLUMNS))
    assert list(TRUTH_COLUMNS) == path.read_text().splitlines()[0].lstrip("# ").split()
    assert len(TRUTH_COLUMNS) == 33
    for name in ("obj_ID", "xImage", "ra", "mag", "obj_type"):
        assert (table[name].to_numpy() == columns[name]).all()
    assert (table["veldisp"] == 0).all()
    assert not list(tmp_path.glob("*.part"))


def brighter(path):
    return read_truth(ChipFiles(KEY, "", truth=str(path)), "g", SHAPE).n_brighter


def test_stars_beyond_the_count_are_bright_stars_all_the_same(tmp_path):
    path, columns = tmp_path / "t.cat", catalogue()
    counted = (columns["mag"] > 20.0) & (columns["obj_type"] == "star")
    write_truth(path, columns | {"counted": counted.astype(int)})
    assert path.read_text().splitlines()[0].split()[-1] == "counted"
    n_star, n_bright = expected(columns)
    of_counted = {name: value[counted] if np.ndim(value) else value for name, value in columns.items()}
    assert counts(path) == (expected(of_counted)[0], n_bright, "")
    assert expected(of_counted)[0] < n_star


@pytest.mark.parametrize("depth", [None, 23.9, 26.7])
def test_counts_by_magnitude_end_at_the_depth_of_the_catalogue(tmp_path, depth):
    path, columns = tmp_path / "t.cat", catalogue()
    write_truth(path, columns, depth)
    known = depth or columns["mag"][columns["obj_type"] == "star"].max()
    assert brighter(path) == tuple(expected(columns, m)[1] if m <= known else -1 for m in MAGNITUDES)
    assert counts(path) == (*expected(columns), "")


def test_a_catalogue_of_bright_stars_alone_tells_nothing_of_fainter_ones(tmp_path):
    path = tmp_path / "t.cat"
    write_truth(path, {"xImage": [5.0, 6.0], "yImage": 5.0, "mag": [19.5, 20.5], "obj_type": "star"})
    assert brighter(path) == (0, 0, 1, 2, 2, 2, 2, -1, -1, -1)
    write_truth(path, {})
    assert brighter(path) == (0,) * 7 + (-1,) * 3


def test_frame_edges_are_half_open_in_fits_pixels(tmp_path):
    path = tmp_path / "t.cat"
    x = [0.4999, 0.5, 96.4999, 96.5, 50, 50, 50, 50]
    y = [50, 50, 50, 50, 0.4999, 0.5, 92.4999, 92.5]
    write_truth(path, {"xImage": x, "yImage": y, "mag": [20, 20, 23.4999, 20, 20, 20, 23.5, 20], "obj_type": "star"})
    assert counts(path) == (4, 3, "")


@pytest.mark.parametrize("spelling", ["star", "STAR", "Star", "s", "1", "1.0"])
def test_spellings_of_a_star(tmp_path, spelling):
    path = tmp_path / "t.cat"
    write_truth(path, {"xImage": [5.0, 6.0], "yImage": 5.0, "mag": 20.0, "obj_type": [spelling, "galaxy"]})
    assert counts(path) == (1, 1, "")


def test_unknown_types_are_noted_or_refused(tmp_path):
    path = tmp_path / "t.cat"
    write_truth(path, {"xImage": [5.0, 6.0], "yImage": 5.0, "mag": 20.0, "obj_type": ["star", "comet"]})
    assert counts(path) == (1, 1, "obj_type comet taken as no star")
    write_truth(path, {"xImage": [5.0, 6.0], "yImage": 5.0, "mag": 20.0, "obj_type": "comet"})
    n_star, n_bright, note = counts(path)
    assert (n_star, n_bright) == (-1, -1)
    assert "comet" in note


def test_an_empty_catalogue_counts_no_stars(tmp_path):
    path = tmp_path / "t.cat"
    write_truth(path, {})
    assert counts(path) == (0, 0, "")


def test_a_subset_of_columns_in_another_order_suffices(tmp_path):
    path = tmp_path / "t.cat"
    path.write_text("# made by hand\n#mag yImage xImage obj_type teff\n 20 5 6 star 5000\n25 7 8 star 4000\n")
    assert counts(path) == (2, 1, "")


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        (f"{STEM}_L0_V01_top1000.cat", {}, "excerpt"),
        ("MSC_100000100_chip_08_filt_y.cat", {}, "filter y, expected g"),
        (f"{STEM}_L0_V01.cat", {"ID_chip": 9}, "ID_chip names 9, expected 8"),
        (f"{STEM}_L0_V01.cat", {"filter": "r"}, "filter names r, expected g"),
    ],
)
def test_catalogues_of_something_else_give_no_counts(tmp_path, name, changes, reason):
    write_truth(tmp_path / name, catalogue() | changes)
    found = read_truth(discovered(tmp_path), "g", SHAPE)
    assert (found.n_star, found.n_bright) == (-1, -1)
    assert reason in found.note
    assert name in found.note


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("MSC_10000100_chip_08_filt_g.cat", {}),
        ("MSC_100000100_chip_08_filt_g.cat", {"ID_chip": "chip_08", "filter": "G"}),
        (f"{STEM}_L0_V07.cat", {"ID_chip": 0, "filter": 0}),
    ],
)
def test_catalogues_of_this_chip_by_other_spellings(tmp_path, name, changes):
    columns = catalogue() | changes
    write_truth(tmp_path / name, columns)
    found = read_truth(discovered(tmp_path), "g", SHAPE)
    assert replace(found, n_brighter=UNKNOWN_BRIGHTER) == TruthCounts(*expected(columns))


def test_files_given_by_hand_may_have_any_name(tmp_path):
    path, columns = tmp_path / f"{STEM}_top1000.cat", catalogue()
    write_truth(path, columns)
    assert counts(path) == (*expected(columns), "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("# xImage yImage mag\n1 2 3\n", "obj_type are missing"),
        ("1 2 3 star\n", "are missing"),
        ("", "are missing"),
        ("# xImage yImage mag obj_type\n1 2 bright star\n", "not a number"),
        ("# xImage yImage mag obj_type teff\n1 2 20 star 5000\n3 4 20 star", "last row ends after 4 of 5"),
        ("# xImage yImage mag obj_type\n1 2 20\n1 2 20 star\n", "lack a position or a type"),
    ],
)
def test_damaged_catalogues_give_no_counts(tmp_path, text, reason):
    path = tmp_path / "t.cat"
    path.write_text(text)
    n_star, n_bright, note = counts(path)
    assert (n_star, n_bright) == (-1, -1)
    assert reason in note


def test_what_cannot_be_read_gives_no_counts(tmp_path):
    (tmp_path / "noise.cat").write_bytes(np.random.default_rng(0).bytes(5000))
    for name in ("missing.cat", "noise.cat", "."):
        assert counts(tmp_path / name)[:2] == (-1, -1)


@pytest.mark.parametrize(
    "columns",
    [
        {"color": 1},
        {"ra": [1, 2], "dec": [1, 2, 3]},
        {"obj_type": ["a star"]},
        {"filter": ""},
        {"ra": [[1.0]]},
    ],
)
def test_catalogues_that_could_not_be_read_back_are_not_written(tmp_path, columns):
    with pytest.raises(ConfigError, match="truth column"):
        write_truth(tmp_path / "t.cat", columns)
    assert not list(tmp_path.iterdir())


def test_a_crowded_frame_is_quick(tmp_path):
    path, columns = tmp_path / "t.cat", catalogue(100_000)
    start = time.process_time()
    write_truth(path, columns)
    written = time.process_time()
    assert counts(path)[:2] == expected(columns)
    assert written - start < 3
    assert time.process_time() - written < 3
