"""Memory of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_memory() -> int:
    """Largest resident memory of this process so far, byte.

    The mark covers the whole life of the process: what one task needed shows in all later ones of the same worker.
    On Linux it is ``VmHWM``, which starts with the program and falls back to the present size when 5 is written to
    ``/proc/self/clear_refs``; this package never does that. ``ru_maxrss``, which serves elsewhere, may include
    memory of the parent that started the process.

    Returns
    -------
    int
    """
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
