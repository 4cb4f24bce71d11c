"""Which device a worker computes on, in what precision, and what its errors mean.

Torch is imported when it is needed: it takes seconds, and a worker without a GPU reduces pixels without it.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from csst_dask.errors import ConfigError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]
Amp = Literal["auto", "bf16", "fp16", "off"]

DRIVERS = ("/dev/nvidiactl", "/dev/dxg")
"""One of these is there where a GPU can be; asking torch takes seconds."""


@cache
def choose_device(wanted: Device = "auto") -> str:
    """The device of this process, for as long as it lives.

    Parameters
    ----------
    wanted : {"auto", "cpu", "cuda"}
        ``inference.device`` of the configuration.

    Returns
    -------
    str
        ``cuda:0`` where there is a GPU (dask-cuda shows every worker its own one first), else ``cpu``.

    Raises
    ------
    ConfigError
        If a GPU is wanted and there is none.
    """
    if wanted == "cpu" or (wanted == "auto" and not _driver()):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda:0"
    if wanted == "cuda":
        raise ConfigError("inference.device is cuda, but torch finds no GPU here; set auto or cpu, or mend the driver")
    return "cpu"


def _driver() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1") and any(Path(path).exists() for path in DRIVERS)


def choose_precision(amp: Amp, device: str | torch.device) -> torch.dtype:
    """Type that convolutions compute in.

    Parameters
    ----------
    amp : {"auto", "bf16", "fp16", "off"}
        ``inference.amp`` of the configuration.
    device : str or torch.device

    Returns
    -------
    torch.dtype
        For ``auto`` bfloat16 on a GPU that has it in hardware, else float32; on a processor always float32.
    """
    import torch

    if torch.device(device).type != "cuda":
        return torch.float32
    if amp == "auto":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float32
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}[amp]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device has run out of memory: the process can go on with less at a time."""
    return "OutOfMemoryError" in _kinds(error) or ("RuntimeError" in _kinds(error) and "out of memory" in str(error))


def is_fatal(error: BaseException) -> bool:
    """Whether an error has broken the device for its process, which must be started anew.

    Illegal memory accesses, failed assertions of a kernel, uncorrectable memory errors and lost devices are such: CUDA
    answers every later call of the process with the same error.

    Parameters
    ----------
    error : BaseException
        It, or what caused it.

    Returns
    -------
    bool
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        broken = "AcceleratorError" in _kinds(cause) or any(words in str(cause) for words in _FATAL)
        if broken and "RuntimeError" in _kinds(cause) and not is_out_of_memory(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


_FATAL = ("CUDA error", "device-side assert", "EXECUTION_FAILED", "uncorrectable ECC")


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}
