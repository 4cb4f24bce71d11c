"""Plans of the foreign benchmark: its two sets, and what is settled of each chip before it is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from csst_dask.instrument.focal_plane import DETECTORS
from csst_dask.schema import BANDS

MOST_STARS = 200_000
EMPTY_EVERY = 10
"""One chip in so many holds no star that counts."""
_GOLDEN = (5**0.5 - 1) / 2

Range = tuple[float, float]


@dataclass(frozen=True)
class Ranges:
    """From what the parameters of a set's chips are drawn; pairs are least and largest values."""

    seed: int
    prefix: int
    """First four digits of the exposures' numbers."""
    place: tuple[float, float]
    """Middle of the chips' sky, deg ICRS."""
    exposures: tuple[float, ...]
    """Exposure times, s."""
    luminosity: tuple[str, ...]
    slope: Range
    """Of the bright side of a broken power law, dex/mag."""
    faint_slope: Range
    break_mag: Range
    """g mag, as all of the luminosity function."""
    cut_mag: Range
    burst_mag: Range
    burst_share: Range
    red_share: Range
    """Red dwarfs among the faintest stars."""
    blue_colour: Range
    """g - i of the turn-off, mag."""
    clump_share: Range
    gradient: Range
    """e-foldings of the star density across the frame."""
    psf: tuple[str, ...]
    fwhm: Range
    """arcsec, before the pixel."""
    ellipticity: Range
    halo: Range
    """Share of a star's light in its halo and spikes."""
    sky: Range
    """Of the band's nominal sky."""
    tilt: Range
    """Sky from corner to corner, of its level."""
    bowl: Range
    """Sky in the corners over that in the middle, of its level."""
    read_noise: Range
    """e-"""
    full_well: Range
    """e-"""
    galaxies: Range
    cosmic_rays: Range
    """Hits in 150 s."""
    hot_pixels: Range
    dead_columns: Range
    missed: Range
    """Share of cosmic rays and hot pixels without a flag, on chips with imperfect flags."""
    cores_hit: Range
    """Share of the brighter stars whose core has a cosmic ray's flag there."""


SETS = {
    "benchmark": Ranges(
        seed=7_301_955, prefix=4101, place=(144.2, -40.7), exposures=(150.0, 150.0, 150.0, 250.0),
        luminosity=("broken", "cut", "burst", "turnover"), slope=(0.15, 0.38), faint_slope=(0.0, 0.22),
        break_mag=(19.5, 26.0), cut_mag=(23.5, 28.5), burst_mag=(18.0, 26.0), burst_share=(0.05, 0.5),
        red_share=(0.1, 0.9), blue_colour=(0.3, 1.0), clump_share=(0.0, 0.7), gradient=(0.0, 2.5),
        psf=("optical", "moffat", "gaussians"), fwhm=(0.105, 0.175), ellipticity=(0.0, 0.15), halo=(0.005, 0.04),
        sky=(0.6, 2.2), tilt=(-0.35, 0.35), bowl=(-0.12, 0.2), read_noise=(4.0, 7.0), full_well=(75e3, 110e3),
        galaxies=(600.0, 14_000.0), cosmic_rays=(400.0, 6000.0), hot_pixels=(2e3, 6e4), dead_columns=(0.0, 12.0),
        missed=(0.02, 0.3), cores_hit=(0.01, 0.2),
    ),
    "twin": Ranges(
        seed=2_046_117, prefix=4202, place=(251.1, -74.6), exposures=(150.0, 150.0, 120.0, 200.0, 300.0),
        luminosity=("turnover", "burst", "broken", "cut"), slope=(0.10, 0.45), faint_slope=(-0.05, 0.15),
        break_mag=(18.5, 26.5), cut_mag=(22.5, 28.0), burst_mag=(19.0, 25.5), burst_share=(0.1, 0.7),
        red_share=(0.0, 0.7), blue_colour=(0.15, 1.3), clump_share=(0.0, 0.85), gradient=(0.0, 3.5),
        psf=("moffat", "gaussians", "optical"), fwhm=(0.12, 0.20), ellipticity=(0.02, 0.2), halo=(0.002, 0.06),
        sky=(0.4, 3.0), tilt=(-0.5, 0.5), bowl=(-0.2, 0.1), read_noise=(3.5, 8.5), full_well=(60e3, 130e3),
        galaxies=(300.0, 20_000.0), cosmic_rays=(200.0, 9000.0), hot_pixels=(5e2, 1e5), dead_columns=(0.0, 20.0),
        missed=(0.05, 0.45), cores_hit=(0.0, 0.3),
    ),
}  # fmt: skip
"""``benchmark`` is frozen, and nothing is chosen or learned by it; choices are made by ``twin``."""


@dataclass(frozen=True)
class Plan:
    """What is settled of a chip before it is drawn."""

    set: str
    index: int
    detector: int
    band: str
    n_star: int
    """Stars brighter than `csst_dask.schema.STAR_LIMIT` in g, on a full-size frame."""
    exptime: float
    """s"""
    flags: str
    """``perfect``, ``imperfect`` or ``none``."""
    ra: float
    """Pointing, deg ICRS."""
    dec: float
    theta: float
    """Position angle, deg."""

    @property
    def obs_id(self) -> str:
        """Exposure, 11 digits."""
        return f"{SETS[self.set].prefix}{self.index:07d}"

    @property
    def name(self) -> str:
        """``<obs_id>-<detector>``."""
        return f"{self.obs_id}-{self.detector:02d}"

    def rng(self, *purpose: int) -> np.random.Generator:
        """Random numbers of one purpose; no other chip and no other purpose shares them."""
        return np.random.default_rng(np.random.SeedSequence([SETS[self.set].seed, self.index, *purpose]))


def plan_chip(name: str, index: int) -> Plan:
    """Settle one chip of a set; what other chips are asked for makes no difference.

    Bands follow each other in turn. Of ten chips one is empty; log10(1 + n_star) of the others is spread evenly from
    one star to `MOST_STARS`, so that no class edge has more chips near it than another place. Of two chips one has
    perfect flags.

    Parameters
    ----------
    name : {"benchmark", "twin"}
    index : int
        From 0.

    Returns
    -------
    Plan
    """
    ranges = SETS[name]
    band = BANDS[index % len(BANDS)]
    of_band = [d for d, spec in DETECTORS.items() if spec.band == band]
    rng = np.random.default_rng(np.random.SeedSequence([ranges.seed, index, 0]))
    empty = index % EMPTY_EVERY == EMPTY_EVERY - 1
    shift = np.random.default_rng(ranges.seed).random()
    level = (shift + _GOLDEN * (index - index // EMPTY_EVERY)) % 1
    least, most = np.log10(1.5), np.log10(MOST_STARS + 1)
    n_star = 0 if empty else round(10 ** (least + level * (most - least)) - 1)
    imperfect = ("imperfect", "imperfect", "none")[(index // 4) % 3]
    flags = "perfect" if (index + index // 2) % 2 == 0 else imperfect
    dec = ranges.place[1] + rng.uniform(-1, 1)
    ra = ranges.place[0] + rng.uniform(-1, 1) / np.cos(np.radians(dec))
    return Plan(
        set=name,
        index=index,
        detector=of_band[(index // len(BANDS)) % len(of_band)],
        band=band,
        n_star=n_star,
        exptime=float(rng.choice(ranges.exposures)),
        flags=flags,
        ra=float(ra),
        dec=float(dec),
        theta=float(rng.uniform(0, 360)),
    )
