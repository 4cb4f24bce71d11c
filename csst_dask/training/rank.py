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
import traceback
from pathlib import Path
from typing import Any

WRONG, STOPPED = 2, 130
"""Exit status for what no restart can mend, a configuration error or a full disk, and for a training asked to stop."""

LEASH = "CSST_DASK_LEASH"
"""Set in the environment by a parent that holds the other end of standard input: the rank ends with it."""

TOLD = "@progress "
"""Starts a line of progress on standard output; what follows is JSON: what `fit` tells, or null as a sign of life."""

EVERY = 0.5
"""Least time between two lines of progress, s."""


def write_spec(path: Path, **spec: Any) -> Path:
    """Write what a rank is to do: ``task``, ``store`` (or several) and what `fit` takes but for callables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    end_of(path).unlink(missing_ok=True)
    path.write_text(json.dumps(spec, indent=1))
    return path


def end_of(path: Path) -> Path:
    """File beside what `write_spec` wrote in which a rank under torchrun says why no restart can help."""
    return path.with_suffix(".end.json")


def main(path: str) -> int:
    """Train as one rank.

    torchrun starts ranks again whatever their exit status. One that ended with `WRONG` or `STOPPED` ends so again, at
    once.

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
    from csst_dask.outputs import write_atomically

    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    end = end_of(Path(path))
    if launch and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        status = _known_end(end, launch)
        if status is not None:
            return status
    status, text = _train(Path(path))
    if status:
        print(f"csst-dask: {text}", file=sys.stderr, flush=True)
        if launch:
            write_atomically(end, json.dumps({"launch": launch, "status": status, "text": text}).encode())
    return status


def _known_end(end: Path, launch: str) -> int | None:
    """Exit status of a rank of this launch that no restart can help.

    Launches that nobody gave a name are all called the same: an end that was written before this launcher started is
    that of another one.
    """
    import psutil

    if not end.exists() or end.stat().st_mtime < psutil.Process(os.getppid()).create_time():
        return None
    known = json.loads(end.read_text())
    return int(known["status"]) if known["launch"] == launch else None


def _train(path: Path) -> tuple[int, str]:
    """Exit status and what there is to say."""
    from csst_dask.config import TrainingConfig
    from csst_dask.errors import ConfigError, describe_error, is_full
    from csst_dask.training import fit, load_samples

    spec, teller = json.loads(path.read_text()), _Teller()
    config = TrainingConfig.model_validate(spec["config"])
    try:
        samples = load_samples(spec["store"], config.bands)
        split = samples.split(config.seed, config.split, config.chips)
        about = {name: spec[name] for name in ("data", "command", "parts")}
        fit(spec["task"], samples, split, config, Path(spec["out"]), teller, alive=teller.alive, **about)
    except ConfigError as error:
        return WRONG, str(error)
    except OSError as error:
        if not is_full(error):
            raise
        return WRONG, describe_error(error)
    except KeyboardInterrupt as stopped:
        return STOPPED, str(stopped) or "interrupted"
    return 0, ""


class _Teller:
    """Progress and signs of life as lines; not more often than anybody can read."""

    def __init__(self) -> None:
        self._told = self._alive = -EVERY

    def __call__(self, epoch: int, epochs: int, step: int, steps: int, loss: float) -> None:
        now = time.monotonic()
        if now - self._told >= EVERY or step == steps:
            self._told = self._alive = now
            _say([epoch, epochs, step, steps, loss])

    def alive(self) -> None:
        """Say that something has been done."""
        now = time.monotonic()
        if now - self._alive >= EVERY:
            self._alive = now
            _say(None)


def _say(what: list[float] | None) -> None:
    """A line in one piece: ranks under torchrun share one output."""
    sys.stdout.write(f"{TOLD}{json.dumps(what)}\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(143)


def _end(path: str) -> None:
    """Leave without waiting for what a library may still do: a group of ranks that has lost one may hang."""
    try:
        status = main(path)
    except BaseException:  # the launcher shows the last line
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _end(sys.argv[1])
