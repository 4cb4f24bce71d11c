"""Block statistics to predictions: classify every chip, then count the bright stars of all but the crowded.

Batches fit into a device's memory, and predictions resume with smaller ones where they do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from csst_dask.config import RoutingConfig
from csst_dask.errors import ConfigError
from csst_dask.inference.device import Amp, choose_precision, is_out_of_memory
from csst_dask.inference.limits import confusion_limit, reference_limit
from csst_dask.inference.physics import PHYSICS, physics_reasons
from csst_dask.models.calibrate import COUNT_QUANTILES, INTERVAL_LEVEL, interval
from csst_dask.models.density import DensityNetwork, ask, class_log_chance
from csst_dask.models.files import weights_folder
from csst_dask.models.weights import LoadedModel, load_weights
from csst_dask.preprocess.counted import COUNTED, counted_context
from csst_dask.preprocess.direct import direct_counts
from csst_dask.preprocess.inputs import SCALARS, WITH_COUNTS, context_definition, make_context, make_inputs
from csst_dask.preprocess.measure import Measured
from csst_dask.schema import BLOCK_SHAPE, BLOCK_STATS, CROWDED, MAGNITUDES, REVIEW_REASONS

KNOWN = (*SCALARS, "exptime")
"""Scalars of a chip that are given to the networks."""

CPU_BATCH = 8
"""Chips per forward pass, and per task, where the batch is chosen for a processor."""

MAX_BATCH = 128
"""Chips per forward pass at most: larger ones are no faster, and a lost task would be many chips."""

REFERENCES = RoutingConfig().references
"""Stars that are enough for astrometry where nobody says how many."""

TRIAL = 8
"""Chips of the pass whose memory is measured."""

SHARE = 0.7
"""Share of the free memory that a batch may take."""


@dataclass(frozen=True, eq=False)
class TwoStage:
    """The two networks of the method."""

    classifier: LoadedModel
    regressor: LoadedModel

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of each weights file, by task."""
        return {"classifier": self.classifier.checksum, "regressor": self.regressor.checksum}

    @property
    def counts(self) -> bool:
        """Whether a network looks at what was counted."""
        return any(model.inputs in WITH_COUNTS for model in (self.classifier, self.regressor))

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands that both networks have learned from."""
        return tuple(band for band in self.classifier.bands if band in self.regressor.bands)


def load_two_stage(folder: str | Path | None = None, device: str = "cpu") -> TwoStage:
    """Read both networks.

    Parameters
    ----------
    folder : path, optional
        Holds ``classifier.safetensors`` and ``regressor.safetensors``; by default the shipped weights.
    device : str
        Where they go: ``cpu``, ``cuda`` or ``cuda:0``.

    Returns
    -------
    TwoStage

    Raises
    ------
    ConfigError
        If the folder or a file is missing, damaged or of the wrong task, holds no interval of the level that
        predictions state, or learned from a context that was defined otherwise.
    """
    folder = weights_folder(folder)
    classifier, regressor = (load_weights(folder / f"{task}.safetensors", task) for task in ("classifier", "regressor"))
    interval(np.zeros(1), regressor.metadata, INTERVAL_LEVEL, scale=np.ones(1))
    for model in (classifier, regressor):
        expected = context_definition(model.inputs)
        if model.metadata.get("context_sha256", expected) != expected:
            raise ConfigError(
                f"the {model.task} of {folder} learned from statistics of the maps that are defined otherwise in this "
                "release; use the release that trained it, or train it again"
            )
        model.module.to(device)
    return TwoStage(classifier, regressor)


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
        self,
        block_stats: NDArray[np.float32],
        scalars: Mapping[str, ArrayLike],
        band: Sequence[str],
        places: Sequence[int] | None = None,
        counted: NDArray[np.float32] | None = None,
    ) -> dict[str, NDArray]:
        """Predict chips; parameters and return value are those of `predict_batch`.

        Raises
        ------
        MemoryError
            If not even one chip fits into the device's memory.
        """
        if places is not None and max(places, default=0) >= self.batch:
            places = None  # memory ran out before
        while True:
            try:
                return predict_batch(
                    self.models, block_stats, scalars, band, self.batch, self.precision, places, counted
                )
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
            places = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def predict_chips(
        self,
        measured: Sequence[Measured],
        band: Sequence[str],
        exptime: Sequence[float],
        places: Sequence[int] | None = None,
        references: float = REFERENCES,
    ) -> dict[str, NDArray]:
        """Predict chips from what a pass over their pixels has measured.

        Parameters
        ----------
        measured : sequence of n Measured
            With maps of one shape.
        band : sequence of n str
        exptime : sequence of n float
            s
        places : sequence of n int, optional
            As for `predict_batch`.
        references : float
            Stars on a frame that are enough for astrometry.

        Returns
        -------
        dict of arrays
            Those of `predict_batch` and of `share_out`; ``direct_counts`` and ``direct_counts_error`` (n, magnitude)
            and ``direct_tile`` (n, ty, tx) float32, from `csst_dask.preprocess.direct.direct_counts`; and
            ``reference_limit`` and ``confusion_limit`` (n,) float32, AB magnitudes, from `csst_dask.inference.limits`.
        """
        direct = [direct_counts(chip, name) for chip, name in zip(measured, band, strict=True)]
        scalars = {name: np.array([getattr(chip, name) for chip in measured]) for name in SCALARS}
        scalars["exptime"] = np.asarray(exptime, np.float64)
        maps = np.stack([np.asarray(chip.maps, np.float32) for chip in measured])
        counted = None
        if self.models.counts:
            counted = np.stack([counted_context(*chip) for chip in zip(measured, band, direct, strict=True)])
        found = self.predict(maps, scalars, band, places, counted)
        learned = np.where(found["density_class"] == CROWDED, np.nan, found["log_bright"])
        against = np.array(
            [physics_reasons(*chip) for chip in zip(measured, band, exptime, direct, learned, strict=True)]
        )
        reasons = against @ np.array([REVIEW_REASONS[name] for name in PHYSICS])
        tiles = np.array([chip.tile for chip in direct])
        found |= share_out(found, tiles) | {
            "direct_counts": np.array([chip.counts for chip in direct], np.float32),
            "direct_counts_error": np.array([chip.error for chip in direct], np.float32),
            "direct_tile": tiles.astype(np.float32),
            "review_reason": reasons.astype(np.uint8),
        }
        counts = found["star_counts"], found["direct_counts"]
        locus, pixels = [chip.locus for chip in direct], [chip.n_pixels for chip in measured]
        return found | {
            "reference_limit": reference_limit(*counts, references),
            "confusion_limit": confusion_limit(*counts, locus, pixels),
        }

    def _fitting(self) -> int:
        if self.device.type != "cuda":
            return CPU_BATCH
        maps = np.zeros((TRIAL, len(BLOCK_STATS), *BLOCK_SHAPE), np.float32)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        scalars, counted = dict.fromkeys(SCALARS, np.ones(TRIAL)), np.zeros((TRIAL, len(COUNTED)), np.float32)
        predict_batch(self.models, maps, scalars, ["g"] * TRIAL, TRIAL, self.precision, None, counted)
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


def predict_batch(
    models: TwoStage,
    block_stats: NDArray[np.float32],
    scalars: Mapping[str, ArrayLike],
    band: Sequence[str],
    batch: int,
    precision: torch.dtype = torch.float32,
    places: Sequence[int] | None = None,
    counted: NDArray[np.float32] | None = None,
) -> dict[str, NDArray]:
    """Predict a block of chips.

    Every forward pass has exactly ``batch`` chips, the last one padded with zeros, so that a chip's result
    does not depend on its neighbours or their number. Both networks see the whole block and the counts of
    crowded chips are dropped afterwards: one shape is worth more than the time that leaving them out saves.

    Parameters
    ----------
    models : TwoStage
    block_stats : (n, 6, iy, ix) float32 array
        Block statistics, e-/s. Not modified.
    scalars : mapping of str to (n,) array
        At least `SCALARS`; ``exptime`` (s) counts where it is given.
    band : sequence of n str
    batch : int
        Chips per forward pass, at least 1.
    precision : torch.dtype
        Type that convolutions compute in; less than float32 on a GPU only.
    places : sequence of n int, optional
        Places of the chips in one forward pass, each below ``batch``; by default they fill passes in their order.
    counted : (n, k) float32 array, optional
        `counted.counted_context` of each chip, for networks that look at it.

    Returns
    -------
    dict of arrays
        ``class_probability`` (n, 6) float32; ``density_class`` (n,) int8; ``confidence`` (n,) float32, the
        largest probability; ``log_star`` (n,) float32, log10(1 + n_star), with the bounds ``star_lower`` and
        ``star_upper``, stars per chip, at `INTERVAL_LEVEL`, all NaN where the classifier gives no count;
        ``log_bright`` (n,) float32, log10(1 + n_bright); ``bright_count``, ``bright_lower``, ``bright_upper`` (n,)
        float32, stars per chip; ``star_counts`` with ``star_counts_lower`` and ``star_counts_upper`` (n, magnitude)
        float32, those brighter than each magnitude, NaN where the regressor gives none; the last seven are NaN for
        class 5; ``out_of_distribution`` (n,) bool, the band was not
        learned from, or the statistics are unlike those of the chips that either network learned from; ``ood_score``
        (n,) float32, how unlike they are, in units of the limit; infinite for such a band.

    Raises
    ------
    ValueError
        If ``batch`` is not positive or the shapes do not agree.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, found {batch}")
    n = len(block_stats)
    if places is not None:
        known = {name: np.asarray(values) for name, values in scalars.items() if name in KNOWN}
        found = _forward(models, np.asarray(block_stats), known, band, batch, precision, places, counted)
        return _assemble(models, {name: values[list(places)] for name, values in found.items()}, band)
    blocks = []
    for start in range(0, max(n, 1), batch):
        part = slice(start, min(start + batch, n))
        some = {name: np.asarray(values)[part] for name, values in scalars.items() if name in KNOWN}
        seen = None if counted is None else counted[part]
        found = _forward(models, np.asarray(block_stats)[part], some, band[part], batch, precision, range(batch), seen)
        blocks.append({name: values[: part.stop - start] for name, values in found.items()})
    return _assemble(models, {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}, band)


@torch.inference_mode()
def _forward(
    models: TwoStage,
    block_stats: NDArray,
    scalars: dict,
    band: Sequence[str],
    batch: int,
    precision: torch.dtype,
    places: Sequence[int],
    counted: NDArray[np.float32] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Numbers of both networks for one padded batch, by name; ``batch`` rows."""
    made: dict[str, tuple[Tensor, Tensor]] = {}
    answers: dict[str, Tensor] = {}
    for model in (models.classifier, models.regressor):
        kind, device = model.inputs, next(model.module.parameters()).device
        if kind not in made:
            chips = kind, block_stats, scalars, band
            blocks = make_inputs(*chips), make_context(*chips, counted)
            padded = (_padded(block, batch, device, places) for block in blocks)
            maps, context = (tensor.to(device, non_blocking=True) for tensor in padded)
            made[kind] = maps.contiguous(memory_format=torch.channels_last), context
        maps, context = made[kind]
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            answer = ask(model.module, model.metadata, maps, context)
        if model.task == "regressor":
            wanted = ("bright", "bright_scale", "counts", "counts_scale")
            answers |= {name: answer[name] for name in wanted if name in answer}
        else:
            answers["probability"] = class_log_chance(answer, model.metadata.get("temperature", 1.0)).exp()
            answers |= {name: answer[name] for name in ("star", "star_scale") if name in answer}
        if isinstance(model.module, DensityNetwork):
            answers[f"{model.task}_ood_score"] = model.module.ood_score(context)
    return {name: values.cpu().numpy() for name, values in answers.items()}


def _padded(values: NDArray[np.float32], batch: int, device: torch.device, places: Sequence[int]) -> Tensor:
    """A batch on the host, from where a GPU can copy it while the processor goes on."""
    padded = torch.zeros((batch, *values.shape[1:]), pin_memory=device.type == "cuda")
    padded.numpy()[list(places)[: len(values)]] = values
    return padded


def _assemble(models: TwoStage, found: dict[str, NDArray], band: Sequence[str]) -> dict[str, NDArray]:
    probability, nothing = found["probability"], np.full(len(found["probability"]), np.nan, np.float32)
    classes = probability.argmax(axis=1).astype(np.int8)
    log_star = np.maximum(found.get("star", nothing), 0)
    log_bright = np.where(classes == CROWDED, np.float32(np.nan), np.maximum(found["bright"], 0))
    scales = {name: np.exp(found[name]) if name in found else None for name in ("star_scale", "bright_scale")}
    star_bounds = (nothing, nothing)
    if "star" in found:
        star_bounds = interval(log_star, models.classifier.metadata, INTERVAL_LEVEL, scales["star_scale"], "star")
    bounds = interval(log_bright, models.regressor.metadata, INTERVAL_LEVEL, scales["bright_scale"])
    score = {
        model.task: found.get(f"{model.task}_ood_score", nothing) / np.float32(model.metadata.get("ood_limit", np.inf))
        for model in (models.classifier, models.regressor)
    }
    # the regressor's limit follows from chips below class 5, and it is bypassed there
    ood_score = np.fmax(score["classifier"], np.where(classes == CROWDED, nothing, score["regressor"]))
    ood_score = np.where(np.isin(np.asarray(band, dtype=str), models.bands), ood_score, np.float32(np.inf))
    return {
        "class_probability": probability,
        "density_class": classes,
        "confidence": probability.max(axis=1, initial=0),
        "log_star": log_star,
        "star_lower": _count(star_bounds[0]),
        "star_upper": _count(star_bounds[1]),
        "log_bright": log_bright,
        "bright_count": _count(log_bright),
        "bright_lower": _count(bounds[0]),
        "bright_upper": _count(bounds[1]),
        **_star_counts(models, found, classes == CROWDED),
        "ood_score": ood_score.astype(np.float32),
        "out_of_distribution": ood_score > 1,
    }


def _star_counts(models: TwoStage, found: dict[str, NDArray], crowded: NDArray[np.bool_]) -> dict[str, NDArray]:
    """Stars brighter than each magnitude, and their intervals; they rise with it."""
    shape = (len(crowded), len(MAGNITUDES))
    if "counts" not in found:
        return {f"star_counts{part}": np.full(shape, np.nan, np.float32) for part in ("", "_lower", "_upper")}
    log = np.where(crowded[:, None], np.nan, np.maximum.accumulate(np.maximum(found["counts"], 0), axis=1))
    scale, stored = np.exp(found["counts_scale"]), models.regressor.metadata[COUNT_QUANTILES]
    bounds = [
        interval(log[:, k], models.regressor.metadata, INTERVAL_LEVEL, scale[:, k], stored=stored[k])
        for k in range(len(MAGNITUDES))
    ]
    lower, upper = (np.stack([_count(bound[side]) for bound in bounds], axis=1) for side in (0, 1))
    return {"star_counts": _count(log), "star_counts_lower": lower, "star_counts_upper": upper}


def share_out(found: Mapping[str, NDArray], tiles: NDArray[np.floating]) -> dict[str, NDArray[np.float32]]:
    """Stars of each tile: a chip's counts, shared out by what was counted directly in its tiles.

    Parameters
    ----------
    found : mapping of str to (n,) array
        ``bright_count`` and ``log_star``.
    tiles : (n, ty, tx) array
        Bright stars that were counted.

    Returns
    -------
    dict of arrays
        ``tile_bright`` and ``tile_star`` (n, ty, tx) float32; they add up to the chip's counts, and are NaN where it
        has none.
    """
    known = np.where(np.isfinite(tiles), tiles, 0.0)
    total = known.sum((1, 2), keepdims=True)
    share = np.where(total > 0, known / np.where(total > 0, total, 1.0), 1 / (tiles.shape[1] * tiles.shape[2]))
    counts = {"tile_bright": found["bright_count"], "tile_star": 10.0 ** found["log_star"].astype(np.float64) - 1}
    return {name: (share * count[:, None, None]).astype(np.float32) for name, count in counts.items()}


def _count(log_count: NDArray) -> NDArray[np.float32]:
    """Stars of log10(1 + n), at least 0; NaN stays NaN."""
    with np.errstate(over="ignore"):
        return np.maximum(10.0 ** log_count.astype(np.float64) - 1, 0).astype(np.float32)
