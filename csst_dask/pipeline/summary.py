"""What a stage did: counts, reasons, and what its tasks took."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

DONE, UNEXPECTED, REJECTED = 0, 1, 3
"""Exit statuses: all done, something is to be tried again, some inputs are rejected or have failed for good."""


@dataclass
class TaskStats:
    """What the tasks of a stage took."""

    peak_memory: int = 0
    """Largest resident memory of any worker, byte."""
    lost_workers: int = 0
    """Workers that died with tasks; one that Dask starts again in the place of another is another."""
    repeats: int = 0
    """Tasks that were tried again for any reason."""


@dataclass
class Summary:
    """What a stage did."""

    done: int = 0
    rejected: int = 0
    """The fault of their files."""
    failed: int = 0
    """The fault of the machine; the next run tries them again."""
    given_up: int = 0
    """Failed in so many runs that only ``--retry-failed`` tries them again."""
    skipped: int = 0
    """Finished by an earlier run."""
    changed: list[str] = field(default_factory=list)
    """Chips whose files are not those that they were ingested from; ``--update`` takes them up."""
    files: int = 0
    """Inputs that gave no chip."""
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)
    """Lines for the user."""
    tasks: TaskStats = field(default_factory=TaskStats)

    @property
    def exit_status(self) -> int:
        """0 all done, 1 some chips will be tried again, 3 some inputs are rejected or failed for good."""
        if self.failed:
            return UNEXPECTED
        return REJECTED if self.rejected or self.files or self.given_up else DONE

    def add(self, other: Summary) -> None:
        """Add what another stage of the same kind did."""
        for name in ("done", "rejected", "failed", "given_up", "skipped", "files", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.reasons.update(other.reasons)
        self.changed += other.changed
        self.remarks += other.remarks
        self.tasks.peak_memory = max(self.tasks.peak_memory, other.tasks.peak_memory)
        self.tasks.lost_workers += other.tasks.lost_workers
        self.tasks.repeats += other.tasks.repeats
