"""From a configuration to exposures: where each one points, and what sky it finds there."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from healpix_geo import nested
from numpy.typing import NDArray

from csst_dask.config import SimulationConfig, load_config
from csst_dask.errors import ConfigError
from csst_dask.instrument.distortion import DISTORTION
from csst_dask.instrument.focal_plane import DETECTORS, IMAGING_DETECTORS, frame_center, unit_vectors
from csst_dask.schema import BANDS, STAR_LIMIT
from csst_dask.simulation.artefacts import draw_trails
from csst_dask.simulation.exposure import Exposure
from csst_dask.simulation.physics import Optics, SkyPhysics, draw_optics, draw_sky
from csst_dask.simulation.pointing import Target, expected_stars, seek
from csst_dask.simulation.regions import DEMO, MIXED, Region, find_region
from csst_dask.simulation.stars import DEEP_LIMIT, cloudiness
from csst_dask.simulation.systems import CLUSTERS
from csst_dask.simulation.wide import Laws, draw_exposure, draw_laws

FIRST_LIGHT = datetime(2027, 8, 10, 8, 0)
CADENCE = timedelta(seconds=285)
FIELD_ORDER = 3
"""HEALPix order of the cells that name the fields of a survey of one sky."""
SURVEY_ANGLE = -113.4333
"""Image rotation of the wide survey's simulations, deg."""
MOST_STARS = 50_000_000
"""On a detector; more do not fit into a task's memory."""
FIELD_REACH, CHIP_REACH = 0.7, 0.14
"""From the boresight to the farthest corner of an imaging detector, and from a detector's middle to its corner, deg."""
CROWDED_SKY, MOST_WIDE = 1e4, 4e5
"""Stars on a detector from which a wide sky must have faint ones, and the most that it has."""
DEMO_START, DEMO_STEP = (275.6, -33.6), 0.185
DEMO_COUNTS = (0.0, 40.0, 450.0, 4_000.0, 30_000.0, 150_000.0)


def plan_survey(config: SimulationConfig) -> list[Exposure]:
    """Draw the exposures of a survey.

    Parameters
    ----------
    config : SimulationConfig

    Returns
    -------
    list of Exposure
        One a pointing. An exposure depends on the seed and its own index alone (and on the surveys to avoid), so a
        longer survey begins with the shorter one.

    Raises
    ------
    ConfigError
        If the region or a detector does not exist, star counts are given for another number of exposures, or no
        place is far enough from the surveys to avoid.
    """
    return _plan(config, ())


def _plan(config: SimulationConfig, chain: tuple[Path, ...]) -> list[Exposure]:
    detectors = tuple(dict.fromkeys(config.detectors or IMAGING_DETECTORS))
    wrong = [d for d in detectors if d not in DETECTORS or not DETECTORS[d].imaging]
    if wrong:
        raise ConfigError(
            f"simulation.detectors: {wrong} are not imaging detectors; choose from {list(IMAGING_DETECTORS)}"
        )
    for name in config.mix or (config.region,):
        if name not in (MIXED, DEMO):
            find_region(name)
    if config.star_counts is not None and len(config.star_counts) != config.exposures:
        raise ConfigError(
            f"simulation.star_counts: {len(config.star_counts)} counts for {config.exposures} exposures; give one each"
        )
    if config.star_counts is not None and max(config.star_counts) > MOST_STARS:
        raise ConfigError(
            f"simulation.star_counts: found {max(config.star_counts)}; expected at most {MOST_STARS} on a detector"
        )
    avoid = _chips_of(config.avoid, chain)
    return [_plan_exposure(config, index, detectors, avoid) for index in range(config.exposures)]


def _chips_of(paths: tuple[Path, ...], chain: tuple[Path, ...]) -> NDArray[np.float64]:
    """(n, 3) unit vectors of the middles of all chips of other surveys; the chain led here."""
    places: list[tuple[float, float]] = []
    for path in (path.resolve() for path in paths):
        if path in chain:
            raise ConfigError(f"simulation.avoid: {path} avoids itself, by way of {len(chain)} surveys; leave one out")
        for exposure in _plan(load_config(path).simulation, (*chain, path)):
            places += [frame_center(exposure.wcs(detector)) for detector in exposure.detectors]
    return unit_vectors(*np.array(places).reshape(-1, 2).T)


def _pick_detectors(detectors: tuple[int, ...], few: int | None, rng: np.random.Generator) -> tuple[int, ...]:
    """Some of the detectors: one of each band in a random order, then another of each."""
    if few is None or few >= len(detectors):
        return detectors
    of_band = {band: [d for d in rng.permutation(detectors) if DETECTORS[d].band == band] for band in BANDS}
    order = [band for band in rng.permutation(BANDS) if of_band[band]]
    picked: list[int] = []
    while len(picked) < few:
        picked += [int(of_band[band].pop()) for band in order if of_band[band]]
    return tuple(sorted(picked[:few]))


def _plan_exposure(
    config: SimulationConfig, index: int, detectors: tuple[int, ...], avoid: NDArray[np.float64]
) -> Exposure:
    rng = np.random.default_rng([config.seed, index])
    name = _region_of(config, rng)
    detectors = _pick_detectors(detectors, config.detectors_per_exposure, rng)
    optics = draw_optics(config.physics, rng)
    trails = draw_trails(rng)
    sky = draw_sky(config.physics, rng) if config.physics == "nominal" or name in (MIXED, DEMO) else _common_sky(config)
    sky = _with_options(sky, config)
    ra, dec, theta, sky = _point(config, name, index, sky, detectors, avoid, rng)
    exptime: float = config.exptime
    wide: Laws | None = None
    if config.physics == "wide":
        exptime, optics, sky, wide = _wide_exposure(config, index, sky, ra, dec)
    coverage = rng.random()
    if coverage < config.empty:
        sky = replace(sky, footprint=0.0)
    elif coverage < config.empty + config.partial:
        sky = replace(sky, footprint=float(10 ** rng.uniform(-1.0, 0.0)), footprint_order=9)
    return Exposure(
        index=index,
        obs_id=f"10{config.seed:06d}{index:06d}",
        start=FIRST_LIGHT + index * CADENCE,
        exptime=exptime,
        ra=ra,
        dec=dec,
        theta=theta,
        field=f"sim{config.seed}-{index:05d}" if name in (MIXED, DEMO) else f"hp8-{_field_cell(ra, dec)}",
        detectors=detectors,
        seed=config.seed,
        sky=sky,
        optics=optics,
        trails=trails if config.trails else (),
        ghosts=config.ghosts,
        cosmic_rays=config.cosmic_rays,
        defects=config.defects,
        spikes=config.spikes,
        distortion=DISTORTION if config.distortion else 0.0,
        psf=config.psf,
        wide=wide,
    )


def _wide_exposure(
    config: SimulationConfig, index: int, found: SkyPhysics, ra: float, dec: float
) -> tuple[float, Optics, SkyPhysics, Laws]:
    """A wide exposure with about as many stars on a detector as a Galaxy would have there, but by other laws."""
    count = min(expected_stars(ra, dec, config.seed, found), MOST_WIDE)
    exptime, optics, sky = draw_exposure(config.seed, index)
    sky = replace(
        sky, density=count, footprint=found.footprint, footprint_order=found.footprint_order,
        galaxies=sky.galaxies if config.galaxies else 0.0,
    )  # fmt: skip
    return exptime, optics, sky, draw_laws(config.seed, index, count > CROWDED_SKY)


def _known_clouds(sky: SkyPhysics, box: Region, seed: int) -> SkyPhysics:
    """The sky of a region whose mean extinction is known: random clouds vary it inside, and not as a whole."""
    if box.dust is None:
        return sky
    middle = (sum(box.ra) / 2, sum(box.dec) / 2)
    return replace(sky, dust=sky.dust * box.dust / cloudiness(*middle, seed, sky))


def _region_of(config: SimulationConfig, rng: np.random.Generator) -> str:
    if not config.mix:
        return config.region
    names, shares = list(config.mix), np.array(list(config.mix.values()), float)
    return str(names[int(rng.choice(len(names), p=shares / shares.sum()))])


def _common_sky(config: SimulationConfig) -> SkyPhysics:
    """One sky for all exposures of a region, since overlapping ones see the same stars."""
    return draw_sky(config.physics, np.random.default_rng([config.seed, 2**32 - 1]))


def _with_options(sky: SkyPhysics, config: SimulationConfig) -> SkyPhysics:
    """The choices of a configuration that concern the sky."""
    if config.clusters:
        sky = replace(sky, systems=sky.systems + CLUSTERS)
    if not config.galaxies:
        sky = replace(sky, galaxies=0.0)
    if config.depth == "deep":
        return replace(sky, limit=max(sky.limit, DEEP_LIMIT), members=True)
    return replace(sky, limit=STAR_LIMIT) if config.depth == "catalogue" else sky


def _field_cell(ra: float, dec: float) -> int:
    cell = nested.lonlat_to_healpix(np.array([ra]), np.array([dec]), np.uint8(FIELD_ORDER), num_threads=1)
    return int(cell[0])


def _far_enough(ra: float, dec: float, avoid: NDArray[np.float64], separation: float) -> bool:
    """Whether a whole focal plane keeps its distance from chips."""
    if not len(avoid):
        return True
    nearest = float((avoid @ unit_vectors(ra, dec)).max())
    return nearest < np.cos(np.deg2rad(separation + FIELD_REACH + CHIP_REACH))


def _point(
    config: SimulationConfig,
    name: str,
    index: int,
    sky: SkyPhysics,
    detectors: tuple[int, ...],
    avoid: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[float, float, float, SkyPhysics]:
    """Boresight, rotation and the sky there."""
    count = None if config.star_counts is None else float(config.star_counts[index])
    for _ in range(500):
        if name == MIXED:
            target = Target.draw(index, rng) if count is None else Target.of(count)
            if config.physics == "wide":
                target = replace(target, varied=False)
            theta = float(rng.uniform(-180, 180))
            ra, dec, found = seek(target, sky, config.seed, theta, detectors, rng)
        elif name == DEMO:
            ra, dec = DEMO_START[0] - index * DEMO_STEP / np.cos(np.deg2rad(DEMO_START[1])), DEMO_START[1]
            theta, found = 180.0, sky
        else:
            box = find_region(name)
            ra, dec = float(rng.uniform(*box.ra)), float(rng.uniform(*box.dec))
            theta, found = SURVEY_ANGLE, _known_clouds(sky, box, config.seed)
        if _far_enough(ra, dec, avoid, config.separation):
            break
    else:
        raise ConfigError(
            f"simulation.avoid: exposure {index} found no place more than {config.separation} deg from the chips of "
            f"{', '.join(map(str, config.avoid))}; choose a smaller separation or another region"
        )
    if count is None and name == DEMO:
        count = DEMO_COUNTS[index % len(DEMO_COUNTS)]
    if count is not None and name != MIXED:
        found = replace(found, systems=())
        found = replace(found, density=count / expected_stars(ra, dec, config.seed, replace(found, density=1.0)))
    return ra, dec, theta, found
