"""One worker for each GPU of this machine. Nothing here creates a CUDA context: GPUs belong to the workers."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from typing import Any

INSTALL = "pip install 'csst_dask[gpu]'"


class NoGpuCluster(Exception):
    """There can be no worker for each GPU; the message says why."""


def count_gpus() -> int:
    """GPUs that a process of this machine may use: what the driver knows, as far as CUDA_VISIBLE_DEVICES lets see it.

    Returns
    -------
    int
    """
    physical, visible = _physical_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not physical:
        return physical
    count = 0
    for name in (part.strip() for part in visible.split(",")):
        # CUDA hides what comes behind the first name that it does not know
        if not name.startswith(("GPU-", "MIG-")) and not (name.isdigit() and int(name) < physical):
            break
        count += 1
    return count


def _physical_gpus() -> int:
    try:
        import pynvml
    except ImportError:
        return _gpus_of_tool()
    try:
        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetCount())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:  # no driver, no device, no permission
        return 0


def _gpus_of_tool() -> int:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        said = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in said.splitlines())


def check_gpu_cluster(gpus: int, workers: int | None) -> None:
    """Say why there can be no worker for each GPU.

    Parameters
    ----------
    gpus : int
        As `count_gpus` gives it.
    workers : int or None
        The most workers that were asked for.

    Raises
    ------
    NoGpuCluster
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not gpus:
        raise NoGpuCluster("no GPU here" if hidden is None else f"no GPU here with CUDA_VISIBLE_DEVICES={hidden!r}")
    found = f"{gpus} GPU{'s' if gpus > 1 else ''}"
    if workers and workers > gpus:
        raise NoGpuCluster(f"{workers} workers were asked for, more than {found}; leave out the number to use them")
    if importlib.util.find_spec("dask_cuda") is None:
        raise NoGpuCluster(f"{found} but dask-cuda is not installed: {INSTALL}")


def start_cuda_cluster(workers: int, **options: Any) -> Any:
    """Start a cluster with a GPU for each worker.

    Parameters
    ----------
    workers : int
    **options
        Of `distributed.LocalCluster`.

    Returns
    -------
    dask_cuda.LocalCUDACluster

    Raises
    ------
    NoGpuCluster
        If dask-cuda or the driver is broken.
    """
    try:
        from dask_cuda import LocalCUDACluster
    except Exception as error:  # a package of another CUDA version fails in ways of its own
        raise NoGpuCluster(f"dask-cuda cannot be imported ({error}): {INSTALL}") from None
    try:
        return LocalCUDACluster(n_workers=workers, threads_per_worker=1, **options)
    except Exception as error:  # NVMLError of any kind, or what it does not foresee
        raise NoGpuCluster(f"dask-cuda cannot use the GPUs ({type(error).__name__}: {error})") from None
