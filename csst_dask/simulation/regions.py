"""Places to point at: the regions of Lai et al. (2026), and any other by its coordinates."""

from __future__ import annotations

from dataclasses import dataclass

from csst_dask.errors import ConfigError

MIXED = "mixed"
"""Not a place: pointings all over the sky whose star counts fill the density classes evenly."""
DEMO = "demo"
"""Not a place either: a strip of touching fields from an empty one to the most crowded."""


@dataclass(frozen=True)
class Region:
    """A box on the sky."""

    ra: tuple[float, float]
    """deg ICRS"""
    dec: tuple[float, float]
    """deg ICRS"""
    n_star: tuple[float, float] = (0.0, float("inf"))
    """Least and largest number of stars on one detector, as published."""
    dust: float | None = None
    """Mean extinction against the smooth law, where it is known; None leaves the clouds to chance."""


REGIONS = {
    "galactic_l90_b20": Region((286.6, 291.5), (57.8, 60.3), (0, 3e3)),
    "galactic_l90_b30": Region((266.7, 271.9), (59.8, 62.3), (0, 1e3)),
    "galactic_l90_b50": Region((229.3, 233.8), (54.8, 57.3), (0, 6e2)),
    "simulation_default": Region((236.1, 256.9), (32.0, 48.0), (1e2, 8e2)),
    "fornax": Region((38.4, 41.5), (-35.8, -33.2), (1e2, 4e3)),
    "sculptor": Region((13.5, 16.6), (-35.0, -32.5), (1e2, 1e3)),
    "galactic_center": Region((264.9, 265.3), (-28.5, -28.2), (1e4, 2e5), dust=1.0),
}
"""The seven regions of Lai et al. (2026), Table 1; the mean extinction of the last is set for its counts."""


def find_region(text: str) -> Region:
    """A region by name or coordinates.

    Parameters
    ----------
    text : str
        A name of `REGIONS`; or ``ra,dec``; or ``ra0:ra1,dec0:dec1``, deg ICRS.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    if text in REGIONS:
        return REGIONS[text]
    try:
        ra, dec = (tuple(float(part) for part in axis.split(":")) for axis in text.split(","))
        box = Region((ra[0], ra[-1]), (dec[0], dec[-1]))
        inside = 0 <= box.ra[0] <= box.ra[1] <= 360 and -90 <= box.dec[0] <= box.dec[1] <= 90
        if len(ra) > 2 or len(dec) > 2 or not inside:
            raise ValueError(text)
    except ValueError:
        raise ConfigError(
            f"simulation.region: found {text!r}; expected {MIXED}, {DEMO}, one of {', '.join(REGIONS)}, a place such "
            "as 266.4,-28.9 or a box such as 264.9:265.3,-28.5:-28.2 (deg ICRS)"
        ) from None
    return box
