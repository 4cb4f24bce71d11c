"""The judgement of one or several methods as a folder: one page, the tables and pictures that it shows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from csst_dask.evaluation.comparison import (
    Architecture,
    architecture_table,
    compare_methods,
    method_differences,
    performance_table,
)
from csst_dask.evaluation.figures import (
    Maps,
    near_edge,
    plot_confusion,
    plot_losses,
    plot_near_edge,
    plot_star_counts,
)
from csst_dask.evaluation.figures_scores import plot_predicted_counts, plot_reliability
from csst_dask.evaluation.formatting import markdown_table
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.scores import DRAWS
from csst_dask.evaluation.tables import bypass_table, class_table, count_table, edge_table, overall_table, parts
from csst_dask.evaluation.trust import (
    interval_table,
    probability_table,
    reliability_table,
    route_table,
    selective_curve,
    selective_table,
)
from csst_dask.evaluation.weighting import WEIGHTINGS, weigh

ERRORS = (
    "Every ± is one standard error: the scatter of the score over {draws} samples that are drawn, field by field and "
    "with replacement, from the {fields} sky fields of these chips. An error of 0 says that all chips agree, not that "
    "the score is exact; few fields make errors too small."
)


class Page:
    """A Markdown page that stores each table as CSV and each picture as PNG beside it."""

    def __init__(self, out: Path, title: str) -> None:
        self.out = out
        self.lines = [f"# {title}", ""]
        out.mkdir(parents=True, exist_ok=True)

    def say(self, *paragraphs: str) -> None:
        """Add paragraphs, or headings."""
        self.lines += [line for text in paragraphs for line in (text, "")]

    def show(self, name: str, table: pd.DataFrame, how: str) -> None:
        """Add a sentence on how to read a table, and the table."""
        table.to_csv(self.out / f"{name}.csv", index=False, float_format="%.6g")
        self.lines += [f"{how} (`{name}.csv`)", "", *markdown_table(table), ""]

    def picture(self, name: str, caption: str) -> Path:
        """Add a picture; the path to draw it to."""
        self.lines += [f"![{caption}]({name}.png)", "", f"*{caption}*", ""]
        return self.out / f"{name}.png"

    def write(self) -> Path:
        """Write ``evaluation.md``."""
        path = self.out / "evaluation.md"
        path.write_text("\n".join(self.lines).rstrip() + "\n", encoding="utf-8")
        return path


def write_judgement(
    methods: Mapping[str, Judged],
    out: Path,
    *,
    title: str,
    notes: Sequence[str] = (),
    maps: Maps | None = None,
    logs: Mapping[str, Path] | None = None,
    architectures: Sequence[Architecture] | None = None,
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
        Reduced maps of the principal method's chips; a mapping holds at least those of `figures.near_edge`.
    logs : mapping of str to Path, optional
        Name of a network to its ``log.csv``.
    architectures : sequence of Architecture, optional
        What was measured of several classifiers.

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
        _comparison(page, methods)
    _classes(page, judged, maps)
    _counts(page, judged)
    _trust(page, judged)
    if logs:
        page.say("## Training")
        plot_losses({key: pd.read_csv(path) for key, path in logs.items()}, page.picture("losses", LOSSES))
    page.say("## The published tables")
    page.show("table5", performance_table(judged), PERFORMANCE)
    if architectures:
        page.show("table4", architecture_table(architectures), ARCHITECTURES)
    for other in list(methods)[1:]:
        _other(page, other, methods[other])
    return page.write()


STAR_COUNTS = (
    "True star counts and the wrongly classified, as Figure 10, and the wrong share with bounds of one standard "
    "deviation; dotted: class edges."
)
LOSSES = (
    "Loss on training and validation chips against epochs, as Figure 7; dotted, the learning rate. A gap that opens is "
    "overfitting."
)
PERFORMANCE = (
    "Table 5 of Lai et al. (2026), measured on these chips as they come, and published; its accuracy of a class is the "
    "recall"
)
ARCHITECTURES = (
    "Classifiers as in Table 4 of Lai et al. (2026), measured and published; published times and memory are those of "
    "another machine"
)


def _check(methods: Mapping[str, Judged]) -> None:
    if not methods:
        raise ValueError("there is no method to judge; give at least one")
    for name, judged in methods.items():
        if not len(judged):
            raise ValueError(f"method {name!r} has no chip with truth and prediction; leave it out")
    slugs = [_slug(name) for name in methods]
    if double := {slug for slug in slugs if slugs.count(slug) > 1 or not slug}:
        raise ValueError(f"names of methods give the same or no file name ({', '.join(double)}); choose others")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


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


def _comparison(page: Page, methods: Mapping[str, Judged]) -> None:
    page.say("## Methods compared")
    page.show(
        "methods",
        compare_methods(methods),
        "One line for each method; errors of counts in dex of log10(1 + bright stars), over the chips it counted",
    )
    differences = method_differences(methods)
    if len(differences):
        page.show(
            "differences",
            differences,
            "Gains over the first method on the same chips: accuracy better where positive, mean absolute error where "
            "negative; a gain of less than two errors may be chance",
        )


def _classes(page: Page, judged: Judged, maps: Maps | None) -> None:
    page.say("## Density classes")
    page.show(
        "overall",
        overall_table(judged),
        "All classes together. Beyond adjacent is the share of chips whose class is off by more than one, beyond of "
        "errors their share of the wrong chips",
    )
    for weighting in WEIGHTINGS:
        how = "as the chips come" if weighting == "flat" else "with the shares of the published set; recall is the same"
        page.show(f"classes_{weighting}", class_table(judged, weighting), f"Scores of each class, {how}")
    plot_confusion(judged, page.picture("confusion", "Confusion matrix, as Figure 8: wrong chips in red."))
    page.show(
        "edges",
        edge_table(judged),
        "Accuracy by the distance of the true star count from the nearest class edge, dex of log10(1 + n); void chips "
        "lie 0.18 dex from theirs",
    )
    plot_star_counts(
        judged,
        page.picture("star_counts", STAR_COUNTS),
    )
    if maps is not None and near_edge(judged):
        caption = (
            "As Figure 11: (a) a chip beyond the edge, rightly classified; (b) the wrongly classified chip nearest to "
            "it; (c) a clear chip of its class. In the corner, the predicted class."
        )
        plot_near_edge(judged, maps, page.picture("near_edge", caption))


def _counts(page: Page, judged: Judged) -> None:
    page.say("## Counts of bright stars")
    page.show("bypassed", bypass_table(judged), "Which chips were counted; the rows below the first add up to it")
    if judged.counted.any():
        page.show("bright", count_table(judged, "bright"), COUNTS.format("bright stars"))
        caption = "Predicted against true bright stars, as Figure 9; dashed: 20 % more and less."
        plot_predicted_counts(judged, page.picture("bright_counts", caption))
    if np.isfinite(judged.log_star).any():
        page.say("## Counts of all stars")
        page.show("stars", count_table(judged, "star"), COUNTS.format("stars"))
        plot_predicted_counts(judged, page.picture("all_counts", "Predicted against true stars on a chip."), of="star")


COUNTS = (
    "Errors of log10(1 + {}), dex; bias is the mean of predicted minus true; class and count "
    "are the true ones; 0.1 dex is a factor of 1.26"
)


def _trust(page: Page, judged: Judged) -> None:
    if np.isfinite(judged.bright_lower).any():
        page.say("## Intervals")
        page.show(
            "intervals",
            interval_table(judged),
            "Share of chips whose true number of bright stars lies in the interval, below it, above it; width in dex",
        )
    if np.isfinite(judged.class_probability).any():
        page.say("## Probabilities")
        page.show(
            "probabilities",
            probability_table(judged),
            "Confidence is the probability of the predicted class: on average it should equal the accuracy. Brier "
            "score, negative log likelihood and calibration error (ece) are better when smaller",
        )
        plot_reliability(judged, page.picture("reliability", "Confidence and accuracy; error bars are binomial."))
        page.show("reliability", reliability_table(judged), "Chips by confidence")
        page.show("selective", selective_table(judged), "Accuracy if only the most confident chips are kept")
        selective_curve(judged).to_csv(page.out / "selective_curve.csv", index=False, float_format="%.6g")
    if (judged.route != "").any():
        page.say("## Routes")
        page.show("routes", route_table(judged), "Chips by what the pipeline should do next, and their classes")


def _other(page: Page, name: str, judged: Judged) -> None:
    slug = _slug(name)
    page.say(f"## Scores of {name}")
    page.show(f"classes_{slug}", class_table(judged), "Scores of each class, as the chips come")
    for of, known in (("bright", judged.counted), ("star", np.isfinite(judged.log_star))):
        if known.any():
            what = "bright stars" if of == "bright" else "stars"
            page.show(f"{of}_{slug}", count_table(judged, of), COUNTS.format(what))
