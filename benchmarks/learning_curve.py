"""What more chips would bring: each way to learn, from more and more of them, judged on another store.

    python benchmarks/learning_curve.py --store training.zarr --judge benchmark.zarr --out curve

Trainings go on where they stopped; a finished one is not repeated. The paper's networks make as many steps whatever the
number of chips (``--visits``: chips that a network sees, their turned and jittered copies included).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from distributed import Client
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from csst_dask.config import ClusterConfig, Config, TrainingConfig
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.scores import ERROR
from csst_dask.evaluation.tables import count_table, overall_table
from csst_dask.evaluation.trees import fit_trees, predict_trees
from csst_dask.evaluation.truth import Truth
from csst_dask.models.files import TASKS
from csst_dask.runners.baselines import measure_statistics
from csst_dask.runners.cluster import connect
from csst_dask.runners.evaluate import judge_weights
from csst_dask.runners.train import train_network
from csst_dask.schema import CROWDED
from csst_dask.training import load_samples
from csst_dask.training.split import SEPARATION

CANDIDATES = {
    "trees": None,
    "csst perceptron": {"recipe": "csst", "batch": 128, "weight_decay": 0.05},
    "csst resnet18": {"recipe": "csst", "batch": 32, "weight_decay": 0.05, "arch": "resnet18"},
    "paper": {"recipe": "paper"},
}
COPIES = 4
"""Of a chip in an epoch of the paper's recipe; the other recipe shows each once."""


def configure(settings: dict, chips: int, args: argparse.Namespace) -> Config:
    """Training section of a candidate."""
    if settings["recipe"] == "paper" or "arch" in settings:
        copies = COPIES if settings["recipe"] == "paper" else 1
        settings = settings | {"epochs": max(1, round(args.visits / chips / copies))}
    return Config(training=TrainingConfig(**settings, chips=chips, seed=args.seed, amp=args.amp))


def curve(args: argparse.Namespace, client: Client) -> Iterator[tuple[str, int, Judged]]:
    """Candidate, chips learned from, and predictions beside the truth; all have the same chips to calibrate with."""
    samples, truth, stores = load_samples(args.store), Truth.open(args.judge), [Truth.open(one) for one in args.store]
    for store in stores:
        truth = truth.apart_from(store, SEPARATION)
    known = tables = None
    for name in args.candidates:
        for chips in args.chips:
            settings = CANDIDATES[name]
            if settings is None:
                if known is None:
                    known, tables = measure_statistics(client, truth)["statistics"], measure_all(client, stores)
                split = samples.split(args.seed, chips=chips)
                counts = samples.n_star, samples.n_bright
                fitted = fit_trees(tables, samples.band, *counts, split.train, split.validation)
                yield name, chips, truth.judge(predict_trees(fitted, known, truth.column("band")))
                continue
            folder = args.out / f"{name.replace(' ', '-')}-{chips}"
            config = configure(settings, chips, args)
            for task in TASKS:
                print(f"{name}, {chips} chips: {task}", flush=True)
                found = train_network(task, args.store, folder / task, config)
                shutil.copy(found.weights, folder)
            yield name, chips, judge_weights(client, truth, Config(), folder)


def measure_all(client: Client, stores: list[Truth]) -> np.ndarray:
    """Statistics of the chips of several stores, one after the other."""
    return np.concatenate([measure_statistics(client, store)["statistics"] for store in stores])


def scores(judged: Judged) -> dict[str, float]:
    """Accuracies and mean absolute errors, dex, with their standard errors; bright stars of chips below class 5."""
    overall = overall_table(judged).set_index("weighting")
    found = {f"accuracy {name}": overall.at[name, "accuracy"] for name in overall.index}
    found |= {f"accuracy {name} error": overall.at[name, f"accuracy{ERROR}"] for name in overall.index}
    for of in ("star", "bright"):
        table = count_table(judged if of == "star" else judged.take(judged.true_class < CROWDED), of)
        row = table[table["part"] == "flat"].iloc[0] if len(table) else {"mae": np.nan, f"mae{ERROR}": np.nan}
        found |= {f"{of} mae": row["mae"], f"{of} mae error": row[f"mae{ERROR}"]}
    return found


def draw(table: pd.DataFrame, path: Path) -> None:
    """Wrong classes and errors of the counts by the number of chips."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for name, rows in table.groupby("candidate", sort=False):
        for axis, score in zip(axes, ("accuracy published", "star mae", "bright mae"), strict=True):
            values = 1 - rows[score] if score.startswith("accuracy") else rows[score]
            axis.errorbar(rows["chips"], values, rows[f"{score} error"], marker="o", ms=4, label=name)
    labels = "wrong classes, published shares", "MAE of log10(1 + stars), dex", "MAE of log10(1 + bright stars), dex"
    for axis, label in zip(axes, labels, strict=True):
        axis.set(xscale="log", yscale="log", xlabel="chips learned from", ylabel=label)
        axis.set_xticks(sorted(set(table["chips"])), [str(chips) for chips in sorted(set(table["chips"]))])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", nargs="+", required=True, help="stores to learn from")
    parser.add_argument("--judge", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--chips", nargs="+", type=int, default=[600, 1200, 2400, 4800])
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES), choices=list(CANDIDATES))
    parser.add_argument("--visits", type=int, default=20_000)
    parser.add_argument("--amp", default="auto", choices=["auto", "bf16", "off"], help="precision of residual networks")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with connect(ClusterConfig()) as client:
        for name, chips, judged in curve(args, client):
            rows.append({"candidate": name, "chips": chips} | scores(judged))
            print(pd.DataFrame(rows).round(4).to_string(index=False), flush=True)
            pd.DataFrame(rows).to_csv(args.out / "curve.csv", index=False)
    draw(pd.DataFrame(rows), args.out / "curve.png")


if __name__ == "__main__":
    main()
