"""The sections of a configuration: one for each stage of the work."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from csst_dask.config.section import LocalPath, Section
from csst_dask.schema import BANDS, FRAME_SHAPE, MASK_MEANINGS, Mask

DEFAULT_FLAG_BITS = {
    0: "bad",
    1: "hot",
    2: "hot",
    3: "saturated",
    4: "cosmic_ray",
    5: "trail",
    6: "ghost",
    7: "ghost",
}


class ExecutionConfig(Section):
    """How a run meets faults."""

    retries: int = Field(2, ge=0)
    """A task that raises something unforeseen is tried so many times more."""
    storage_timeout: float = Field(600.0, gt=0)
    """Storage that fails, or a cluster without workers, is waited for so long, s."""
    time_limit: float | None = Field(900.0, gt=0)
    """A chip that takes longer is stopped and tried again on its own, s; null for no limit."""
    worker_losses: int = Field(2, ge=1)
    """A task that has lost so many workers is tried on its own, in a process that can end no other task."""
    process_deaths: int = Field(3, ge=1)
    """A chip that has ended so many processes of its own has failed in this run."""
    consecutive_failures: int = Field(50, ge=1)
    """So many tasks that fail one after the other, with none that succeeds, end the run: the fault is not theirs."""
    attempts: int = Field(3, ge=1)
    """A chip that failed in so many runs, by the machine's fault, is given up until ``--retry-failed``."""
    block: int = Field(4, ge=1)
    """Chips that a task reads one after the other; fewer where there are few."""
    in_flight: int = Field(3, ge=1)
    """Tasks for each thread of the cluster that are submitted and not done."""
    grace: float = Field(30.0, ge=0)
    """Time that running tasks get when the run is asked to stop, s."""
    walltime_margin: float = Field(90.0, ge=0)
    """A run in a batch job stops so long before the walltime, s."""
    report: LocalPath | None = None
    """HTML file for Dask's performance report."""


class MaskConfig(Section):
    """How CSST flag bits become mask bits, and which mask bits make a pixel invalid."""

    flag_bits: dict[int, str] = Field(default_factory=lambda: dict(DEFAULT_FLAG_BITS))
    """Bit number of a ``flg`` file -> name of a mask bit; bits that are not named are ignored."""
    invalid: tuple[str, ...] = tuple(bit.name.lower() for bit in Mask if bit.name and bit is not Mask.GHOST)
    """Mask bits that make a pixel invalid."""

    @field_validator("flag_bits")
    @classmethod
    def _known_bits(cls, bits: dict[int, str]) -> dict[int, str]:
        for number in bits:
            if not 0 <= number <= 15:
                raise ValueError(f"flag bit {number} is outside 0..15")
        return {number: _mask_bit(name) for number, name in bits.items()}

    @field_validator("invalid")
    @classmethod
    def _known_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(_mask_bit(name) for name in names)
        if "nonfinite" not in names or "not_observed" not in names:
            raise ValueError("nonfinite and not_observed pixels can never be valid; list both")
        return names

    @property
    def invalid_bits(self) -> int:
        """The invalid mask bits, or-ed together."""
        return int(sum(Mask[name.upper()] for name in set(self.invalid)))

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.flag_bits.items())), self.invalid))


def _mask_bit(name: str) -> str:
    if name.lower() not in MASK_MEANINGS:
        raise ValueError(f"unknown mask bit {name!r}; expected one of {', '.join(MASK_MEANINGS)}")
    return name.lower()


class IngestConfig(Section):
    """FITS files to survey store."""

    pixels: Literal["lossless", "quantised", "none"] = "lossless"
    """What is kept of the pixels; ``quantised`` rounds to a power-of-two step of at most sky_sigma / 16."""
    truth: bool = True
    """Read truth catalogues where they lie beside the images."""
    shard: bool = False
    """One file per chip for image and mask instead of one per chunk."""
    frame: tuple[PositiveInt, PositiveInt] = FRAME_SHAPE
    """Shape (y, x) of the store's frames, pixel."""
    chunks: tuple[PositiveInt, PositiveInt] = (1154, 1152)
    """Chunk shape (y, x); must divide the frame."""

    @model_validator(mode="after")
    def _chunks_divide(self) -> IngestConfig:
        if any(size % chunk for size, chunk in zip(self.frame, self.chunks, strict=True)):
            raise ValueError(f"chunks {self.chunks} must divide the frame {self.frame}")
        return self


class InferenceConfig(Section):
    """Block statistics to predictions."""

    weights: LocalPath | None = None
    """Folder with ``classifier.safetensors`` and ``regressor.safetensors``; by default the shipped ones."""
    batch: int | Literal["auto"] = "auto"
    """Chips per forward pass; every batch is padded to this size. ``auto`` is what the store's predictions were made
    with, else 8 on a processor, and as many as fit into the free memory of a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where pixels are measured and networks run: auto is the worker's GPU where it has one."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Precision of convolutions on a GPU; auto is bf16 on one that has it. Only ``off`` gives a processor's numbers."""
    compile: bool = False
    """Let torch compile the networks on a GPU: a minute for each worker, then a little faster."""

    @field_validator("batch")
    @classmethod
    def _positive(cls, batch: int | str) -> int | str:
        if isinstance(batch, int) and batch < 1:
            raise ValueError(f"batch must be at least 1 or 'auto', found {batch}")
        return batch


class RoutingConfig(Section):
    """Thresholds that turn predictions into a recommendation."""

    min_bright: float = Field(20.0, ge=0)
    """Fewer bright stars than this are too few for astrometry."""
    min_confidence: float = Field(0.6, ge=0, le=1)
    """A class probability below this asks for review."""
    references: float = Field(200.0, gt=0)
    """Stars that are enough for astrometry: ``reference_limit`` is the brightest magnitude with so many."""
    missed_cost: float = Field(5.0, ge=0)
    """Cost of a chip of density class 5 that the standard pipeline takes; a chip that the crowded one takes in vain
    costs 1 by default, and only ratios matter."""
    needless_cost: float = Field(1.0, ge=0)
    """Cost of a chip below density class 5 that the crowded pipeline takes."""
    review_cost: float = Field(0.5, ge=0)
    """Cost of a chip that somebody looks at instead."""


class MapConfig(Section):
    """Predictions to sky map."""

    nside: int = 1024
    """HEALPix resolution, a power of two from 1 to 65536."""
    out: LocalPath | None = None
    """Zarr map."""
    png: LocalPath | None = None
    """Picture of it."""
    fits: LocalPath | None = None
    """HEALPix FITS file of it, a table for each band."""
    moc: LocalPath | None = None
    """FITS file with the MOC of what was seen."""

    @field_validator("nside")
    @classmethod
    def _power_of_two(cls, nside: int) -> int:
        if not 1 <= nside <= 65536 or nside & (nside - 1):
            raise ValueError(f"nside must be a power of two from 1 to 65536, found {nside}")
        return nside


DOWNLOAD: Literal["download"] = "download"
"""Value of ``training.pretrained``."""


EPOCHS = 15
"""Default of ``training.epochs`` for networks that see maps."""


PaperInputs = Literal["paper-point", "paper-area"]

START_EPOCHS = 60
"""Default of ``training.epochs`` for weights that are gone on from."""


class TrainingConfig(Section):
    """One network from one store."""

    recipe: Literal["paper", "csst", "counts"] = "csst"
    """Which inputs, augmentation and schedule."""
    arch: str | None = None
    """Architecture; by default a perceptron for csst, ResNet-34 and ResNet-50 for the paper's two networks."""
    inputs: PaperInputs | None = None
    """How recipe paper makes small images: paper-point samples without antialiasing, and is the default; paper-area
    takes means over exact blocks. The paper says "resized", which may be either."""
    epochs: int | None = Field(None, ge=1)
    """Passes over the training chips: by default `EPOCHS`, and ``context_epochs`` for a perceptron."""
    context_epochs: int = Field(250, ge=0)
    """Epochs in which the networks of recipe csst learn from band, noise and statistics alone, before ``epochs`` with
    maps where they see any."""
    batch: int = Field(32, ge=2)
    """Chips per step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of AdamW, at its largest."""
    weight_decay: float = Field(1e-2, ge=0)
    """Of AdamW."""
    clip: float = Field(1.0, gt=0)
    """Largest L2 norm of a gradient."""
    mse_weight: float = Field(1.0, ge=0)
    """Of the squared error in the loss of the paper's regressor."""
    mae_weight: float = Field(1.0, ge=0)
    """Of the absolute error there."""
    relative_weight: float = Field(0.1, ge=0)
    """Of the squared relative error there."""
    start: LocalPath | None = None
    """Weights to go on from on new chips: a file, or a folder that holds one of the task. Architecture, inputs and what
    is usual for them are theirs; rates are a tenth of those from scratch, or less, and `START_EPOCHS` the default of
    ``epochs``."""
    pretrained: Literal["download"] | LocalPath | None = None
    """ImageNet weights of the regressor's backbone: a file of torchvision, or ``download`` for the one that torch's
    cache holds or fetches; without it the paper's stages make one."""
    stage_epochs: tuple[PositiveInt, PositiveInt, PositiveInt] = (30, 40, 70)
    """Epochs in which the head, the last residual layer too, and all of a pretrained regressor learn."""
    layer_rates: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1.0, 0.3, 0.1)
    """Learning rates of the head, the last residual layer and the rest in these stages, of ``learning_rate``."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision; auto is bf16 on a GPU that has it, fp16 on others, off on a CPU."""
    parts: int | None = Field(None, ge=1)
    """Micro-batches of a step, over all ranks; by default one for each rank."""
    ranks: int | None = Field(None, ge=1)
    """Processes that train together; by default one for each GPU, or one."""
    launcher: Literal["dask", "torchrun"] = "dask"
    """What starts them."""
    timeout: float = Field(60.0, gt=0)
    """Ranks that wait for another one for longer give up, s."""
    restarts: int = Field(3, ge=0)
    """How often a gang of ranks that broke is started again."""
    checkpoint_minutes: float = Field(10.0, gt=0)
    """Time between checkpoints within an epoch."""
    early_stopping_epochs: int = Field(15, ge=1)
    """Epochs without a better validation loss before training stops."""
    seed: int = Field(0, ge=0)
    """Of the division into sets, the first weights, the order of the chips and all noise."""
    split: Literal["field", "random"] = "field"
    """How chips are divided into sets: so that no patch of sky is in two of them, or at random as in the paper, for
    comparison with it only."""
    chips: int | None = Field(None, ge=1)
    """Chips of the training set to learn from, of fields in a random order; by default all. For learning curves."""
    bands: tuple[str, ...] = BANDS
    """Bands to learn from."""
