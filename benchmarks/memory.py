"""Peak of anonymous memory, taken in a process of its own, where nothing else has left free pages behind.

Run as ``python memory.py maps FILE`` or ``python memory.py naive FILE``; prints the growth in MB.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

WARM_UP_SHAPE = (448, 448)
MEGABYTE = 1e6


def extra_memory(path: str, what: str) -> float:
    """Anonymous memory that reducing a file adds to a fresh process, MB.

    Parameters
    ----------
    path : str
        FITS image.
    what : str
        ``maps`` for the one-pass reduction, ``naive`` for the naive pipeline.
    """
    command = [sys.executable, str(Path(__file__).resolve()), what, path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def anonymous_memory() -> float:
    """Resident anonymous memory of this process, MB (``RssAnon`` of proc_pid_status(5), in KiB)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / MEGABYTE
    raise OSError("/proc/self/status has no RssAnon line; a Linux kernel from 4.5 on is needed")


def growth(work: Callable[[], object]) -> float:
    """High-water mark of anonymous memory during some work over its level before, MB."""
    gc.collect()
    before, finished, peak = anonymous_memory(), threading.Event(), [0.0]

    def watch() -> None:
        while not finished.is_set():
            peak[0] = max(peak[0], anonymous_memory())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = work()
    peak[0] = max(peak[0], anonymous_memory())
    finished.set()
    watcher.join()
    del result
    return peak[0] - before


def _maps(path: str) -> Callable[[], object]:
    """The one-pass reduction, compiled and loaded by a run over a small frame."""
    from astropy.io import fits
    from real import config_of, maps_of_file

    small = str(Path(path).with_name("warm_up.fits"))
    fits.writeto(small, np.zeros(WARM_UP_SHAPE, np.float32), overwrite=True)
    maps_of_file(small, config_of(WARM_UP_SHAPE))
    return lambda: maps_of_file(path)


def _naive(path: str) -> Callable[[], object]:
    from naive import naive_file, naive_image

    naive_image(np.random.default_rng(0).normal(size=WARM_UP_SHAPE))
    return lambda: naive_file(path)


if __name__ == "__main__":
    print(growth({"maps": _maps, "naive": _naive}[sys.argv[1]](sys.argv[2])))
