"""Whether there still is a cluster, and how large it is."""

from __future__ import annotations

import asyncio
import time

from distributed import Client

from csst_dask.runners.faults import ClusterLost

PROBE = 2.0
"""Seconds between questions to the scheduler."""


class ClusterWatch:
    """Asks the scheduler now and then, without waiting for its answers.

    Parameters
    ----------
    client : distributed.Client
    patience : float
        Time that a scheduler may be silent, or a cluster without a worker, s.
    """

    def __init__(self, client: Client, patience: float):
        self.client, self.patience = client, patience
        self.threads = sum(client.nthreads().values())
        """Of workers that run."""
        self._paused = 0
        """Threads of those that take no tasks."""
        self._probing = False
        self._answered = self._manned = time.monotonic()
        """When the scheduler answered last, and when a worker ran last."""

    def look(self) -> None:
        """Ask again if it is time.

        Raises
        ------
        ClusterLost
            If the scheduler is gone or silent, or no worker has run for too long.
        """
        now = time.monotonic()
        if self.client.status in ("closing", "closed"):
            raise ClusterLost("the scheduler is gone")
        if self.threads:
            self._manned = now
        elif (alone := now - self._manned) > self.patience:
            raise ClusterLost(
                f"all workers have been paused for {alone:.0f} s, as they are when their memory is full; give them "
                "more memory, or start them again, then run it again"
                if self._paused
                else f"no worker has been there for {alone:.0f} s; start workers, then run it again"
            )
        if (silent := now - self._answered) > self.patience + PROBE:
            raise ClusterLost(f"the scheduler has not answered for {silent:.0f} s; run the same command again")
        if not self._probing and silent > PROBE:
            self._probing = True
            assert self.client.loop is not None
            self.client.loop.add_callback(self._probe)

    async def _probe(self) -> None:
        try:
            known = await self.client.scheduler.ncores()  # type: ignore[union-attr]
            running = await self.client.scheduler.ncores_running()  # type: ignore[union-attr]
            self.threads = sum(running.values())
            self._paused = sum(known.values()) - self.threads
            self._answered = time.monotonic()
        except Exception:  # of the connection; the client finds its scheduler again, or closes
            await asyncio.sleep(PROBE)
        finally:
            self._probing = False
