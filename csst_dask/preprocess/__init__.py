"""Pixels to reduced maps, and reduced maps to network inputs."""

from csst_dask.preprocess.reduce import FrameSums, Reduced, reduce_image, standardised

__all__ = ["FrameSums", "Reduced", "reduce_image", "standardised"]
