"""The telescope as tables: bands, the focal plane with its 30 detectors, and the flag bits."""

from csst_dask.instrument.flags import mask_table
from csst_dask.instrument.focal_plane import (
    BAND_TABLE,
    DETECTORS,
    IMAGING_DETECTORS,
    PIXEL_SCALE,
    Band,
    DetectorSpec,
    detector_band,
    detector_spec,
    detector_wcs,
    frame_center,
    frame_corners,
    normalise_band,
)

__all__ = [
    "BAND_TABLE",
    "DETECTORS",
    "IMAGING_DETECTORS",
    "PIXEL_SCALE",
    "Band",
    "DetectorSpec",
    "detector_band",
    "detector_spec",
    "detector_wcs",
    "frame_center",
    "frame_corners",
    "mask_table",
    "normalise_band",
]
