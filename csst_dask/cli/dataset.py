"""Describe the data set in a survey store: tables, pictures, and the scenes of some chips drawn once more."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml
from numpy.typing import NDArray

from csst_dask.config import SimulationConfig, build_config
from csst_dask.errors import ConfigError
from csst_dask.evaluation import dataset as evaluation
from csst_dask.evaluation.dataset_figures import plot_classes, plot_counts, plot_magnitudes
from csst_dask.schema import BLOCK_STATS, STAR_LIMIT
from csst_dask.simulation.exposure import GALAXY_LIMIT, Chip, Exposure, draw_scene
from csst_dask.simulation.survey import plan_survey
from csst_dask.store import SurveyStore

SAMPLE = 20
"""Chips of every density class whose scenes are drawn again."""

Progress = Callable[[int, int], None]


def describe_dataset(
    path: str, out: Path, *, sample: int = SAMPLE, seed: int = 0, progress: Progress | None = None
) -> Path:
    """Write the description of a data set.

    No store has magnitudes and galaxies; where it holds a simulated survey, the scenes of some chips are drawn again.

    Parameters
    ----------
    path : str
        Survey store with truth; it is only read.
    out : Path
        Folder for ``dataset.md`` and its tables and pictures; made if need be.
    sample : int
        Most chips of one density class to draw again.
    seed : int
        Of the splits and of the sample.
    progress : callable, optional
        Called with the scenes drawn so far and their number.

    Returns
    -------
    Path
        The description.

    Raises
    ------
    ConfigError
        If there is no store, or none of its chips is done and has truth.
    """
    store = SurveyStore.read(path)
    scalars = store.scalars()
    rows = np.flatnonzero((scalars["status"].values == "done") & (scalars["n_star"].values >= 0))
    if not len(rows):
        raise ConfigError(
            f"{path} has no chip that is done and has a truth count ({scalars.sizes['chip']} chips in all); ingest "
            "with truth catalogues or simulate with --store"
        )
    scalars = scalars.isel(chip=rows)
    words = (scalars[name].values for name in ("obs_id", "band", "field"))
    numbers = (scalars[name].values.astype(np.int64) for name in ("n_star", "n_bright"))
    chips = evaluation.Chips(*words, *numbers)
    out.mkdir(parents=True, exist_ok=True)
    splits, notes = split_chips(chips, scalars, seed)
    scenes, why = redraw(store.attrs, chips, scalars["detector"].values, sample, seed, progress)
    pictures = _draw(store, rows, chips, scenes, out)
    evaluation.split_table(chips.density_class, splits).to_csv(
        out / "composition.csv", index=False, float_format="%.3f"
    )
    evaluation.band_table(chips.band, chips.density_class).to_csv(out / "bands.csv")
    title = f"The data set {Path(path).name}"
    facts, sizes = _facts(store.attrs), stored_sizes(store)
    report = evaluation.describe(title, chips, splits, sizes, facts, [*notes, *why], pictures)
    (out / "dataset.md").write_text(report, encoding="utf-8")
    return out / "dataset.md"


def split_chips(
    chips: evaluation.Chips, scalars: xr.Dataset, seed: int = 0
) -> tuple[dict[str, evaluation.Rows], list[str]]:
    """Divide chips by field, as training does, and at random.

    Parameters
    ----------
    chips : Chips
    scalars : xarray.Dataset
        With ``ra`` and ``dec`` of the same chips.
    seed : int

    Returns
    -------
    splits : dict of str to Rows
    notes : list of str
        Why there is no split by field, where there is none.
    """
    from csst_dask.training.split import SEPARATION, split_by_field

    splits, notes = {}, []
    try:
        found = split_by_field(chips.field, chips.density_class, scalars["ra"].values, scalars["dec"].values, seed=seed)
        splits[f"by field ({SEPARATION} deg apart, classes alike)"] = (found.train, found.validation, found.test)
    except ConfigError as error:
        notes.append(f"the split by field, since {error}.")
    splits["at random"] = evaluation.random_split(len(chips), seed)
    return splits, notes


def planned_exposures(attrs: dict[str, Any], obs_ids: NDArray[np.str_]) -> dict[str, Exposure]:
    """Exposures of the simulated survey that a store says it holds.

    Parameters
    ----------
    attrs : dict
        Of the store; ``simulation`` describes the survey.
    obs_ids : (n,) str array
        Exposures of its chips.

    Returns
    -------
    dict of str to Exposure
        By ``obs_id``; none where the store knows of no simulation.

    Raises
    ------
    ConfigError
        If this version cannot read that description.
    """
    if "simulation" not in attrs:
        return {}
    survey = dict(attrs["simulation"])
    # an exposure's number is the end of its name
    start = f"10{survey.get('seed', 0):06d}"
    numbers = [int(name[8:]) for name in np.unique(obs_ids).tolist() if name.startswith(start) and len(name) == 14]
    if not numbers:
        return {}
    with tempfile.TemporaryDirectory(prefix="csst-dask-") as folder:
        config = _restored(survey | {"exposures": max(numbers) + 1}, Path(folder))
        return {exposure.obs_id: exposure for exposure in plan_survey(config)}


def _restored(survey: dict[str, Any], folder: Path) -> SimulationConfig:
    """A configuration from its record, with the surveys to avoid as files again."""
    others = []
    for number, other in enumerate(survey.get("avoid", ())):
        inner = folder / str(number)
        inner.mkdir()
        restored = _restored(dict(other), inner)
        others.append(inner / "survey.yaml")
        others[-1].write_text(yaml.safe_dump({"simulation": json.loads(restored.model_dump_json())}))
    # where a star falls does not depend on the point spread function
    settings = survey | {"avoid": [str(path) for path in others], "psf": None}
    if settings.get("star_counts"):
        settings["exposures"] = len(settings["star_counts"])
    return build_config({"simulation": settings}, "the store's record of its simulation").simulation


def redraw(
    attrs: dict[str, Any],
    chips: evaluation.Chips,
    detectors: NDArray[np.integer],
    sample: int = SAMPLE,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[evaluation.Scenes | None, list[str]]:
    """Draw the scenes of some chips of every class once more, and check them against the store's counts.

    Parameters
    ----------
    attrs : dict
        Of the store.
    chips : Chips
    detectors : (n,) int array
    sample : int
        Most chips of one class.
    seed : int
    progress : callable, optional

    Returns
    -------
    scenes : Scenes or None
        None where the store is not simulated, or by another version of the simulator.
    notes : list of str
        Why there is none.
    """
    missing = "magnitudes of the stars (Figure 4) and galaxies per chip, since"
    try:
        plan = planned_exposures(attrs, chips.obs_id)
    except ConfigError as error:
        return None, [f"{missing} {error}."]
    pairs = list(zip(chips.obs_id.tolist(), detectors.tolist(), strict=True))
    usable = np.array([obs in plan and detector in plan[obs].detectors for obs, detector in pairs])
    if not usable.any():
        return None, [f"{missing} the store holds no simulated survey: only counts of its stars are known."]
    chosen, shape = evaluation.sample_chips(chips.density_class, usable, sample, seed), tuple(attrs["frame"])
    magnitudes = np.zeros((len(chosen), len(evaluation.MAGNITUDE_EDGES) - 1), np.int64)
    n_galaxy, differ = np.zeros(len(chosen), np.int64), 0
    for k, row in enumerate(chosen.tolist()):
        obs, detector = pairs[row]
        seen = scene_chip(plan[obs], detector, shape)
        magnitudes[k] = np.histogram(seen.stars.mag, evaluation.MAGNITUDE_EDGES)[0]
        n_galaxy[k] = len(seen.galaxies)
        differ += (seen.n_star, seen.n_bright) != (chips.n_star[row], chips.n_bright[row])
        if progress is not None:
            progress(k + 1, len(chosen))
    if differ:
        return None, [
            f"{missing} {differ} of {len(chosen)} chips that were drawn again have other star counts than the store: "
            "another version of the simulator made it. Simulate the survey again to see them."
        ]
    return evaluation.Scenes(chosen, magnitudes, n_galaxy, bool(attrs["simulation"].get("galaxies", True))), []


def scene_chip(exposure: Exposure, detector: int, shape: tuple[int, int]) -> Chip:
    """A chip with its scene and no pixels, for what its catalogue lists."""
    image = np.broadcast_to(np.float32(0), shape)
    flags = np.broadcast_to(np.uint16(0), shape)
    return Chip(exposure, detector, image, flags, draw_scene(exposure, detector, shape), 0.0, 0.0)


def stored_sizes(store: SurveyStore) -> dict[str, int]:
    """Bytes that a store takes: pixels, block statistics, headers, and all the rest together."""
    big = {"image": "image", "mask": "mask", "block_stats": "block statistics", "header": "headers"}
    sizes: dict[str, int] = {}
    for name, array in store.arrays.items():
        what = big.get(name, "per-chip values")
        sizes[what] = sizes.get(what, 0) + int(array.nbytes_stored())
    return sizes


def _draw(
    store: SurveyStore, rows: NDArray[np.intp], chips: evaluation.Chips, scenes: evaluation.Scenes | None, out: Path
) -> dict[str, str]:
    """All pictures that can be drawn: caption to file name."""
    mean = BLOCK_STATS.index("mean")
    maps = {
        k: (chip, store.read_chips("block_stats", rows[[chip]])[0, mean])
        for k, chip in evaluation.representatives(chips).items()
    }
    plot_classes(chips, maps, out / "classes.png")
    pictures = {"One chip of every density class: its map of block means with a logarithmic stretch": "classes.png"}
    if scenes is not None:
        n, most = len(scenes.chips), int(np.bincount(chips.density_class[scenes.chips]).max())
        plot_magnitudes(chips, scenes, out / "magnitudes.png")
        caption = f"from {n} chips drawn again (at most {most} a class); also those beyond g = {STAR_LIMIT}"
        pictures[f"Magnitudes of the stars by density class, {caption}"] = "magnitudes.png"
    plot_counts(chips, scenes, out / "counts.png")
    caption = "Stars and bright stars on all chips"
    if scenes is not None and scenes.galaxies:
        caption += f"; galaxies (i < {GALAXY_LIMIT:g}) on {n} chips drawn again, each of which stands for its class"
    pictures[caption] = "counts.png"
    return pictures


def _facts(attrs: dict[str, Any]) -> list[str]:
    """What a store says of itself."""
    frame = "frames of {} x {} pixels; pixels kept: {}".format(*attrs["frame"], attrs["pixels"])
    survey = attrs.get("simulation")
    if survey is None:
        return [frame, "not known to be simulated"]
    where = " + ".join(survey.get("mix") or {}) or survey.get("region")
    told = ", ".join(f"{name} {survey[name]}" for name in ("seed", "physics", "depth", "galaxies") if name in survey)
    return [frame, f"simulated: {where}; {told}"]
