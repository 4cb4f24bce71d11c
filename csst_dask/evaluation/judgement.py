"""The judgement of one or several methods as a folder: one page, the tables and pictures that it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from csst_dask.evaluation.comparison import (
    Architecture,
    architecture_table,
    compare_counts,
    compare_methods,
    method_differences,
    performance_table,
)
from csst_dask.evaluation.cost import Cost
from csst_dask.evaluation.figures import Maps, plot_losses
from csst_dask.evaluation.gates import Gates
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.neighbours import Joint
from csst_dask.evaluation.page import Page, check_names, slug
from csst_dask.evaluation.scores import DRAWS, class_scores
from csst_dask.evaluation.sections import show_budget, show_classes, show_counts, show_joint, show_other, show_trust
from csst_dask.evaluation.tables import parts
from csst_dask.evaluation.weighting import WEIGHTINGS, weigh

ERRORS = (
    "Every ± is one standard error: the scatter of the score over {draws} samples that are drawn, field by field and "
    "with replacement, from the {fields} sky fields of these chips. An error of 0 says that all chips agree, "
    "or lie in one field, not that the score is exact; few fields make errors too small."
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several methods judged on chips of their own."""

    title: str
    methods: Mapping[str, Judged]
    notes: Sequence[str] = ()


def write_judgement(
    methods: Mapping[str, Judged],
    out: Path,
    *,
    title: str,
    notes: Sequence[str] = (),
    maps: Maps | None = None,
    logs: Mapping[str, Path] | None = None,
    costs: Sequence[Cost] = (),
    machine: str = "",
    others: Sequence[Comparison] = (),
    joint: Joint | None = None,
    gates: Gates | None = None,
) -> Path:
    """Write the judgement of the first method, and the others compared with it.

    Parameters
    ----------
    methods : mapping of str to Judged
        By name; the first is the principal one, the others have their scores in tables.
    out : Path
        Folder for ``evaluation.md`` and all it shows; made if need be.
    title : str
    notes : sequence of str
        What a reader has to know about the data and the methods.
    maps : mapping of int to (iy, ix) array, or (n, iy, ix) array, optional
        Block statistics of the principal method's chips; a mapping holds at least those of `figures.near_edge`.
    logs : mapping of str to Path, optional
        Name of a network to its ``log.csv``.
    costs : sequence of Cost, optional
        What was measured of the methods, by their names.
    machine : str
        What they were measured on.
    others : sequence of Comparison, optional
        More comparisons, each on chips of its own.
    joint : Joint, optional
        Estimates of the principal method's chips from whole exposures.
    gates : Gates, optional
        Rules that send the principal method's chips to the crowded pipeline, and what mistakes cost.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ValueError
        If there is no method, one has no chips, or two names give one file name.
    """
    _check(methods)
    name, judged = next(iter(methods.items()))
    page = Page(out, title)
    _head(page, name, judged, notes)
    if len(methods) > 1:
        page.say("## Methods compared")
        _comparison(page, methods)
    show_classes(page, judged, maps)
    show_counts(page, judged)
    if joint is not None:
        show_joint(page, judged, joint)
    show_budget(page, judged)
    show_trust(page, judged, gates)
    epochs = {key: pd.read_csv(path) for key, path in (logs or {}).items()}
    if epochs := {key: log for key, log in epochs.items() if len(log)}:  # none in the first epoch of a training
        page.say("## Training")
        plot_losses(epochs, page.picture("losses", LOSSES))
    _published(page, methods, costs, machine)
    for other in list(methods)[1:]:
        show_other(page, other, methods[other])
    for comparison in others:
        _check(comparison.methods)
        page.say(f"## {comparison.title}", *comparison.notes)
        prefix = slug(comparison.title)
        _comparison(page, comparison.methods, prefix)
        _architectures(page, comparison.methods, costs, f"{prefix}_table4")
    return page.write()


LOSSES = (
    "Loss on training and validation chips against epochs, as Figure 7; dotted, the learning rate. A gap that opens is "
    "overfitting."
)
PERFORMANCE = (
    "Table 5 of Lai et al. (2026), measured on these chips {}, and published; its accuracy of a class is the recall"
)
ARCHITECTURES = (
    "Methods as in Table 4 of Lai et al. (2026), measured, and published where the architecture is in that table; "
    "reweighted: with the classes in the published shares. How times and memory are measured is said at the table of "
    "costs. Published ones are those of another machine, and its times include reading"
)
COSTS = (
    "Every part in a process of its own on: {}. Networks: from the block statistics of a batch to answers, what "
    "they ask for included; trees: from statistics that are there already; source extraction: from the pixels of "
    "one chip, once. Time is the median of warm calls of the others, memory the highest resident memory of the process "
    "(of the allocator on a GPU), the program itself included"
)


def _check(methods: Mapping[str, Judged]) -> None:
    if not methods:
        raise ValueError("there is no method to judge; give at least one")
    for name, judged in methods.items():
        if not len(judged):
            raise ValueError(f"method {name!r} has no chip with truth and prediction; leave it out")
    check_names(methods)


def _head(page: Page, name: str, judged: Judged, notes: Sequence[str]) -> None:
    by_band = ", ".join(
        f"{part} {rows.sum():,}" for by, part, rows in parts(judged) if by == "band" and part != "all but NUV"
    )
    fields = len(np.unique(judged.field))
    lines = [
        f"Method: {name}. {len(judged):,} chips with truth and prediction in {fields:,} sky fields; "
        f"by band: {by_band}.",
        *(f"Weighting {weigh(judged.true_class, weighting).note}." for weighting in WEIGHTINGS),
        ERRORS.format(fields=f"{fields:,}", draws=DRAWS),
        *notes,
    ]
    page.say("\n".join(f"* {line}" for line in lines))


def _comparison(page: Page, methods: Mapping[str, Judged], prefix: str = "") -> None:
    start = f"{prefix}_" if prefix else ""
    page.show(
        f"{start}methods",
        compare_methods(methods),
        "Classes: one line for each method; reweighted to the published shares of the classes; beyond adjacent is the "
        "share of chips off by more than one class",
    )
    for of, what in (("bright", "bright stars"), ("star", "all stars")):
        if any(np.isfinite(getattr(judged, f"log_{of}")).any() for judged in methods.values()):
            page.show(f"{start}methods_{of}", compare_counts(methods, of), COMPARED.format(what))
    differences = method_differences(methods)
    if len(differences):
        page.show(
            f"{start}differences",
            differences,
            "Gains over the first method on the same chips: accuracy better where positive, mean absolute error where "
            "negative; a gain of less than two errors may be chance",
        )


COMPARED = (
    "Counts of {}: errors in dex of log10(1 + n). Methods leave out different chips (`counted` is the share of the "
    "known ones that each counted), so only `common`, over the chips that all of them counted, compares them; coverage "
    "is the share of true counts within the interval of 90 per cent"
)


def _published(page: Page, methods: Mapping[str, Judged], costs: Sequence[Cost], machine: str) -> None:
    page.say("## The published tables")
    judged = next(iter(methods.values()))
    for weighting, name in zip(WEIGHTINGS, ("table5", "table5_reweighted"), strict=True):
        how = "as they come" if weighting == "flat" else "with the classes in the published shares"
        page.show(name, performance_table(judged, weighting), PERFORMANCE.format(how))
    _architectures(page, methods, costs, "table4")
    if costs:
        page.show("costs", pd.DataFrame(asdict(cost) for cost in costs), COSTS.format(machine or "this machine"))


def _architectures(page: Page, methods: Mapping[str, Judged], costs: Sequence[Cost], name: str) -> None:
    """Table 4, of methods that were judged on the same chips."""
    records = [
        _architecture(cost, methods[cost.method])
        for cost in costs
        if cost.part != "regressor" and cost.method in methods
    ]
    if records:
        page.show(name, architecture_table(records), ARCHITECTURES)


def _architecture(cost: Cost, judged: Judged) -> Architecture:
    """What Table 4 says of a method."""
    flat, other = (class_scores(judged, weighting, draws=2) for weighting in WEIGHTINGS)
    accuracy, macro_f1 = (float(flat[name][0]) for name in ("accuracy", "macro_f1"))
    return Architecture(
        cost.model, accuracy, macro_f1, cost.parameters, cost.ms_per_image, cost.memory_mb,
        float(other["accuracy"][0]), float(other["macro_f1"][0]), cost.method, cost.device,
        cost.batch,
    )  # fmt: skip
