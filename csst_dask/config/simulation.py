"""The section of simulated surveys."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from csst_dask.config.section import LocalPath, Section


class SimulationConfig(Section):
    """A survey of simulated exposures with truth."""

    seed: int = Field(0, ge=0, lt=10**6)
    """One seed is one sky and one survey of it."""
    region: str = "mixed"
    """Name of a sky region, a place such as ``266.4,-28.9``, or a box ``264.9:265.3,-28.5:-28.2`` in deg ICRS;
    ``mixed`` seeks pointings all over the sky whose star counts fill the six density classes evenly."""
    mix: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Regions and their shares of the exposures, instead of one region."""
    avoid: tuple[LocalPath, ...] = ()
    """Configurations of other simulated surveys; pointings keep more than ``separation`` from theirs."""
    separation: float = Field(1.5, ge=0)
    """deg"""
    exposures: int = Field(1, ge=1)
    """Number of pointings."""
    detectors: tuple[int, ...] | None = None
    """Detectors of every exposure; by default all 18 imaging ones."""
    detectors_per_exposure: int | None = Field(None, ge=1)
    """Draw this many of the detectors for each exposure, spread over the bands."""
    exptime: float = Field(150.0, gt=0)
    """Exposure time, s."""
    star_counts: tuple[NonNegativeInt, ...] | None = None
    """Expected stars per detector for each exposure in turn: the model's density is scaled to them."""
    depth: Literal["paper", "catalogue", "deep"] = "paper"
    """A sky holds the stars to g = 26.5 and, in each band, to 1.5 mag below its limit. ``paper`` adds those that the
    physics ask for beyond, ``catalogue`` none, ``deep`` all to g = 28, and dwarf galaxies and clusters in full."""
    physics: Literal["nominal", "randomised", "off-nominal", "wide"] = "nominal"
    """Whether the laws of the sky and the instrument are drawn anew for each pointing, and how far from nominal;
    ``wide`` lets them be anything: star counts of no galaxy, faulty frames, and 30 to 300 s whatever ``exptime``."""
    galaxies: bool = True
    """Galaxies as well as stars."""
    clusters: bool = False
    """Globular clusters."""
    partial: float = Field(0.0, ge=0, le=1)
    """Share of the exposures that hang over an edge of the star catalogue's footprint."""
    empty: float = Field(0.0, ge=0, le=1)
    """Share of the exposures that lie outside of it: no stars at all."""
    cosmic_rays: bool = True
    """Tracks of charged particles."""
    defects: bool = True
    """Hot, warm and dead pixels and bad columns."""
    trails: bool = True
    """Satellite trails, on few exposures."""
    ghosts: bool = True
    """Reflections of very bright stars."""
    spikes: float = Field(0.0, ge=0, lt=0.5)
    """Share of the light in diffraction spikes; the telescope's mirror has no supports, so none by default."""
    distortion: bool = False
    """Optical distortion; level-1 files describe it by a TPV projection."""
    psf: LocalPath | None = None
    """Folder of measured point spread functions, instead of the model."""
    product: Literal["level1", "level0", "readout"] = "level1"
    """Files to write: calibrated triplets, raw counts on the assembled frame, or raw 16-strip read-out frames."""

    @model_validator(mode="after")
    def _shares(self) -> SimulationConfig:
        if self.partial + self.empty > 1:
            raise ValueError(f"partial {self.partial} and empty {self.empty} add up to more than 1")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())
