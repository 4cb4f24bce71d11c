"""Predictions in batches that fit into a device's memory, and go on in smaller ones where they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from csst_dask.inference.device import Amp, choose_precision, is_out_of_memory
from csst_dask.inference.two_stage import TwoStage, predict_batch
from csst_dask.preprocess.inputs import SCALARS
from csst_dask.schema import CHANNELS, REDUCED_SHAPE

CPU_BATCH = 8
"""Chips per forward pass, and per task, where the batch is chosen for a processor."""

MAX_BATCH = 128
"""Chips per forward pass at most: larger ones are no faster, and a lost task would be many chips."""

TRIAL = 8
"""Chips of the pass whose memory is measured."""

SHARE = 0.7
"""Share of the free memory that a batch may take."""


class Predictor:
    """The two networks on one device, with the batch that it can take.

    Parameters
    ----------
    models : TwoStage
        On the device already (`load_two_stage`).
    batch : int or "auto"
        Chips per forward pass; auto is `CPU_BATCH` on a processor and what fits into the free memory of a GPU.
    amp : {"auto", "bf16", "fp16", "off"}
        Precision of convolutions on a GPU.
    compiled : bool
        Let torch compile the networks on a GPU.
    """

    def __init__(
        self, models: TwoStage, batch: int | Literal["auto"] = "auto", amp: Amp = "auto", compiled: bool = False
    ):
        self.models = models
        self.device = next(models.classifier.module.parameters()).device
        self.precision = choose_precision(amp, self.device)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all batches have one shape
            torch.backends.cudnn.allow_tf32 = self.precision is not torch.float32
            for model in (models.classifier, models.regressor):
                if compiled:
                    model.module.compile()
        self.batch: int = self._fitting() if batch == "auto" else batch
        """Chips per forward pass; halved, for good, when memory runs out."""

    def predict(
        self, reduced: NDArray[np.float32], scalars: Mapping[str, ArrayLike], band: Sequence[str]
    ) -> dict[str, NDArray]:
        """Predict chips; parameters and return value are those of `predict_batch`.

        Raises
        ------
        MemoryError
            If not even one chip fits into the device's memory.
        """
        while True:
            try:
                return predict_batch(self.models, reduced, scalars, band, self.batch, self.precision)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.batch == 1:
                    raise MemoryError(
                        f"{self.device} has no memory for one chip ({error}); end what else runs there, "
                        "or set inference.device to cpu"
                    ) from None
            # out of the handler, so that what the failed pass held is let go
            self.batch //= 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _fitting(self) -> int:
        if self.device.type != "cuda":
            return CPU_BATCH
        maps = np.zeros((TRIAL, len(CHANNELS), *REDUCED_SHAPE), np.float32)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        predict_batch(self.models, maps, dict.fromkeys(SCALARS, np.ones(TRIAL)), ["g"] * TRIAL, TRIAL, self.precision)
        taken = torch.cuda.max_memory_allocated(self.device) - before
        torch.cuda.empty_cache()
        return batch_that_fits(torch.cuda.mem_get_info(self.device)[0], taken / TRIAL)


def batch_that_fits(free: float, chip: float) -> int:
    """Largest power of two of chips that fit.

    Parameters
    ----------
    free : float
        Free memory, bytes; `SHARE` of it is used.
    chip : float
        Memory of one chip, bytes.

    Returns
    -------
    int
        From 1 to `MAX_BATCH`.
    """
    return 1 << min(max(int(SHARE * free / max(chip, 1.0)), 1), MAX_BATCH).bit_length() - 1
