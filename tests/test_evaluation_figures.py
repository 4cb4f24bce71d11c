"""Pictures show the chips that they are given, and the page shows every picture and table."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from csst_dask.evaluation import figures, figures_scores, judgement
from csst_dask.evaluation.cost import Cost
from csst_dask.evaluation.judged import Judged
from csst_dask.schema import CLASS_EDGES, N_CLASSES, density_class


def chips(n: int = 120, seed: int = 0, spread: float = 0.1) -> Judged:
    """Chips over all classes, the first tenth void."""
    rng = np.random.default_rng(seed)
    n_star = np.concatenate([np.zeros(n // 10, int), np.geomspace(1, 5e5, n - n // 10).astype(int)])
    log_star = np.maximum(np.log10(1.0 + n_star) + rng.normal(0, spread, n), 0)
    called = density_class(np.round(10**log_star - 1)).astype(int)
    log_bright = np.where(called == 5, np.nan, np.maximum(log_star - 1, 0))
    chance = 0.05 + np.eye(N_CLASSES)[called] * rng.uniform(0.2, 3, (n, 1))
    return Judged.build(
        band=np.array(["NUV", "g", "z"])[np.arange(n) % 3], field=np.arange(n) // 4, n_star=n_star,
        n_bright=n_star // 10, density_class=called, class_probability=chance / chance.sum(axis=1, keepdims=True),
        log_star=log_star, log_bright=log_bright, bright_lower=np.maximum(10**log_bright - 5, 0),
        bright_upper=10**log_bright + 5, route=np.where(called == 5, "crowded", "standard"),
    )  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """Keeps the figures that are saved."""
    kept = []

    def keep(figure, path):
        kept.append(figure)
        figure.savefig(path, dpi=20)

    monkeypatch.setattr(figures, "save", keep)
    monkeypatch.setattr(figures_scores, "save", keep)
    return kept


def test_a_picture_is_a_png_without_marks_of_the_machine(tmp_path):
    figures.plot_confusion(chips(), tmp_path / "confusion.png")
    found = (tmp_path / "confusion.png").read_bytes()
    assert found[1:4] == b"PNG"
    assert b"matplotlib" not in found.lower()


def test_loss_curves_mark_the_least_validation_loss(tmp_path, drawn):
    epochs = np.arange(1, 6)
    log = pd.DataFrame({
        "epoch": epochs, "train_loss": 1 / epochs, "validation_loss": [1.0, 0.6, 0.4, 0.5, 0.6],
        "learning_rate": 1e-3, "seconds": 1.0,
    })  # fmt: skip
    figures.plot_losses({"classifier": log, "regressor": log}, tmp_path / "losses.png")
    assert len(drawn[0].axes) == 4  # each with an axis for the learning rate
    axis = drawn[0].axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", "loss per chip")
    assert "0.4 after epoch 3" in axis.get_title(loc="left")
    train, validation, best = axis.lines
    np.testing.assert_allclose(train.get_ydata(), log["train_loss"])
    np.testing.assert_allclose(validation.get_ydata(), log["validation_loss"])
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (3, 0.4)
    assert "learning rate" in {other.get_ylabel().split(" (")[0] for other in drawn[0].axes}


def test_the_confusion_matrix_holds_every_chip(tmp_path, drawn):
    judged = chips()
    figures.plot_confusion(judged, tmp_path / "confusion.png")
    counts, shares = drawn[0].axes
    assert sum(int(text.get_text()) for text in counts.texts) == len(judged)
    for k in range(N_CLASSES):
        row = [float(text.get_text()) for text in shares.texts if text.get_position()[1] == k]
        assert sum(row) == pytest.approx(100, abs=0.3)
    assert counts.get_title(loc="left") == f"120 chips, {(~judged.right).sum()} wrong"
    assert counts.get_ylabel() == "true class"
    assert counts.get_xlabel().startswith("predicted class")


def test_the_histogram_holds_every_chip_and_every_wrong_one(tmp_path, drawn):
    judged = chips()
    figures.plot_star_counts(judged, tmp_path / "counts.png")
    upper, lower = drawn[0].axes
    every, wrong = (patch.get_data() for patch in upper.patches)
    assert every.values.sum() == len(judged)
    assert wrong.values.sum() == (~judged.right).sum()
    assert every.values[0] == (judged.n_star == 0).sum()
    assert wrong.values.max() > 0
    assert (upper.get_ylabel(), lower.get_xlabel()) == ("chips per 0.1 dex", "true stars on the chip")
    assert [text.get_text() for text in upper.texts] == list("012345")
    few = judged.take(judged.n_star < 90)
    figures.plot_star_counts(few, tmp_path / "few.png")
    assert [text.get_text() for text in drawn[1].axes[0].texts] == list("01")


@pytest.mark.parametrize("n_star", [*CLASS_EDGES, 10**6])
def test_a_chip_on_an_edge_is_counted_above_it(tmp_path, drawn, n_star):
    one = Judged.build(band=["g"], n_star=[n_star], density_class=[2])
    figures.plot_star_counts(one, tmp_path / "counts.png")
    data = drawn[0].axes[0].patches[0].get_data()
    assert data.values.sum() == 1
    assert data.edges[np.argmax(data.values)] == pytest.approx(np.log10(n_star), abs=1e-6)


def test_bounds_of_a_proportion_are_those_of_wilson():
    lower, upper = figures.binomial_bounds(np.array([0, 10, 5, 0]), np.array([10, 10, 10, 0]))
    np.testing.assert_allclose(lower[:3], [0, 10 / 11, 0.5 - 0.5 / np.sqrt(11)])
    np.testing.assert_allclose(upper[:3], [1 / 11, 1, 0.5 + 0.5 / np.sqrt(11)])
    assert np.isnan(lower[3])


def test_the_three_chips_near_an_edge():
    #          right 2, right 2, wrong 3, right 3, right 3, other band, wrong but two off
    n_star = [300, 966, 1005, 1343, 5000, 999, 1001]
    judged = Judged.build(band=["g", "g", "g", "g", "g", "u", "g"], n_star=n_star, density_class=[2, 2, 2, 3, 3, 2, 1])
    assert figures.near_edge(judged) == [1, 2, 3]
    assert figures.near_edge(judged.take([0, 3])) == []
    assert figures.near_edge(judged.take([2])) == [0]
    # the edge between the two classes, not the nearest one, is what counts
    far = Judged.build(band=["g"] * 3, n_star=[9990, 1100, 600], density_class=[2, 2, 3])
    assert figures.near_edge(far) == [1]


def test_chips_near_an_edge_are_drawn_with_what_they_are(tmp_path, drawn):
    judged = Judged.build(band=["g"] * 3, n_star=[966, 1005, 1343], density_class=[2, 2, 3])
    maps = np.random.default_rng(0).random((3, 20, 20))
    figures.plot_near_edge(judged, maps, tmp_path / "edge.png")
    figures.plot_near_edge(judged, dict(enumerate(maps)), tmp_path / "edge.png")
    titles = [axis.get_title(loc="left") for axis in drawn[0].axes]
    assert titles == [
        "(a) g, 966 stars\nrightly class 2",
        "(b) g, 1,005 stars\nclass 3, taken for 2",
        "(c) g, 1,343 stars\nrightly class 3",
    ]
    for one, other in zip(drawn[0].axes, drawn[1].axes, strict=True):
        np.testing.assert_array_equal(one.images[0].get_array(), other.images[0].get_array())
    figures.plot_near_edge(judged.take([0]), maps, tmp_path / "none.png")
    assert drawn[2].axes[0].texts[0].get_text() == "no chip is one class off"


def points(axis) -> int:
    """Points and triangles in a panel."""
    triangles = [len(line.get_xdata()) for line in axis.lines if line.get_marker() in ("^", "v")]
    return sum(len(c.get_offsets()) for c in axis.collections) + sum(triangles)


def test_every_counted_chip_is_a_point_of_both_panels(tmp_path, drawn):
    judged = chips(spread=0.4)
    figures_scores.plot_predicted_counts(judged, tmp_path / "bright.png")
    upper, lower = drawn[0].axes
    counted = int(judged.counted.sum())
    assert points(upper) == points(lower) == counted < len(judged)
    note = upper.texts[0].get_text()
    assert f"{counted} chips" in note
    assert f"{len(judged) - counted} without count or truth" in note
    far = np.abs(judged.log_bright - judged.true_log_bright)[judged.counted] > figures_scores.RESIDUAL
    assert 0 < far.sum() == points(lower) - len(lower.collections[0].get_offsets())
    assert f"; {far.sum()} beyond" in lower.get_title(loc="left")
    assert (lower.get_xlabel(), lower.get_ylabel()) == ("true number on the chip", "residual, dex")
    assert upper.get_ylabel() == "predicted number on the chip"
    assert [tick.get_text() for tick in upper.get_yticklabels()][:3] == ["0", "1", "10"]


def test_dashed_lines_are_a_fifth_more_and_less(tmp_path, drawn):
    figures_scores.plot_predicted_counts(chips(), tmp_path / "stars.png", of="star")
    upper = drawn[0].axes[0]
    for line, factor in zip([line for line in upper.lines if line.get_marker() == "None"], (1, 1.2, 0.8), strict=True):
        x, y = (10 ** np.asarray(values) - 1 for values in line.get_data())
        np.testing.assert_allclose(y, factor * x, atol=1e-6)
        assert line.get_linestyle() == ("-" if factor == 1 else "--")
    assert upper.get_title(loc="left").startswith("stars (g < 26.5)")


def test_reliability_shows_the_table_and_the_curve(tmp_path, drawn):
    judged = chips(spread=0.3)
    figures_scores.plot_reliability(judged, tmp_path / "reliability.png")
    left, below, right = drawn[0].axes
    assert sum(patch.get_height() for patch in below.patches) == len(judged)
    assert right.lines[0].get_ydata()[-1] == pytest.approx(judged.right.mean())
    assert right.lines[1].get_ydata()[0] == pytest.approx(judged.right.mean())  # none is sent to review
    assert left.get_ylabel() == "accuracy"
    assert below.get_xlabel().startswith("confidence")
    assert right.get_xlabel() == "share of chips kept, most confident first"
    figures_scores.plot_reliability(
        Judged.build(band=["g"], n_star=[0], density_class=[0]), tmp_path / "reliability.png"
    )
    assert drawn[1].axes[0].texts[0].get_text() == "no probabilities"


def test_budgets_show_what_they_are_given(tmp_path, drawn):
    budget = pd.DataFrame({"noise": [0.1, 0.05], "blends": [0.02, 0.03]}, index=["NUV", "g"])
    figures_scores.plot_error_budget(budget, tmp_path / "b.png", total=pd.Series({"g": 0.06, "NUV": 0.11}))
    axis = drawn[0].axes[0]
    assert [bar.get_height() for bar in axis.patches] == [0.1, 0.05, 0.02, 0.03]
    assert axis.get_ylabel() == "contribution to the error, dex"
    assert [segment[0, 1] for segment in axis.collections[0].get_segments()] == [0.11, 0.06]


def test_the_page_shows_every_table_and_picture_that_it_writes(tmp_path, drawn):
    first, second = chips(spread=0.15), chips(seed=1, spread=0.3)
    log = tmp_path / "log.csv"
    log.write_text("epoch,train_loss,validation_loss,learning_rate,seconds\n1,1,1,0.1,1\n2,0.5,0.6,0.1,1\n")
    maps = {chip: np.eye(8) for chip in figures.near_edge(first)}
    path = judgement.write_judgement(
        {"Ours": first, "Paper's recipe": second}, tmp_path / "page", title="A title", notes=["A note."], maps=maps,
        logs={"classifier": log}, machine="Abacus",
        costs=[Cost("Ours", of, "alexnet", 61_000_000, 2.0, 500.0, "cpu", 1, 32) for of in ("classifier", "regressor")],
        others=[judgement.Comparison("Elsewhere", {"Ours": second.take(np.arange(60)), "more": first}, ["Why."])],
    )  # fmt: skip
    text = path.read_text()
    assert path == tmp_path / "page" / "evaluation.md"
    assert text.startswith("# A title\n")
    assert "* A note." in text
    written = {file.name for file in path.parent.iterdir()} - {"evaluation.md"}
    shown = set(re.findall(r"\((\w+\.png)\)", text)) | set(re.findall(r"`(\w+\.csv)`", text))
    assert written - {"selective_curve.csv"} == shown
    assert {"near_edge.png", "losses.png", "table4.csv", "table5.csv", "differences.csv"} <= shown
    assert {"classes_paper_s_recipe.csv", "elsewhere_methods.csv", "table5_reweighted.csv", "budget.csv"} <= shown
    assert "Abacus" in text
    four = pd.read_csv(path.parent / "table4.csv").iloc[0]
    assert (four["method"], four["model"], four["ms_per_image"]) == ("Ours", "AlexNet", 2.0)
    assert four["accuracy_percent"] == pytest.approx(100 * first.right.mean(), rel=1e-5)
    assert re.search(r"\| Ours \| 120 \| 0\.\d+ ± 0\.\d+ \|", text)
    assert pd.read_csv(path.parent / "methods.csv")["accuracy"].iloc[0] == pytest.approx(first.right.mean(), rel=1e-5)
    for row in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert len({line.count("|") for line in row.splitlines()}) == 1


def test_a_method_that_only_classifies_has_a_short_page(tmp_path, drawn):
    judged = Judged.build(band=["g"] * 4, n_star=[0, 5, 500, 5000], density_class=[0, 1, 2, 2], field=list("abcd"))
    text = judgement.write_judgement({"only": judged}, tmp_path, title="T").read_text()
    for absent in ("## Methods compared", "## Intervals", "## Probabilities", "## Routes", "## Training", "Figure 9"):
        assert absent not in text
    assert "without class 4, 5, of which there is no chip" in text


def test_pages_that_cannot_be_are_refused(tmp_path):
    judged = chips()
    for methods, message in (
        ({}, "no method to judge"),
        ({"a": judged.take([])}, "method 'a' has no chip"),
        ({"A b": judged, "a-b": judged}, "same or no file name"),
    ):
        with pytest.raises(ValueError, match=message):
            judgement.write_judgement(methods, tmp_path, title="T")
