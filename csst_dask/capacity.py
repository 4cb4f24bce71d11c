"""Cores, GPUs, network and storage that a number of images takes in a given time, from measured costs of one image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import ceil
from pathlib import Path
from typing import Literal

from csst_dask.errors import ConfigError

GB = 1e9
Pixels = Literal["lossless", "quantised", "none"]


@dataclass(frozen=True)
class Costs:
    """What one image takes. The defaults are those that docs/scaling.md tells of; ``benchmarks/scaling.py --out FILE``
    measures them elsewhere."""

    read: float = 0.851 * GB
    """Bytes of its three FITS files: image and weights in float32, flags in uint16."""
    stored: Mapping[str, float] = field(
        default_factory=lambda: {"lossless": 0.263 * GB, "quantised": 0.099 * GB, "none": 0.0007 * GB}
    )
    """Bytes that it takes in the store, by ``ingest.pixels``."""
    ingest: Mapping[str, float] = field(default_factory=lambda: {"lossless": 4.0, "quantised": 3.0, "none": 0.6})
    """CPU time of reading, reducing and storing, s, by ``ingest.pixels``."""
    predict: float = 0.01
    """CPU time of the two shipped networks, s."""
    device: float = 0.05
    """CPU time that is left where a GPU reduces, without storing pixels, s. Not measured."""
    central: float = 0.0006
    """CPU time of the scheduler and the client together, s."""
    memory: float = 1.2 * GB
    """Of a worker process, bytes."""

    @classmethod
    def load(cls, path: str | Path) -> Costs:
        """Read what ``benchmarks/scaling.py --out`` wrote.

        Raises
        ------
        ConfigError
            If the file is missing, or holds something else.
        """
        names = {one.name for one in fields(cls)}
        try:
            found = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path}: no costs can be read ({error}); benchmarks/scaling.py --out writes them"
            ) from None
        if not isinstance(found, dict) or set(found) - names:
            raise ConfigError(f"{path}: expected an object with some of {', '.join(sorted(names))}")
        return cls(**found)

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1)


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
    storage: float = 10 * GB
    """Rate at which the file system or object store serves all nodes together, bytes/s."""
    network: float = 3 * GB
    """Rate at which a node reaches the storage, bytes/s: 25 Gbit/s."""
    pcie: float = 25 * GB
    """Rate at which a GPU is fed, bytes/s: half of a link of the fifth generation."""


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
        if not self.needed:
            return 0.0
        return self.needed / self.have if self.have else float("inf")


@dataclass(frozen=True)
class Plan:
    """What a job takes."""

    images: int
    hours: float
    needs: tuple[Need, ...]
    stored: float
    """Bytes that the store grows to."""

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
    if images < 1 or not hours > 0:
        raise ConfigError(f"found {images} images in {hours:g} hours; expected a positive number of both")
    if min(site.nodes, site.cores) < 1 or site.gpus < 0 or min(site.storage, site.network, site.memory, site.pcie) <= 0:
        raise ConfigError(f"found {site}; expected at least one node and one core, and positive rates")
    if pixels not in costs.stored or pixels not in costs.ingest:
        raise ConfigError(f"no costs with ingest.pixels {pixels}; found {', '.join(costs.stored)}")
    rate = images / (3600 * hours)
    work = costs.ingest[pixels] + costs.predict
    if site.gpus:
        # what a GPU leaves to the processor, and storing pixels, which it does not do
        work = costs.device + costs.predict + costs.ingest[pixels] - costs.ingest["none"]
    moved = costs.read + costs.stored[pixels]
    busy = site.nodes * site.cores  # each has a worker, whether it is needed or not
    needs = [
        Need("cores", rate * work, busy, "cores"),
        Need(
            "memory of workers", min(ceil(rate * work), busy) * costs.memory / GB, site.nodes * site.memory / GB, "GB"
        ),
        Need("storage, reading and writing", rate * moved / GB, site.storage / GB, "GB/s"),
        Need("network of the nodes", rate * moved / GB, site.nodes * site.network / GB, "GB/s"),
        Need("scheduler and client", rate * costs.central, 1, "cores"),
    ]
    if site.gpus:
        needs.append(Need("GPUs, by what feeds them", rate * costs.read / site.pcie, site.nodes * site.gpus, "GPUs"))
    return Plan(images, hours, tuple(needs), images * costs.stored[pixels])
