"""What this machine can do, and what is missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CORE = (
    "dask",
    "distributed",
    "xarray",
    "zarr",
    "numpy",
    "numba",
    "astropy",
    "torch",
    "torchvision",
    "healpix_geo",
)
EXTRAS = {
    "dask_cuda": ("gpu", "one worker per GPU"),
    "dask_jobqueue": ("slurm", "workers as SLURM jobs"),
    "mocpy": ("maps", "footprints as MOC"),
    "xdggs": ("maps", "HEALPix indexing in xarray"),
    "optuna": ("train", "hyper-parameter search"),
    "s3fs": ("s3", "stores on object storage"),
    "nbclient": ("test", "notebook tests"),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    found: str
    verdict: str
    """``ok``, ``optional`` (absent and not needed) or ``missing``."""
    advice: str = ""


def examine() -> list[Finding]:
    """Look at the interpreter, packages, devices, memory, disk, kernels and weights."""
    findings = [Finding("python", platform.python_version(), "ok")]
    findings += [_package(name) for name in CORE]
    findings += [_extra(name, *about) for name, about in EXTRAS.items()]
    findings += [_gpu(), _workers(), _slurm(), _cores(), _disk(), _kernel(), _weights()]
    return findings


def _installed(name: str) -> str:
    try:
        return version(name.replace("_", "-"))
    except PackageNotFoundError:
        return "installed"


def _package(name: str) -> Finding:
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken binary package fails in ways of its own
        return Finding(name, f"{type(error).__name__}: {error}", "missing", "install csst_dask again")
    return Finding(name, _installed(name), "ok")


def _extra(name: str, extra: str, purpose: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(name, "not installed", "optional", f"for {purpose}: pip install 'csst_dask[{extra}]'")
    return Finding(name, _installed(name), "ok", purpose)


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", "none that torch can use", "optional", "work runs on the CPU")
    names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return Finding("GPU", ", ".join(names), "ok")


def _workers() -> Finding:
    from csst_dask.runners.cuda import NoGpuCluster, check_gpu_cluster, count_gpus

    gpus = count_gpus()
    try:
        check_gpu_cluster(gpus, None)
    except NoGpuCluster as reason:
        return Finding("a worker for each GPU", "no", "optional", str(reason))
    return Finding("a worker for each GPU", f"{gpus}", "ok")


def _slurm() -> Finding:
    from csst_dask.runners.slurm import NoAnswer, ask_slurm

    where = shutil.which("sbatch")
    if where is None:
        return Finding("SLURM", "no sbatch on PATH", "optional", "for scripts/*.sbatch and configs/slurm.yaml")
    try:
        said = ask_slurm("sinfo", "-h", "-o", "%P %D nodes")
        answered, complaint = not said.returncode, said.stderr.partition("\n")[0]
    except NoAnswer as error:
        answered, complaint = False, str(error)
    if not answered:
        return Finding("SLURM", "sbatch is there, but no controller answers", "optional", complaint)
    return Finding("SLURM", ", ".join(said.stdout.splitlines()), "ok", "for scripts/*.sbatch and configs/slurm.yaml")


def _cores() -> Finding:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().total / 2**30
    enough = memory / cores >= 1.5
    return Finding(
        "cores and memory", f"{cores} cores, {memory:.0f} GiB", "ok" if enough else "optional",
        "" if enough else "under 1.5 GiB per core: use fewer --workers",
    )  # fmt: skip


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Finding(
        "disk here", f"{free:.0f} GiB free", "ok" if free > 6 else "optional",
        "" if free > 6 else "the demonstration needs up to 6 GiB",
    )  # fmt: skip


def _kernel() -> Finding:
    import time

    import numpy as np

    from csst_dask.preprocess import measure_image

    image = np.random.default_rng(0).standard_normal((2308, 2304), np.float32)
    measure_image(image)
    start = time.perf_counter()
    measure_image(image)
    rate = image.nbytes / (time.perf_counter() - start) / 1e9
    return Finding("measuring pixels", f"{rate:.1f} GB/s on one thread", "ok")


def _weights() -> Finding:
    from csst_dask.errors import ConfigError
    from csst_dask.inference.predictor import load_two_stage

    try:
        models = load_two_stage()
    except ConfigError as error:
        return Finding("shipped weights", str(error), "missing", "reinstall, or name others with --weights")
    sums = ", ".join(f"{task} {value[:8]}" for task, value in models.checksums.items())
    return Finding("shipped weights", sums, "ok")
