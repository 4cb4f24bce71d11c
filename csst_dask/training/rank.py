"""One rank of a training as a process of its own: ``python -m csst_dask.training.rank SPEC.json``.

Whatever starts it (a Dask worker, torchrun, srun) names the ranks in the environment, as torchrun does. The first rank
tells its progress on standard output, a line at a time.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

WRONG, STOPPED = 2, 130
"""Exit status for a configuration error, which no restart can mend, and for a training that was asked to stop."""

LEASH = "CSST_DASK_LEASH"
"""Set in the environment by a parent that holds the other end of standard input: the rank ends with it."""

TOLD = "@progress "
"""Starts a line of progress on standard output; what follows is JSON."""

EVERY = 0.5
"""Least time between two lines of progress, s."""


def write_spec(path: Path, **spec: Any) -> Path:
    """Write what a rank is to do: ``task``, ``store``, ``out``, ``config`` (of `fit`), ``data`` and ``command``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(spec, indent=1))
    return path


def main(path: str) -> int:
    """Train as one rank.

    Parameters
    ----------
    path : str
        What `write_spec` wrote.

    Returns
    -------
    int
        Exit status.
    """
    if os.environ.get(LEASH):
        threading.Thread(target=_end_with_parent, daemon=True).start()
    from csst_dask.config import TrainingConfig
    from csst_dask.errors import ConfigError
    from csst_dask.training import fit, load_samples

    spec = json.loads(Path(path).read_text())
    config = TrainingConfig.model_validate(spec["config"])
    try:
        samples = load_samples(spec["store"], config.bands)
        split = samples.split(config.seed)
        out = Path(spec["out"])
        fit(spec["task"], samples, split, config, out, _Teller(), data=spec["data"], command=spec["command"])
    except ConfigError as error:
        print(f"csst-dask: {error}", file=sys.stderr, flush=True)
        return WRONG
    except KeyboardInterrupt as stopped:
        print(f"csst-dask: {stopped}", file=sys.stderr, flush=True)
        return STOPPED
    return 0


class _Teller:
    """Progress as lines; not more often than anybody can read."""

    def __init__(self) -> None:
        self._last = -EVERY

    def __call__(self, epoch: int, epochs: int, step: int, steps: int, loss: float) -> None:
        now = time.monotonic()
        if now - self._last >= EVERY or step == steps:
            self._last = now
            print(TOLD + json.dumps([epoch, epochs, step, steps, loss]), flush=True)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(143)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
