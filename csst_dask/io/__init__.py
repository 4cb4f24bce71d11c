"""Files in and out: names, headers, pixels by rows, whole chips, and truth catalogues."""

from csst_dask.io.detector import Detector, read_detector
from csst_dask.io.discovery import discover
from csst_dask.io.filenames import FileName, parse_name, survey_name
from csst_dask.io.headers import clean_wcs
from csst_dask.io.pixels import PixelSource, open_pixels
from csst_dask.io.truth import TRUTH_COLUMNS, TruthCounts, read_truth, write_truth

__all__ = [
    "TRUTH_COLUMNS",
    "Detector",
    "FileName",
    "PixelSource",
    "TruthCounts",
    "clean_wcs",
    "discover",
    "open_pixels",
    "parse_name",
    "read_detector",
    "read_truth",
    "survey_name",
    "write_truth",
]
