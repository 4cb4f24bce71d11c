"""The sections of a judgement that are on one method: classes, counts, budget of errors, trust."""

from __future__ import annotations

import numpy as np

from csst_dask.evaluation.budget import NEAR_EDGE, TARGET, accuracy_curve, budget_table, variance_components
from csst_dask.evaluation.figures import Maps, near_edge, plot_confusion, plot_near_edge, plot_star_counts
from csst_dask.evaluation.figures_scores import plot_error_budget, plot_predicted_counts, plot_reliability
from csst_dask.evaluation.gates import Gates, gate_table
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.neighbours import Joint, joint_table
from csst_dask.evaluation.page import Page, slug
from csst_dask.evaluation.tables import band_table, bypass_table, class_table, count_table, edge_table, overall_table
from csst_dask.evaluation.trust import (
    interval_table,
    probability_table,
    reliability_table,
    route_table,
    selective_curve,
    selective_table,
)
from csst_dask.evaluation.weighting import WEIGHTINGS

STAR_COUNTS = (
    "True star counts and the wrongly classified, as Figure 10, and the wrong share with bounds of one standard "
    "deviation; dotted: class edges."
)


def show_classes(page: Page, judged: Judged, maps: Maps | None) -> None:
    """Scores of the classes, and where they go wrong."""
    page.say("## Density classes")
    page.show(
        "overall",
        overall_table(judged),
        "All classes together. Beyond adjacent is the share of chips whose class is off by more than one, beyond of "
        "errors their share of the wrong chips",
    )
    page.show("bands", band_table(judged), "All classes together, by band")
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
            "As Figure 11: the wrongly classified chip nearest to an edge, between a rightly classified one beyond the "
            "edge and a clear chip of its own class, where there are such. In the corner, the predicted class."
        )
        plot_near_edge(judged, maps, page.picture("near_edge", caption))


def show_counts(page: Page, judged: Judged) -> None:
    """Errors of the counts of bright and of all stars."""
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


def show_joint(page: Page, judged: Judged, joint: Joint) -> None:
    """Counts of all stars if the chips of an exposure borrow from each other."""
    page.say("## Counts of all stars from whole exposures")
    page.show("joint", joint_table(judged, joint), JOINT)


JOINT = (
    "Errors of log10(1 + stars), dex, and the share of counts that lie in the right class: each chip alone, and with "
    "the other chips of its exposure in all bands. Each half of the fields is judged by what was learned from the "
    "other half. Within: the share that errs by less than the estimate's own standard error, 0.68 if that is right. "
    "Neighbours are as alike as the sky of this store makes them"
)


def show_budget(page: Page, judged: Judged) -> None:
    """What scatter of the counts costs, and what it is common to."""
    page.say("## What the errors of the counts cost in accuracy")
    page.show("budget", budget_table(judged), BUDGET)
    page.show(
        "accuracy_curve",
        accuracy_curve(judged),
        "Expected accuracy of these chips, flat and reweighted, if log10(1 + stars) erred by so much on average, dex",
    )
    components = variance_components(judged)
    if len(components):
        page.show("components", components, COMPONENTS)
        drawn = components.set_index("band")
        plot_error_budget(drawn.drop(columns=["chips", "rms"]), page.picture("components", SHARES), total=drawn["rms"])


BUDGET = (
    "Expected: the share of chips whose class would be right if log10(1 + stars) erred at random with the measured "
    "mean absolute error, by a Laplace or a normal law. Needed: the mean absolute error, dex, at which it would be "
    f"{TARGET:.2%}. An accuracy above the expected one says that errors are smaller near the edges. Within: shares of "
    f"chips, and of wrong ones, that lie less than {', '.join(f'{reach:g}' for reach in NEAR_EDGE)} dex from an edge"
)
COMPONENTS = (
    "Errors of log10(1 + stars) by what they are common to, dex: all chips of a band, the chips of a field, one chip; "
    "their squares add up to about that of the whole"
)
SHARES = "Errors of the star counts by what they are common to; the lines are the whole, root mean square."


def show_trust(page: Page, judged: Judged, gates: Gates | None = None) -> None:
    """Intervals, probabilities and routes against what happened."""
    known = [of for of in ("bright", "star") if np.isfinite(getattr(judged, f"{of}_lower")).any()]
    if known:
        page.say("## Intervals")
    for of in known:
        what = "bright stars" if of == "bright" else "stars"
        page.show(
            "intervals" if of == "bright" else "intervals_star",
            interval_table(judged, of),
            f"Share of chips whose true number of {what} lies in the interval of 90 per cent, below it, above it; "
            "width in dex",
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
    if gates is not None:
        how = GATES.format(gates.missed_cost, gates.needless_cost, gates.review_cost)
        page.show("gates", gate_table(judged, gates), how)


GATES = (
    "Chips sent to the crowded pipeline and to review by each rule, before other reasons for a review. A chip of class "
    "5 that the standard pipeline takes (missed) costs {:g}, one below it that the crowded pipeline takes (needless) "
    "{:g}, a review {:g}; cost is the mean of a chip"
)


def show_other(page: Page, name: str, judged: Judged) -> None:
    """Scores of a method that is not the principal one."""
    end = slug(name)
    page.say(f"## Scores of {name}")
    page.show(f"classes_{end}", class_table(judged), "Scores of each class, as the chips come")
    for of, known in (("bright", judged.counted), ("star", np.isfinite(judged.log_star))):
        if known.any():
            what = "bright stars" if of == "bright" else "stars"
            page.show(f"{of}_{end}", count_table(judged, of), COUNTS.format(what))
    if np.isfinite(judged.log_star).any():
        page.show(f"budget_{end}", budget_table(judged), BUDGET)
