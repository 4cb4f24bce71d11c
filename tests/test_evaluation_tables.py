"""Tables of scores obey the laws of scores: perfection, weights, parts and wholes, and errors that mean something."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csst_dask.evaluation import budget, comparison, formatting, tables, trust
from csst_dask.evaluation.dataset import PUBLISHED
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.scores import class_scores, dex_scores, mean_scores
from csst_dask.evaluation.weighting import weigh
from csst_dask.metrics import class_report, dex_errors, macro_f1
from csst_dask.schema import BANDS, CLASS_EDGES, N_CLASSES, density_class

FEW = 40


def chips(n: int = 300, seed: int = 0, spread: float = 0.15, fields: int = 60) -> Judged:
    """Chips over all classes and bands whose counts err by some dex."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99)
    n_star = np.concatenate([np.zeros(n // 10, int), (10 ** truth.uniform(0, 5.6, n - n // 10)).astype(int)])
    n_bright = n_star // 8
    log_star = np.maximum(np.log10(1.0 + n_star) + rng.normal(0, spread, n), 0)
    called = density_class(np.round(10**log_star - 1)).astype(int)
    chance = rng.dirichlet(np.full(N_CLASSES, 0.3), n)
    chance[np.arange(n), called] += 2.0
    log_bright = np.maximum(np.log10(1.0 + n_bright) + rng.normal(0, spread, n), 0)
    log_bright[called == 5] = np.nan
    return Judged.build(
        band=np.array(BANDS)[np.arange(n) % 7],
        field=[f"f{k % fields}" for k in range(n)],
        n_star=n_star,
        n_bright=n_bright,
        density_class=called,
        class_probability=chance / chance.sum(axis=1, keepdims=True),
        log_star=log_star,
        star_lower=np.maximum(10 ** (log_star - 1.645 * spread) - 1, 0),
        star_upper=10 ** (log_star + 1.645 * spread) - 1,
        log_bright=log_bright,
        bright_lower=np.maximum(10 ** (log_bright - 1.645 * spread) - 1, 0),
        bright_upper=10 ** (log_bright + 1.645 * spread) - 1,
        route=np.where(called == 5, "crowded", np.where(np.arange(n) % 5 == 0, "review", "standard")),
    )


def perfect(n: int = 200) -> Judged:
    """Chips that are predicted as they are."""
    judged = chips(n)
    return Judged.build(
        band=judged.band, field=judged.field, n_star=judged.n_star, n_bright=judged.n_bright,
        density_class=judged.true_class, class_probability=np.eye(N_CLASSES)[judged.true_class],
        log_star=judged.true_log_star, star_lower=judged.n_star, star_upper=judged.n_star,
        log_bright=judged.true_log_bright, bright_lower=judged.n_bright,
        bright_upper=judged.n_bright,
    )  # fmt: skip


def every_table(judged: Judged) -> dict[str, pd.DataFrame]:
    return {
        "class": tables.class_table(judged, "published", FEW),
        "overall": tables.overall_table(judged, FEW),
        "bypass": tables.bypass_table(judged),
        "bright": tables.count_table(judged, "bright", FEW),
        "star": tables.count_table(judged, "star", FEW),
        "edge": tables.edge_table(judged, FEW),
        "interval": trust.interval_table(judged, draws=FEW),
        "probability": trust.probability_table(judged, FEW),
        "reliability": trust.reliability_table(judged, FEW),
        "route": trust.route_table(judged, FEW),
        "selective": trust.selective_table(judged, FEW),
        "curve": trust.selective_curve(judged),
        "interval_star": trust.interval_table(judged, "star", FEW),
        "bands": tables.band_table(judged, FEW),
        "budget": budget.budget_table(judged, FEW),
        "components": budget.variance_components(judged),
        "methods": comparison.compare_methods({"one": judged}, FEW),
        "methods_bright": comparison.compare_counts({"one": judged}, draws=FEW),
    }


def test_perfect_predictions_score_one_and_err_by_zero():
    found = every_table(perfect())
    assert (found["class"][["precision", "recall", "f1"]] == 1).all(axis=None)
    overall = found["overall"]
    np.testing.assert_allclose(overall[["accuracy", "macro_f1", "class5_recall"]], 1, rtol=1e-12)
    np.testing.assert_allclose(overall["beyond_adjacent"], 0, atol=1e-12)
    assert overall["beyond_of_errors"].isna().all()  # no errors, no share of them
    for name in ("bright", "star"):
        assert (found[name][["mae", "mse", "rmse", "bias"]] == 0).all(axis=None)
        assert (found[name].loc[found[name]["by"] == "all", "r2"] == 1).all()
    for name in ("interval", "interval_star"):
        np.testing.assert_allclose(found[name]["coverage"], 1)
    np.testing.assert_allclose(found["probability"][["brier", "nll", "ece"]], 0, atol=1e-12)
    assert found["reliability"]["chips"].tolist() == [0] * 9 + [200]


def test_scores_agree_with_the_formulas_of_the_metrics():
    judged = chips()
    report, table = class_report(judged.true_class, judged.density_class), tables.class_table(judged, draws=FEW)
    for name in ("precision", "recall", "f1", "support"):
        np.testing.assert_allclose(table[name], getattr(report, name))
    overall = tables.overall_table(judged, FEW).iloc[0]
    assert overall["macro_f1"] == pytest.approx(macro_f1(judged.true_class, judged.density_class))
    errors = dex_errors(judged.true_log_bright[judged.counted], judged.log_bright[judged.counted])
    first = tables.count_table(judged, draws=FEW).iloc[0]
    for name in ("mae", "mse", "rmse", "r2"):
        assert first[name] == pytest.approx(getattr(errors, name))
    assert first["chips"] == judged.counted.sum() < len(judged)
    assert first["bias"] == pytest.approx(np.nanmean(judged.log_bright - judged.true_log_bright))


def test_far_errors_of_a_case_done_by_hand():
    judged = Judged.build(band=["g"] * 5, n_star=[0, 5, 500, 5000, 200_000], density_class=[0, 2, 5, 1, 5])
    scores = class_scores(judged, draws=2)
    assert scores["accuracy"][0] == pytest.approx(2 / 5)
    assert scores["beyond_adjacent"][0] == pytest.approx(2 / 5)
    assert scores["beyond_of_errors"][0] == pytest.approx(2 / 3)
    assert scores["class5_recall"][0] == 1
    assert math.isnan(scores["recall"][0, 4])


def test_reweighted_accuracy_is_the_mean_of_recalls_in_the_published_shares():
    judged = chips()
    recall = class_report(judged.true_class, judged.density_class).recall
    overall = tables.overall_table(judged, FEW).set_index("weighting")
    wanted = np.average(recall, weights=PUBLISHED)
    assert overall.loc["published", "accuracy"] == pytest.approx(wanted)
    weights = weigh(judged.true_class, "published")
    assert np.average(judged.right, weights=weights.values) == pytest.approx(wanted)
    assert overall.loc["published", "effective_chips"] == pytest.approx(weights.effective)
    absolute = np.abs(judged.log_bright - judged.true_log_bright)[judged.counted]
    mae = tables.count_table(judged, draws=FEW).set_index("part").loc["published", "mae"]
    assert mae == pytest.approx(np.average(absolute, weights=weights.values[judged.counted]))


def test_weights_that_are_flat_change_nothing():
    # as many chips of every class as in the published set, up to a factor
    counts = np.array(PUBLISHED) // 40
    n_star = np.repeat([0, 50, 500, 5000, 50_000, 500_000], counts)
    called = np.random.default_rng(0).integers(0, 6, counts.sum())
    judged = Judged.build(band=["g"] * len(n_star), n_star=n_star, density_class=called, field=np.arange(len(n_star)))
    flat, published = (class_scores(judged, name, FEW) for name in ("flat", "published"))
    np.testing.assert_allclose(published["accuracy"][0], flat["accuracy"][0], rtol=5e-3)
    np.testing.assert_allclose(published["f1"][0], flat["f1"][0], rtol=2e-2)
    ones = mean_scores(judged, {"one": np.ones(len(judged))}, "published", FEW)["one"]
    np.testing.assert_allclose(ones, 1)


def test_parts_add_up_to_the_whole():
    judged = chips()
    table = tables.count_table(judged, draws=FEW)
    whole = table.iloc[0]
    for by in ("band", "class", "count"):
        part = table[(table["by"] == by) & (table["part"] != "all but NUV")]
        assert part["chips"].sum() == whole["chips"]
        for name in ("mae", "mse", "bias"):
            assert np.average(part[name], weights=part["chips"]) == pytest.approx(whole[name])
    two = table[table["part"].isin(["NUV", "all but NUV"])]
    assert two["chips"].sum() == whole["chips"]
    assert np.average(two["mae"], weights=two["chips"]) == pytest.approx(whole["mae"])
    bypassed = tables.bypass_table(judged)
    assert bypassed["chips"].iloc[1:].sum() == bypassed["chips"].iloc[0] == len(judged)
    edges = tables.edge_table(judged, FEW)
    assert edges["chips"].sum() == len(judged)
    assert edges["share_of_errors"].sum() == pytest.approx(1)
    some = edges[edges["chips"] > 0]
    assert np.average(some["accuracy"], weights=some["chips"]) == pytest.approx(judged.right.mean())
    routes = trust.route_table(judged, FEW).set_index("route")
    assert routes["chips"].drop(["all", "all but review"]).sum() == routes.loc["all", "chips"] == len(judged)
    assert routes.loc["all but review", "chips"] == len(judged) - routes.loc["review", "chips"]
    reliability = trust.reliability_table(judged, FEW)
    assert reliability["chips"].sum() == len(judged)


def test_a_bootstrap_error_of_a_proportion_is_the_binomial_one_when_each_chip_is_a_field():
    n = 400
    judged = Judged.build(
        band=["g"] * n, n_star=[500] * n, density_class=np.repeat([2, 3], [300, 100]), field=np.arange(n)
    )
    row = tables.overall_table(judged, 3000).iloc[0]
    assert row["accuracy"] == 0.75
    assert row["accuracy_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / n), rel=0.06)
    together = Judged.build(
        band=["g"] * n, n_star=[500] * n, density_class=np.repeat([2, 3], [300, 100]), field=np.arange(n) // 20
    )
    row = tables.overall_table(together, 3000).iloc[0]
    assert row["accuracy_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 20), rel=0.1)


def test_an_error_of_a_mean_is_its_scatter_and_one_field_has_none():
    rng = np.random.default_rng(2)
    n = 500
    judged = Judged.build(band=["g"] * n, n_star=[500] * n, density_class=[2] * n, field=np.arange(n))
    noise = rng.normal(0, 0.1, n)
    errors = np.nanstd(dex_scores(judged, np.zeros(n), noise, draws=2000)["bias"][1:])
    assert errors == pytest.approx(noise.std() / math.sqrt(n), rel=0.06)
    one = Judged.build(band=["g"] * n, n_star=[500] * n, density_class=[2] * n)
    assert math.isnan(tables.overall_table(one, FEW)["accuracy_error"].iloc[0])


def test_the_order_of_the_chips_changes_nothing():
    judged = chips(150)
    shuffled = judged.take(np.random.default_rng(3).permutation(len(judged)))
    for name, table in every_table(judged).items():
        pd.testing.assert_frame_equal(every_table(shuffled)[name], table, rtol=1e-7, atol=1e-9, obj=name)


@pytest.mark.parametrize("edge", CLASS_EDGES)
def test_a_chip_on_an_edge_belongs_to_the_upper_class_and_lies_just_above(edge):
    (below, on), nearest = tables.edge_distance([edge - 1, edge])
    assert below < 0 < on
    assert nearest.tolist() == [edge, edge]
    assert density_class([edge - 1, edge]).tolist() == [k := CLASS_EDGES.index(edge), k + 1]
    if edge > 1:
        assert on == pytest.approx(-below, rel=0.01)
        assert on < 0.01


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_distance_from_an_edge_has_the_sign_of_the_class(counts):
    distance, edge = tables.edge_distance(counts)
    upper = np.searchsorted(CLASS_EDGES, edge) + 1
    np.testing.assert_array_equal(distance > 0, density_class(counts) >= upper)
    assert (distance != 0).all()
    table = tables.edge_table(
        Judged.build(band=["g"] * len(counts), n_star=counts, density_class=density_class(counts)), 2
    )
    assert table["chips"].sum() == len(counts)


def test_void_chips_lie_where_the_table_says():
    assert tables.edge_distance([0])[0][0] == pytest.approx(-0.176, abs=1e-3)
    assert tables.edge_distance([1])[0][0] == pytest.approx(0.125, abs=1e-3)


def intervals(n_bright, lower, upper) -> Judged:
    n = len(n_bright)
    return Judged.build(
        band=["g"] * n, n_star=[500] * n, density_class=[2] * n, n_bright=n_bright, bright_lower=lower,
        bright_upper=upper, field=np.arange(n),
    )  # fmt: skip


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_exact_quantiles_cover_their_share(level):
    rng = np.random.default_rng(4)
    truth = rng.permutation(np.arange(1, 2001))
    low, high = np.quantile(truth, [(1 - level) / 2, (1 + level) / 2])
    row = trust.interval_table(intervals(truth, np.full(2000, low), np.full(2000, high)), draws=FEW).iloc[0]
    assert row["coverage"] == pytest.approx(level, abs=1e-3)
    assert row["below"] == pytest.approx((1 - level) / 2, abs=1e-3)
    assert row["coverage"] + row["below"] + row["above"] == pytest.approx(1)
    assert row["width"] == pytest.approx(np.log10((1 + high) / (1 + low)))


def test_a_bound_belongs_to_the_interval_in_single_precision_and_may_be_infinite():
    truth = np.array([0, 7, 123_457, 50, 50])
    bound = (10 ** np.log10(1.0 + truth).astype(np.float32).astype(float) - 1).astype(np.float32)
    judged = intervals(truth, np.append(bound[:3], [51, 0]), np.append(bound[:3], [np.inf, 49]))
    inside, below, above = trust.within(judged)
    assert inside.tolist() == [1, 1, 1, 0, 0]
    assert below.tolist() == [0, 0, 0, 1, 0]
    assert above.tolist() == [0, 0, 0, 0, 1]
    assert np.isnan(trust.within(intervals([3, -1], [np.nan, 1], [np.nan, 2]))[0]).all()


def test_probabilities_of_cases_done_by_hand():
    n = 1000
    chance = np.tile([0.7, 0.3, 0, 0, 0, 0], (n, 1))
    right = Judged.build(
        band=["g"] * n, n_star=np.repeat([0, 5], [700, 300]), density_class=[0] * n, class_probability=chance,
        field=np.arange(n),
    )  # fmt: skip
    row = trust.probability_table(right, FEW).iloc[0]
    assert row["ece"] == pytest.approx(0, abs=1e-9)
    assert row["brier"] == pytest.approx(0.7 * (0.3**2 + 0.3**2) + 0.3 * (0.7**2 + 0.7**2))
    assert row["nll"] == pytest.approx(-0.7 * math.log(0.7) - 0.3 * math.log(0.3))
    chance[:, :2] = [0.9, 0.1]
    over = trust.probability_table(
        Judged.build(band=right.band, n_star=right.n_star, density_class=[0] * n, class_probability=chance), FEW
    )
    assert over["ece"].iloc[0] == pytest.approx(0.2)
    uniform = np.full((n, 6), 1 / 6)
    nothing = Judged.build(band=right.band, n_star=right.n_star, density_class=[0] * n, class_probability=uniform)
    assert trust.probability_table(nothing, FEW)["nll"].iloc[1] == pytest.approx(math.log(6))


def test_keeping_all_chips_gives_the_accuracy_and_ties_stay_together():
    judged = chips()
    curve = trust.selective_curve(judged)
    assert curve["accuracy"].iloc[-1] == pytest.approx(judged.right.mean())
    assert curve["kept"].iloc[-1] == 1
    assert (np.diff(curve["kept"]) > 0).all()
    assert (np.diff(curve["confidence"]) < 0).all()
    table = trust.selective_table(judged, FEW)
    assert (table["kept"] >= table["at_least"] - 1e-12).all()
    for row in table.itertuples():
        kept = judged.confidence >= row.confidence
        assert kept.sum() == row.chips == round(row.kept * len(judged))
        assert judged.right[kept].mean() == pytest.approx(row.accuracy)
    same = Judged.build(
        band=["g"] * 4, n_star=[0] * 4, density_class=[0, 0, 1, 1], class_probability=np.full((4, 6), 1 / 6)
    )
    assert trust.selective_curve(same).to_numpy().tolist() == [[1 / 6, 1, 0.5]]


def test_a_method_against_itself_gains_nothing_and_differences_add():
    one, two = chips(seed=1), chips(seed=2, spread=0.3)
    gains = comparison.method_differences({"one": one, "same": one, "two": two}, FEW).set_index("method")
    assert gains.loc["same", ["accuracy_gain", "accuracy_gain_error", "mae_gain", "mae_gain_error"]].tolist() == [0] * 4
    both = comparison.compare_methods({"one": one, "two": two}, FEW)
    assert gains.loc["two", "accuracy_gain"] == pytest.approx(both["accuracy"].iloc[1] - both["accuracy"].iloc[0])
    assert gains.loc["two", "counted_by_both"] == (one.counted & two.counted).sum() < two.counted.sum()
    assert gains.loc["two", "accuracy_gain"] < 0 < gains.loc["two", "mae_gain"]
    assert not len(comparison.method_differences({"one": one, "part": two.take(np.arange(100))}, FEW))


def test_published_values_stand_beside_the_measured_ones():
    ours = comparison.Architecture("ResNet34", 0.95, 0.94, 21_300_000, 3, 1000)
    table = comparison.architecture_table([ours, comparison.Architecture("mine", 0.9, 0.9, 1, 1, 1)])
    assert table["model"].tolist() == ["ResNet-34", "mine"]
    assert table.loc[0, ["accuracy_percent", "accuracy_percent_published"]].tolist() == [95, 98.83]
    assert table.loc[0, ["parameters_million", "memory_mb_published"]].tolist() == [21.3, 1124]
    assert math.isnan(table.loc[1, "ms_per_image_published"])
    five = comparison.performance_table(perfect(), draws=FEW)
    assert five["accuracy_or_mae"].tolist() == ["100.00 ± 0.00 %"] * 7 + ["0.0000 ± 0.0000"]
    assert five["recall_or_rmse_published"].tolist()[3:] == ["97.90 %", "99.19 %", "99.62 %", "", "0.1333"]
    assert five["f1_or_r2_published"].tolist()[6:] == ["96.27 %", "0.9076"]
    # F1 follows from precision and recall as printed
    for precision, recall, f1 in comparison.PUBLISHED_CLASSES:
        assert 2 * precision * recall / (precision + recall) == pytest.approx(f1, abs=1.5e-4)
    assert math.sqrt(comparison.PUBLISHED_DEX["mse"]) == pytest.approx(comparison.PUBLISHED_DEX["rmse"], abs=2e-4)


def test_reweighted_tables_hold_the_reweighted_scores():
    judged = chips()
    scores = {name: class_scores(judged, name, FEW) for name in ("flat", "published")}
    dex = dex_scores(judged, judged.true_log_bright, judged.log_bright, "published", FEW)
    five = comparison.performance_table(judged, "published", FEW)
    assert five["accuracy_or_mae"][6].startswith(f"{100 * scores['published']['accuracy'][0]:.2f} ±")
    assert five["accuracy_or_mae"][7].startswith(f"{dex['mae'][0]:.4f} ±")
    assert scores["flat"]["accuracy"][0] != pytest.approx(scores["published"]["accuracy"][0], abs=1e-4)
    row = comparison.compare_methods({"one": judged}, FEW).iloc[0]
    assert row["accuracy_reweighted"] == pytest.approx(scores["published"]["accuracy"][0])
    assert row["macro_f1_reweighted"] == pytest.approx(scores["published"]["macro_f1"][0])


def counting(judged: Judged, log_bright, n_bright=None) -> Judged:
    """The same chips with other counts."""
    return Judged.build(
        band=judged.band, field=judged.field, n_star=judged.n_star, density_class=judged.density_class,
        n_bright=judged.n_bright if n_bright is None else n_bright, log_bright=log_bright,
    )  # fmt: skip


def test_only_chips_that_all_methods_counted_compare_them():
    judged = chips()
    error = np.where(np.arange(len(judged)) % 3 == 0, 0.5, 0.1)  # every third chip is hard
    every = counting(judged, judged.true_log_bright + error)
    shy = counting(judged, np.where(error > 0.2, np.nan, judged.true_log_bright + error))
    silent = counting(judged, np.full(len(judged), np.nan))
    methods = {"every": every, "shy": shy, "silent": silent, "elsewhere": every.take(np.arange(50))}
    table = comparison.compare_counts(methods, draws=FEW).set_index("method")
    assert table.loc["every", "mae"] > 0.2 > table.loc["shy", "mae"]  # the same skill, though
    np.testing.assert_allclose(table.loc[["every", "shy"], "mae_common"], 0.1)
    assert table["common"].tolist() == [200, 200, 0, 0]
    np.testing.assert_allclose(table["counted"], [1, 2 / 3, 0, 1])
    assert table.loc[["silent", "elsewhere"], "mae_common"].isna().all()


def test_unknown_numbers_of_bright_stars_are_left_out_of_every_score_of_them():
    judged = chips()
    unknown = np.arange(len(judged)) % 4 == 0
    part = counting(judged, judged.log_bright, np.where(unknown, -1, judged.n_bright))
    other = counting(judged.take(~unknown), judged.log_bright[~unknown])
    one, two = (comparison.compare_counts({"a": which}, draws=FEW).iloc[0] for which in (part, other))
    assert one[["known", "counted", "mae", "mae_common", "r2"]].tolist() == pytest.approx(
        two[["known", "counted", "mae", "mae_common", "r2"]].tolist()
    )
    case = tables.bypass_table(part).set_index("case")["chips"]
    assert case["counted, true number unknown"] == (unknown & np.isfinite(judged.log_bright)).sum()


def test_intervals_of_all_stars_are_judged_by_all_stars():
    n = 1000
    n_star = np.random.default_rng(0).integers(1, 10**5, n)
    low, high = np.quantile(n_star, [0.05, 0.95])
    judged = Judged.build(
        band=["g"] * n, n_star=n_star, density_class=density_class(n_star), n_bright=np.zeros(n),
        star_lower=np.full(n, low), star_upper=np.full(n, high), field=np.arange(n),
    )  # fmt: skip
    table = trust.interval_table(judged, "star", FEW)
    assert table["coverage"][0] == pytest.approx(0.9, abs=2e-3)
    assert set(table["by"]) == {"all", "band", "class"}
    assert trust.interval_table(judged, "bright", FEW)["chips"].tolist() == [0, 0]


def test_methods_that_give_little_have_tables_with_gaps():
    judged = Judged.build(band=["g", "u"], n_star=[0, 500], density_class=[0, 1], field=["a", "b"])
    found = every_table(judged)
    assert found["bright"]["chips"].tolist() == [0, 0]
    assert found["bright"]["mae"].isna().all()
    assert found["interval"]["coverage"].isna().all()
    assert found["probability"]["chips"].tolist() == [0, 0]
    assert len(found["curve"]) == len(found["selective"]) == 0
    assert found["route"]["route"].tolist() == ["all", "none given", "all but review"]
    with pytest.raises(ValueError, match="'bright' or of 'star', not 'stars'"):
        tables.count_table(judged, "stars")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.041234, 0.002134, "0.0412 ± 0.0021"),
        (0.98, 0.0, "0.9800 ± 0.0000"),
        (0.9, 1e-16, "0.9000 ± 0.0000"),
        (12.3456, 1.54, "12.3 ± 1.5"),
        (1234.5, 120.0, "1,234 ± 120"),
        (0.5, math.nan, "0.5"),
        (math.nan, 0.1, ""),
        (math.inf, math.nan, "infinite"),
        (-0.0000001, 0.01, "0.000 ± 0.010"),
    ],
)
def test_numbers_end_where_their_error_does(value, error, text):
    assert formatting.with_error(value, error) == text


@given(st.lists(st.floats(0.001, 9.99), min_size=1, max_size=8))
@settings(max_examples=30)
def test_plain_numbers_keep_their_value(values):
    for value, text in zip(values, formatting.plain(values), strict=True):
        assert float(text) == pytest.approx(value, abs=6e-5)


def test_a_markdown_table_joins_errors_to_their_values():
    table = pd.DataFrame({"part": ["a"], "n": [1500], "mae": [0.0412], "mae_error": [0.0021], "width": [0.25]})
    assert formatting.markdown_table(table) == [
        "| part | n | mae | width |",
        "| --- | ---: | ---: | ---: |",
        "| a | 1,500 | 0.0412 ± 0.0021 | 0.25 |",
    ]
