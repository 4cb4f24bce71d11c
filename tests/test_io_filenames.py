import pytest
from hypothesis import given
from hypothesis import strategies as st

from csst_dask.errors import ConfigError
from csst_dask.io import FileName, parse_name, survey_name

C6 = "CSST_MSC_MS_SCI_20270810081950_20270810082220_100000100_06"
C9 = "CSST_MSC_MS_WIDE_20220706125114_20220706125344_10600000012_15"
L2 = "CSST_MSC_MS_SCIE_20240821005429_20240821005659_10160000004_12"
LONG = "CSST_MSC_MS_WIDE_20220706125114_20220706125344_10109200100412_15"

EXAMPLES = [
    (f"{C6}_L0_1.fits", ("100000100", 6, "image", 1, 0)),
    (f"{C9}_L0_V01.fits", ("10600000012", 15, "image", 1, 0)),
    (f"{LONG}_L0_V01.fits", ("10109200100412", 15, "image", 1, 0)),
    (f"{C6}_img.fits", ("100000100", 6, "image", 0, None)),
    (f"{C6}_wht.fits", ("100000100", 6, "weight", 0, None)),
    (f"{C6}_flg.fits", ("100000100", 6, "flag", 0, None)),
    (f"{C6}_img_L1.fits", ("100000100", 6, "image", 0, 1)),
    (f"{C6}_L1_1_img.fits", ("100000100", 6, "image", 1, 1)),
    (f"{C6}_img_L1_1.fits", ("100000100", 6, "image", 1, 1)),
    (f"{C6}_wht_L1_1.fits", ("100000100", 6, "weight", 1, 1)),
    (f"{C6}_flg_L1_1.fits", ("100000100", 6, "flag", 1, 1)),
    (f"{C6}_cat.fits", ("100000100", 6, "catalog", 0, None)),
    (f"{C6}_psf.fits", ("100000100", 6, "psf", 0, None)),
    (f"{L2}_L1_V01_CAT.fits", ("10160000004", 12, "catalog", 1, 1)),
    (f"{L2}_L1_V01_img.fits", ("10160000004", 12, "image", 1, 1)),
    (f"{L2}_L1_V01_img.fits.gz", ("10160000004", 12, "image", 1, 1)),
    (f"{L2}_L1_V12_flg.fits.fz", ("10160000004", 12, "flag", 12, 1)),
    (f"{L2}_L1_V01_ast.fits", ("10160000004", 12, "other", 1, 1)),
    (f"{L2}_L1_V01.head", ("10160000004", 12, "other", 1, 1)),
    ("MSC_10000100_chip_06_filt_y.cat", ("10000100", 6, "truth", 0, None)),
    ("MSC_100000100_chip_06_filt_y.cat", ("100000100", 6, "truth", 0, None)),
    ("MSC_100000100_chip_06_filt_y.log", ("100000100", 6, "log", 0, None)),
    (f"{C9}_L0_V01.cat", ("10600000012", 15, "truth", 1, 0)),
    (f"{C9}_L0_V01_top1000.cat", ("10600000012", 15, "truth", 1, 0)),
    (f"{C9}_L0_V01.log", ("10600000012", 15, "log", 1, 0)),
]


@pytest.mark.parametrize(("name", "expected"), EXAMPLES)
def test_published_names(name, expected):
    found = parse_name(f"/some/folder/{name}")
    assert (found.obs_id, found.detector, found.kind, found.version, found.level) == expected
    assert found.excerpt == ("top1000" in name)
    assert found.instrument == "MSC"


def test_parts_of_a_name():
    found = parse_name(f"{C9}_L0_V01.fits")
    assert (found.survey, found.exposure_type) == ("MS", "WIDE")
    assert (found.t0, found.t1) == ("20220706125114", "20220706125344")
    assert parse_name("CSST_MCI_C2_EXDF_20220706125114_20220706125344_10600000012_15_L0_V01.fits").instrument == "MCI"


@pytest.mark.parametrize(("text", "band"), [("y", "y"), ("nuv", "NUV"), ("NUV", "NUV"), ("GI", "GI")])
def test_filter_of_a_truth_name(text, band):
    assert parse_name(f"MSC_100000100_chip_12_filt_{text}.cat").filter == band


@pytest.mark.parametrize("name", ["README.md", "image.fits", f"{C9}.txt", f"{C9}_L0_V01_new.fits", "x" + C6 + ".fits"])
def test_other_names_are_none_of_ours(name):
    assert parse_name(name) is None


def test_truth_numbers_of_the_c51_era():
    found = parse_name("MSC_10000100_chip_06_filt_y.cat")
    assert found.exposures() == (("10000100", 6), ("100000100", 6))
    assert FileName("10600000012", 6, "image").exposures() == (("10600000012", 6),)


digits = st.text("0123456789", min_size=14, max_size=14)


@given(
    st.text("0123456789", min_size=9, max_size=14),
    st.integers(1, 30),
    digits,
    digits,
    st.sampled_from(["img", "wht", "flg", "truth"]),
    st.integers(1, 99),
    st.integers(0, 2),
)
def test_names_are_read_back(obs_id, detector, t0, t1, product, version, level):
    found = parse_name(survey_name(obs_id, detector, t0, t1, product, version, level))
    kind = {"img": "image", "wht": "weight", "flg": "flag", "truth": "truth"}[product]
    assert (found.obs_id, found.detector, found.t0, found.t1) == (obs_id, detector, t0, t1)
    assert (found.kind, found.version, found.level) == (kind, version, 0 if product == "truth" else level)


def test_the_documented_names():
    parts = ("10100000001", 8, "20270101000000", "20270101000230")
    stem = "CSST_MSC_MS_WIDE_20270101000000_20270101000230_10100000001_08"
    assert survey_name(*parts, "img") == f"{stem}_L1_V01_img.fits"
    assert survey_name(*parts, "truth") == f"{stem}_L0_V01.cat"


@pytest.mark.parametrize(
    "parts",
    [
        ("123", 8, "20270101000000", "20270101000230", "img"),
        ("10100000001", 31, "20270101000000", "20270101000230", "img"),
        ("10100000001", 100, "20270101000000", "20270101000230", "img"),
        ("10100000001", 8, "2027-01-01", "20270101000230", "img"),
        ("10100000001", 8, "20270101000000", "20270101000230", "picture"),
    ],
)
def test_impossible_names_are_not_built(parts):
    with pytest.raises(ConfigError, match="expected"):
        survey_name(*parts)
