"""Cores, GPUs, network and storage that a number of images takes in a given time, from measured costs of one image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from csst_dask.errors import ConfigError

GB = 1e9
MB = 1e6
Pixels = Literal["lossless", "quantised", "none"]


@dataclass(frozen=True)
class Costs:
    """What one image takes. The defaults are those of docs/scaling.md, which names the commands that measured them;
    ``benchmarks/scaling.py --out FILE`` measures them elsewhere."""

    read: Mapping[str, float] = field(
        default_factory=lambda: {"image": 340 * MB, "weights": 340 * MB, "flags": 170 * MB}
    )
    """Bytes of its FITS files: image and weights in float32, flags in uint16."""
    written: Mapping[str, float] = field(
        default_factory=lambda: {"lossless": 284 * MB, "quantised": 98 * MB, "none": 0.87 * MB}
    )
    """Bytes that go to the store, by ``ingest.pixels``."""
    ingest: Mapping[str, float] = field(default_factory=lambda: {"lossless": 2.6, "quantised": 2.0, "none": 0.8})
    """CPU time of reading, reducing and storing, s, by ``ingest.pixels``."""
    predict: float = 0.015
    """CPU time of the two shipped networks, s."""
    scheduler: float = 0.0007
    """CPU time of the scheduler, s."""
    client: float = 0.0016
    """CPU time of the client: finding files, submitting, the ledger, s."""
    worker_memory: float = 1.0 * GB
    """Resident bytes of a worker process, however many images it has done."""
    client_memory: float = 4500.0
    """Bytes that the client keeps of an image of the survey, whether it is in flight or not."""
    device: float = 0.15
    """CPU time that is left where a GPU reduces and no pixels are stored, s. A limit, not a measurement: what copying
    the files from the system's cache takes."""

    @classmethod
    def load(cls, path: str | Path) -> Costs:
        """Read what ``benchmarks/scaling.py --out`` wrote; what the file leaves out has its default.

        Raises
        ------
        ConfigError
            If the file is missing, or holds something else.
        """
        try:
            found = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path}: no costs can be read ({error}); benchmarks/scaling.py --out writes them"
            ) from None
        shapes = asdict(cls())
        if not isinstance(found, dict) or set(found) - set(shapes):
            raise ConfigError(f"{path}: expected an object with some of {', '.join(sorted(shapes))}")
        for name, value in found.items():
            if not (_is_table(value) if isinstance(shapes[name], dict) else _is_cost(value)):
                kind = "an object of numbers" if isinstance(shapes[name], dict) else "a number"
                raise ConfigError(f"{path}: found {name} {value!r}, expected {kind}, none of them negative")
        return cls(**found)

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1)


def _is_cost(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < float("inf")


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_cost(cost) for cost in value.values())


@dataclass(frozen=True)
class Site:
    """What a computing centre has for the job."""

    nodes: int = 4
    cores: int = 64
    """Of a node."""
    gpus: int = 0
    """Of a node."""
    memory: float = 256 * GB
    """Of a node, bytes."""
    reading: float = 10 * GB
    """Rate at which the file system or object store is read by all nodes together, bytes/s."""
    writing: float = 5 * GB
    """Rate at which it is written, bytes/s."""
    network: float = 3 * GB
    """Rate at which a node reaches it, bytes/s: 25 Gbit/s."""
    pcie: float = 25 * GB
    """Rate at which a GPU is fed, bytes/s: half of a link of the fourth generation."""


@dataclass(frozen=True)
class Need:
    """One resource."""

    what: str
    needed: float
    have: float
    unit: str

    @property
    def load(self) -> float:
        """Needed over had; above 1 it does not suffice."""
        return self.needed / self.have


@dataclass(frozen=True)
class Plan:
    """What a job takes."""

    images: int
    hours: float
    needs: tuple[Need, ...]
    stored: float
    """Bytes that the store grows to."""
    client_memory: float
    """Bytes that the client keeps of the survey."""

    @property
    def bottleneck(self) -> Need:
        """What runs out first."""
        return max(self.needs, key=lambda need: need.load)

    @property
    def takes(self) -> float:
        """Hours that the job takes with what the site has."""
        return self.hours * self.bottleneck.load

    @property
    def fits(self) -> bool:
        """Whether it is done in time."""
        return self.bottleneck.load <= 1


def plan(
    images: int, hours: float, costs: Costs | None = None, site: Site | None = None, pixels: Pixels = "none"
) -> Plan:
    """What a job takes of each resource.

    Needs are rates: cost of an image, times images, over time. Whatever overlaps (reading, computing, writing) is
    taken to overlap fully, so a job takes as long as its most loaded resource.

    Parameters
    ----------
    images : int
        Detector images.
    hours : float
        In which they are to be done.
    costs : Costs, optional
    site : Site, optional
        With GPUs, they reduce the pixels.
    pixels : {"lossless", "quantised", "none"}
        What the store keeps of the pixels.

    Returns
    -------
    Plan

    Raises
    ------
    ConfigError
        If a number is not positive, or the costs know nothing of ``pixels``.
    """
    costs, site = costs or Costs(), site or Site()
    if images < 1 or not 0 < hours < float("inf"):
        raise ConfigError(f"found {images} images in {hours:g} hours; expected a positive number of both")
    rates = site.memory, site.reading, site.writing, site.network, site.pcie
    if min(site.nodes, site.cores) < 1 or site.gpus < 0 or not all(value > 0 for value in rates):
        raise ConfigError(f"found {site}; expected at least one node and one core, and positive rates")
    if pixels not in costs.written or pixels not in costs.ingest:
        raise ConfigError(f"no costs with ingest.pixels {pixels}; found {', '.join(costs.written)}")
    rate = images / (3600 * hours)
    read, written, work = sum(costs.read.values()), costs.written[pixels], costs.ingest[pixels] + costs.predict
    if site.gpus:
        # what a GPU leaves to the processor, and storing pixels, which it does not do
        work = costs.device + costs.predict + max(costs.ingest[pixels] - costs.ingest.get("none", 0.0), 0.0)
    needs = [
        Need("cores", rate * work, site.nodes * site.cores, "cores"),
        Need("memory of workers", rate * work * costs.worker_memory / GB, site.nodes * site.memory / GB, "GB"),
        Need("reading from storage", rate * read / GB, site.reading / GB, "GB/s"),
        Need("writing to storage", rate * written / GB, site.writing / GB, "GB/s"),
        Need("network of the nodes", rate * (read + written) / GB, site.nodes * site.network / GB, "GB/s"),
        Need("scheduler", rate * costs.scheduler, 1, "cores"),
        Need("client", rate * costs.client, 1, "cores"),
    ]
    if site.gpus:
        needs.append(Need("GPUs, by what feeds them", rate * read / site.pcie, site.nodes * site.gpus, "GPUs"))
    return Plan(images, hours, tuple(needs), images * written, images * costs.client_memory)
