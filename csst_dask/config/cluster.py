"""The section of a configuration that says where tasks run."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from csst_dask.config.section import LocalPath, Section


class SlurmConfig(Section):
    """Workers as SLURM jobs."""

    memory: str = Field("4GiB", pattern=r"^[0-9.]+ ?[kMGT]i?B$")
    """Of a job."""
    walltime: str = "04:00:00"
    """Of a job, as SLURM writes it; jobs that have ended are replaced by others."""
    cpus: int = Field(1, ge=1)
    """CPUs for each worker. It computes in one thread; on a GPU, others read ahead."""
    gpus: int = Field(0, ge=0)
    """GPUs of a job; it has one worker for each."""
    gpu_type: str | None = None
    """Which, where a cluster has several kinds."""
    queue: str | None = None
    """Partition."""
    account: str | None = None
    """That is charged."""
    name: str = "csst-dask"
    """Of the jobs."""
    interface: str | None = None
    """Network by which workers reach the scheduler, such as ``ib0``."""
    directives: tuple[str, ...] = ()
    """More options of sbatch, such as ``--qos=long``."""
    prologue: tuple[str, ...] = ()
    """Shell commands before a worker starts, such as ``module load cuda``."""
    local_directory: LocalPath | None = None
    """Scratch folder on the nodes."""
    log_directory: LocalPath | None = None
    """Receives the jobs' output; by default the folder of the command."""
    wait: float = Field(3600.0, gt=0)
    """The first worker is waited for so long, s."""

    @property
    def walltime_seconds(self) -> int:
        """The walltime, s."""
        days, _, clock = self.walltime.rpartition("-")
        parts = [int(part) for part in clock.split(":")]
        if days:  # D-HH, D-HH:MM, D-HH:MM:SS
            hours, minutes, seconds = [*parts, 0, 0][:3]
        elif len(parts) == 3:
            hours, minutes, seconds = parts
        else:  # MM, MM:SS
            hours, (minutes, seconds) = 0, [*parts, 0][:2]
        return 86400 * int(days or 0) + 3600 * hours + 60 * minutes + seconds

    @field_validator("walltime", mode="before")
    @classmethod
    def _walltime(cls, walltime: object) -> object:
        if isinstance(walltime, int):  # YAML reads 04:00:00 as a number of seconds, to the base of sixty
            raise ValueError("write the walltime in quotation marks, such as '04:00:00'")
        if not re.fullmatch(r"\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2}", str(walltime)):
            raise ValueError("expected a walltime such as 04:00:00 or 2-12:00:00")
        return walltime

    @field_validator("directives")
    @classmethod
    def _options(cls, directives: tuple[str, ...]) -> tuple[str, ...]:
        for directive in directives:
            if not directive.startswith("-"):
                raise ValueError(f"{directive!r} is no option of sbatch; expected one such as '--qos=long'")
        return directives


class ClusterConfig(Section):
    """Where tasks run."""

    scheduler: str | None = None
    """Address of a running scheduler, ``tcp://host:port``."""
    scheduler_file: LocalPath | None = None
    """JSON file that a running scheduler wrote."""
    workers: int | None = Field(None, ge=1)
    """Worker processes of a cluster of our own; by default one per core or GPU."""
    minimum: int | None = Field(None, ge=0)
    """Instead of ``workers``: a cluster of our own grows and shrinks with its work, down to so many; by default one."""
    maximum: int | None = Field(None, ge=1)
    """Up to so many workers; by default one per core or GPU."""
    slurm: SlurmConfig | None = None
    """A cluster of our own has its workers in SLURM jobs."""
    dashboard: str = "127.0.0.1:0"
    """Address of the dashboard of a cluster of our own; ``:8787`` is open to the network."""

    @property
    def elsewhere(self) -> bool:
        """Whether the workers are not those that this machine would get by itself."""
        return bool(self.scheduler or self.scheduler_file or self.slurm)

    @model_validator(mode="after")
    def _consistent(self) -> ClusterConfig:
        if self.scheduler and self.scheduler_file:
            raise ValueError("give scheduler or scheduler_file, not both")
        if self.workers and (self.minimum is not None or self.maximum):
            raise ValueError("give workers, or minimum and maximum, not both")
        if self.maximum and self.minimum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self
