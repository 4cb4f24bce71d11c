"""What a method costs: parameters, time and memory, each measured in a process of its own on the machine at hand.

``python -m csst_dask.evaluation.cost`` reads a request as JSON from standard input and answers on standard output.
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csst_dask.memory import peak_memory
from csst_dask.schema import BLOCK_SHAPE, BLOCK_STATS

REPEATS, SECONDS = 20, 5.0
"""A time is the median of at most so many calls, and of fewer once they took so long, s."""

CHIPS = 32
"""Chips of a batch of the trees."""


@dataclass(frozen=True)
class Cost:
    """What one part of a method was measured to need."""

    method: str
    part: str
    """``classifier``, ``regressor``, or what else it does."""
    model: str
    """Architecture, or the names of the estimators."""
    parameters: int
    """Numbers that are learned: weights; thresholds and leaves of trees, and support vectors times features."""
    ms_per_image: float
    """Median wall time of a batch after a first one, divided by its chips, ms."""
    memory_mb: float
    """Highest resident memory of the process, or of the GPU's allocator, MB (1e6 bytes)."""
    device: str
    """``cpu``, or the name of the GPU."""
    threads: int
    batch: int


class CostUnknown(RuntimeError):
    """A cost could not be measured."""


def try_cost(measure: Callable[..., Cost], method: str, *request: Any) -> tuple[list[Cost], list[str]]:
    """The cost of a method, or what to say instead: a judgement does not fail for it."""
    try:
        return [measure(method, *request)], []
    except CostUnknown as reason:
        return [], [f"{reason}. `--no-cost` leaves costs out."]


def measure_network(method: str, path: Path, batch: int, device: str = "cpu", threads: int = 1) -> Cost:
    """Measure a network from block statistics, as a store keeps them, to answers.

    Parameters
    ----------
    method : str
        Name.
    path : Path
        Weights.
    batch : int
        Chips per pass.
    device : str
        ``cpu`` or ``cuda``.
    threads : int

    Returns
    -------
    Cost

    Raises
    ------
    CostUnknown
        If the process that measures fails.
    """
    return _measure(method, threads, kind="network", path=str(path), batch=batch, device=device)


def measure_trees(method: str, fitted: Any, statistics: np.ndarray, band: np.ndarray, folder: Path) -> Cost:
    """Measure the prediction of fitted trees from statistics; ``folder`` takes a passing file."""
    path = folder / "trees.pickle"
    path.write_bytes(pickle.dumps((fitted, statistics[:CHIPS], band[:CHIPS])))
    try:
        return _measure(method, 1, kind="trees", path=str(path))
    finally:
        path.unlink()


def measure_extraction(method: str, store: str, row: int, exptime: float, band: str) -> Cost:
    """Measure source extraction on one chip that keeps its pixels, once."""
    return _measure(method, 1, kind="extraction", path=store, row=row, exptime=exptime, band=band)


def describe_machine() -> str:
    """Processor and, where there is one, GPU."""
    names = [
        line.split(":", 1)[1].strip()
        for line in (Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ())
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _measure(method: str, threads: int, **request: Any) -> Cost:
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    done = subprocess.run(
        [sys.executable, "-m", "csst_dask.evaluation.cost"], input=json.dumps({**request, "threads": threads}),
        capture_output=True, text=True, env=os.environ | limits, check=False,
    )  # fmt: skip
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise CostUnknown(f"Measuring the cost of {method} failed: {reason[0]}")
    return Cost(method=method, threads=threads, **json.loads(done.stdout.splitlines()[-1]))


def _network(path: str, batch: int, device: str, threads: int) -> dict[str, Any]:
    import torch

    from csst_dask.models.density import ask
    from csst_dask.models.weights import load_weights
    from csst_dask.preprocess.counted import counted_context
    from csst_dask.preprocess.inputs import SCALARS, WITH_COUNTS, make_context, make_inputs
    from csst_dask.preprocess.measure import measure_image

    torch.set_num_threads(threads)
    model = load_weights(path)
    module, on_gpu = model.module.to(device), device.startswith("cuda")
    block_stats = np.random.default_rng(0).gamma(1.0, size=(batch, len(BLOCK_STATS), *BLOCK_SHAPE)).astype(np.float32)
    chips = model.inputs, block_stats, dict.fromkeys(SCALARS, np.ones(batch)), ["g"] * batch

    measured = measure_image(np.random.default_rng(0).normal(size=(1846, 1843)).astype(np.float32))
    count = model.inputs in WITH_COUNTS

    def answer() -> None:
        counted = np.stack([counted_context(measured, "g") for _ in range(batch)]) if count else None
        maps = torch.from_numpy(make_inputs(*chips)).to(device)
        context = torch.from_numpy(make_context(*chips, counted)).to(device)
        with torch.inference_mode():
            ask(module, model.metadata, maps.contiguous(memory_format=torch.channels_last), context)
        if on_gpu:
            torch.cuda.synchronize()

    found = _time(answer, batch)
    if on_gpu:
        found |= {"memory_mb": torch.cuda.max_memory_allocated() / 1e6, "device": torch.cuda.get_device_name()}
    parameters = sum(tensor.numel() for tensor in module.parameters())
    return found | {"part": model.task, "model": model.metadata["arch"], "parameters": parameters, "batch": batch}


def _trees(path: str, threads: int) -> dict[str, Any]:
    from csst_dask.evaluation.trees import count_parameters, predict_trees

    fitted, statistics, band = pickle.loads(Path(path).read_bytes())  # written by the parent a moment ago
    found = _time(lambda: predict_trees(fitted, statistics, band), len(band))
    part = {"part": "class and counts", "model": "boosted trees, SVM"}
    return found | part | {"parameters": count_parameters(fitted), "batch": len(band)}


def _extraction(path: str, row: int, exptime: float, band: str, threads: int) -> dict[str, Any]:
    from csst_dask.evaluation.tasks import count_chip

    started = time.perf_counter()
    count_chip(path, row, exptime, band)
    milliseconds = 1e3 * (time.perf_counter() - started)
    part = {"part": "source extraction", "model": "SEP, ridge regression", "parameters": 0, "batch": 1}
    return part | {"ms_per_image": milliseconds, "memory_mb": peak_memory() / 1e6, "device": "cpu"}


def _time(call: Callable[[], Any], chips: int) -> dict[str, Any]:
    call()
    times: list[float] = []
    while len(times) < 3 or (len(times) < REPEATS and sum(times) < SECONDS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return {"ms_per_image": 1e3 * float(np.median(times)) / chips, "memory_mb": peak_memory() / 1e6, "device": "cpu"}


_KINDS: dict[str, Callable[..., dict[str, Any]]] = {"network": _network, "trees": _trees, "extraction": _extraction}


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    print(json.dumps(_KINDS[request.pop("kind")](**request)))


if __name__ == "__main__":
    main()
