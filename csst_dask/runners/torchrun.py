"""Ranks of one training under torchrun on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import psutil

from csst_dask.config import TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.runners.gang import PATIENCE, POLL, SILENCE, START, GangBroken, Progress, tell_restart
from csst_dask.runners.rank_process import events_in, last_words


def run_torchrun(
    spec: Path,
    ranks: int,
    config: TrainingConfig,
    progress: Progress | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Train under torchrun on this machine.

    torchrun starts the ranks again when one fails. It does not notice that all have hung, or the one that others do
    not wait for: then it is ended with its ranks, and started again from the last checkpoint.

    Parameters
    ----------
    spec : Path
        From `csst_dask.training.rank.write_spec`.
    ranks : int
    config : TrainingConfig
        ``restarts`` is torchrun's ``--max-restarts``, and how often torchrun itself is started again.
    progress : callable, optional
    tell : callable
        Called with a line when the ranks have hung.

    Raises
    ------
    ConfigError, KeyboardInterrupt
        As for `csst_dask.runners.train.train_network`.
    RuntimeError
        If ranks failed or hung more often than they may.
    """
    for attempt in range(config.restarts + 1):
        try:
            return _launch(spec, ranks, config, progress)
        except GangBroken as broken:
            tell_restart(broken, attempt, config.restarts, tell)


def _launch(spec: Path, ranks: int, config: TrainingConfig, progress: Progress | None) -> None:
    from csst_dask.training.rank import LEASH, TOLD

    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
        f"--max-restarts={config.restarts}", "-m", "csst_dask.training.rank", str(spec),
    ]  # fmt: skip
    said: deque[str] = deque(maxlen=200)
    process = subprocess.Popen(
        command, env=os.environ | {LEASH: "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    watch = _Watch(process)
    with process:
        watch.start()
        try:
            for line in process.stdout or ():
                found = events_in(line, TOLD, said)
                # what is no sign of life may be of torchrun, which starts ranks again
                watch.hear(SILENCE * config.timeout if found else START)
                for step in found:
                    if step and progress:
                        progress(*step)
        except BaseException:
            _end(process)
            raise
    if watch.hung:
        raise GangBroken(f"no rank has moved for {watch.patience:g} s")
    if process.returncode:
        _raise_for(spec, process.returncode, said)


class _Watch(threading.Thread):
    """Ends torchrun and its ranks if nothing is heard of them for too long."""

    def __init__(self, process: subprocess.Popen) -> None:
        super().__init__(daemon=True)
        self.process, self.hung = process, False
        self.hear(START)

    def hear(self, patience: float) -> None:
        """Something was heard; the next must come within so many seconds."""
        self.heard, self.patience = time.monotonic(), patience

    def run(self) -> None:
        while self.process.poll() is None:
            time.sleep(POLL)
            if time.monotonic() - self.heard > self.patience:
                self.hung = True
                with suppress(psutil.Error):  # ranks that are stopped do not end when they lose standard input
                    ranks = psutil.Process(self.process.pid).children(recursive=True)
                    self.process.kill()
                    for rank in ranks:
                        with suppress(psutil.Error):
                            rank.kill()
                return


def _end(process: subprocess.Popen) -> None:
    """Ask torchrun and its ranks to stop, with a checkpoint; ranks that do not end when they lose standard input."""
    process.terminate()
    if process.stdout:  # a full pipe would hold them up
        threading.Thread(target=process.stdout.read, daemon=True).start()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()


def _raise_for(spec: Path, status: int, said: deque[str]) -> NoReturn:
    from csst_dask.training.rank import WRONG, end_of

    end = end_of(spec)
    if end.exists():
        known = json.loads(end.read_text())
        raise (ConfigError if known["status"] == WRONG else KeyboardInterrupt)(known["text"])
    raise RuntimeError(f"torchrun ended with exit status {status}, run it again to go on: {last_words(said)}")
