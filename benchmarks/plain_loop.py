"""One image at a time, as a loop without a scheduler does it: astropy reads, the package reduces, networks answer.

What it lacks: a store, resuming, retries, chips that are rejected with a reason, workers that may die.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from csst_dask.config import MaskConfig
from csst_dask.instrument.flags import mask_table
from csst_dask.preprocess import measure_image
from csst_dask.preprocess.inputs import SCALARS


@cache
def networks():
    """The shipped networks, once for each process."""
    import torch

    from csst_dask.inference import load_two_stage

    torch.set_num_threads(1)
    return load_two_stage()


def warm_up(_: object = None) -> None:
    """Load what is loaded once: compiled loops and networks."""
    answer(np.random.default_rng(0).normal(size=(448, 448)).astype(np.float32), np.zeros((448, 448), np.uint8), "g")


def predict_file(path: str) -> dict[str, NDArray]:
    """Predictions of an image with its weights and flags."""
    image = Path(path)
    with fits.open(image) as hdus:
        pixels, band = hdus[1].data, str(hdus[0].header.get("FILTER") or hdus[1].header["FILTER"])
    flags = fits.getdata(image.with_name(image.name.replace("_img", "_flg")), 1)
    weights = fits.getdata(image.with_name(image.name.replace("_img", "_wht")), 1)
    mask = mask_table(MaskConfig().flag_bits)[flags]
    mask[~(weights > 0)] |= 1
    return answer(np.ascontiguousarray(pixels, np.float32), mask, band)


def answer(pixels: NDArray[np.float32], mask: NDArray[np.uint8], band: str) -> dict[str, NDArray]:
    """Both networks on one image."""
    from csst_dask.inference import predict_batch

    reduced = measure_image(pixels, mask)
    scalars = {name: np.array([getattr(reduced, name)]) for name in SCALARS} | {"exptime": np.array([150.0])}
    return predict_batch(networks(), reduced.maps.astype(np.float32)[None], scalars, [band], 1)
