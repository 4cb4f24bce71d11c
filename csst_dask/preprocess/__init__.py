"""Pixels to block statistics, and block statistics to network inputs."""

from csst_dask.preprocess.measure import FrameSums, Measured, measure_image, standardised

__all__ = ["FrameSums", "Measured", "measure_image", "standardised"]
