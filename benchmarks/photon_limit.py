"""How well could anyone count the stars of a chip? What noise leaves, if crowding and galaxies did not matter.

A star of a simulated chip counts as found if its signal-to-noise ratio under a matched filter exceeds a limit; all that
are found are told from galaxies without error. A regression learns, on one survey, how many stars the truth catalogue
lists where so many are found at each level above the limit, and is judged on another. What it errs by is the scatter of
the stars that nobody sees: methods that read one image by itself can hardly do better.

    python benchmarks/photon_limit.py --out limit      # half an hour on one core, then again in seconds
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from rich.progress import track
from sklearn.ensemble import HistGradientBoostingRegressor

from csst_dask.config import load_config
from csst_dask.evaluation.dataset import PUBLISHED
from csst_dask.instrument.focal_plane import DETECTORS
from csst_dask.outputs import write_atomically
from csst_dask.schema import BANDS, FRAME_SHAPE, N_CLASSES, STAR_LIMIT, density_class
from csst_dask.simulation.exposure import Exposure
from csst_dask.simulation.shot import take_shot
from csst_dask.simulation.survey import plan_survey

LEVELS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000, 3000, 10000)
"""Signal-to-noise ratios."""
LIMITS = (1, 2, 3, 5, 10, 20)
"""Of these, those down to which stars are found."""
ROUNDS = 400
SCORES = ("mae", "accuracy", "accuracy_published", "class5_recall")
"""Mean absolute error of log10(1 + stars), dex; accuracy as the chips come and with the published class shares."""


def count_chip(exposure: Exposure, detector: int) -> list[float]:
    """Listed stars of a chip, and those above each of `LEVELS`."""
    shot = take_shot(exposure, detector)
    inside = (shot.y >= 0) & (shot.y < FRAME_SHAPE[0]) & (shot.x >= 0) & (shot.x < FRAME_SHAPE[1])
    listed = inside & (shot.scene.stars.g < STAR_LIMIT)
    sharpness = float((shot.psf.stamps[0, 0].astype(float) ** 2).sum())
    ratio = shot.flux[inside] / np.sqrt(shot.flux[inside] + shot.noise**2 / sharpness)
    return [listed.sum(), *(ratio[:, None] > np.array(LEVELS)).sum(0)]


def count_survey(name: str, folder: Path) -> pd.DataFrame:
    """Counts of every chip of a survey; kept in files, one for each 50 exposures of these settings."""
    simulation = load_config(name).simulation
    exposures, of = plan_survey(simulation), hashlib.sha256(simulation.model_dump_json().encode()).hexdigest()[:8]
    parts = []
    for start in track(range(0, len(exposures), 50), Path(name).stem):
        path = folder / f"{Path(name).stem}-{of}-{start}.csv"
        if not path.exists():
            rows = [
                [e.index, d, DETECTORS[d].band, *count_chip(e, d)]
                for e in exposures[start : start + 50]
                for d in e.detectors
            ]
            frame = pd.DataFrame(rows, columns=["index", "detector", "band", "n_star", *map(str, LEVELS)])
            write_atomically(path, frame.to_csv(index=False).encode())
        parts.append(pd.read_csv(path))
    return pd.concat(parts, ignore_index=True)


def inputs(chips: pd.DataFrame, limit: int) -> np.ndarray:
    """(n, k): what a search down to a limit knows."""
    known = np.log10(1 + chips[[str(level) for level in LEVELS if level >= limit]].to_numpy(float))
    band = (chips["band"].to_numpy()[:, None] == np.array(BANDS)).astype(float)
    return np.column_stack([known, known[:, :-1] - known[:, 1:], band])


def judge(learn: pd.DataFrame, test: pd.DataFrame, limit: int) -> np.ndarray:
    """(n,) estimates of log10(1 + stars): the stars found, and what a regression adds."""
    found = {key: np.log10(1 + chips[str(limit)].to_numpy(float)) for key, chips in (("learn", learn), ("test", test))}
    truth = np.log10(1 + learn["n_star"].to_numpy(float))
    x, estimate = inputs(learn, limit), np.zeros(len(test))
    for seed in range(5):
        model = HistGradientBoostingRegressor(
            loss="absolute_error",
            max_iter=ROUNDS,
            learning_rate=0.05,
            min_samples_leaf=15,
            max_features=0.5,
            random_state=seed,
        )
        estimate += model.fit(x, truth - found["learn"]).predict(inputs(test, limit)) / 5
    return np.maximum(found["test"] + estimate, 0)


def table(learn: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Scores by limit and band."""
    truth, band, rows = test["n_star"].to_numpy(), test["band"].to_numpy(), []
    true_class, parts = density_class(truth), {"all": band != "", "all but NUV": band != "NUV"}
    parts |= {name: band == name for name in BANDS}
    for limit in LIMITS:
        estimate = judge(learn, test, limit)
        right = density_class(np.round(10**estimate - 1).astype(int)) == true_class
        error = np.abs(estimate - np.log10(1 + truth))
        for name, part in parts.items():
            of_class = [right[part & (true_class == k)].mean() for k in range(N_CLASSES)]
            published = np.dot(of_class, PUBLISHED) / np.sum(PUBLISHED)
            rows.append((limit, name, part.sum(), error[part].mean(), right[part].mean(), published, of_class[-1]))
    return pd.DataFrame(rows, columns=["limit", "band", "chips", *SCORES])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learn", default="configs/datasets/training.yaml")
    parser.add_argument("--judge", default="configs/datasets/benchmark.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = table(count_survey(args.learn, args.out), count_survey(args.judge, args.out))
    found.to_csv(args.out / f"limit-{Path(args.judge).stem}.csv", index=False)
    for score in SCORES:
        shown = found.pivot(index="limit", columns="band", values=score)[["all", "all but NUV", *BANDS]]
        print(f"\n{score}", shown.round(4), sep="\n")


if __name__ == "__main__":
    main()
