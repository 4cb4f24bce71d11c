import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csst_dask.config import RoutingConfig
from csst_dask.evaluation.gates import Gates, gate_table
from csst_dask.evaluation.judged import Judged
from csst_dask.inference import route
from csst_dask.inference.routing import gate
from csst_dask.schema import ROUTE_FLAGS, ROUTES

CONFIG = RoutingConfig(min_bright=20, min_confidence=0.6, missed_cost=5, needless_cost=1, review_cost=0.5)
CASES = list(itertools.product([True, False], [0.0, 0.3, 0.9], [5.0, 50.0, np.nan], [0.3, 0.9], [True, False]))


@pytest.mark.parametrize(("valid", "chance", "bright", "confidence", "out_of_distribution"), CASES)
def test_truth_table(valid, chance, bright, confidence, out_of_distribution):
    expected = [
        name
        for name, holds in (
            ("invalid", not valid),
            ("crowded", chance == 0.9),
            ("review", confidence < 0.6 or out_of_distribution or chance == 0.3),  # 1.5 and 0.7 exceed 0.5
            ("sparse", bright < 20),
        )
        if holds
    ] or ["standard"]
    name, flags = route([chance], [bright], [confidence], [valid], [out_of_distribution], CONFIG)
    assert name[0] == ("review" if valid and out_of_distribution else expected[0])
    assert flags[0] == sum(ROUTE_FLAGS[word] for word in expected)
    assert flags.dtype == np.uint8


def test_a_value_at_its_threshold_is_good_enough():
    assert route([0.0], [20.0], [0.6], [True], [False], CONFIG)[0][0] == "standard"


def test_an_unknown_confidence_asks_for_review_unless_the_chip_is_invalid_anyway():
    names, flags = route([np.nan] * 2, [50.0, 50.0], [np.nan] * 2, [True, False], [False] * 2, CONFIG)
    assert names.tolist() == ["review", "invalid"]
    assert flags[1] == ROUTE_FLAGS["invalid"]


def test_chips_do_not_influence_each_other():
    rows = [(chance, bright, c, v, u) for v, chance, bright, c, u in CASES]
    together = route(*(np.array(column) for column in zip(*rows, strict=True)), CONFIG)
    alone = [route(*([value] for value in row), CONFIG) for row in rows]
    assert together[0].tolist() == [name[0] for name, _ in alone]
    assert together[1].tolist() == [flag[0] for _, flag in alone]
    assert set(together[0]) == set(ROUTES)


def test_no_chips():
    names, flags = route([], [], [], [], [], CONFIG)
    assert names.shape == flags.shape == (0,)


COSTS = st.floats(0, 20)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), COSTS, COSTS, COSTS)
def test_no_other_gate_is_expected_to_cost_less(chances, missed, needless, review):
    config = RoutingConfig(missed_cost=missed, needless_cost=needless, review_cost=review)
    p = np.array(chances)
    costs = {"standard": p * missed, "crowded": (1 - p) * needless, "review": np.full(len(p), review)}
    chosen = gate(p, config)
    found = np.array([costs[name][k] for k, name in enumerate(chosen)])
    np.testing.assert_array_equal(found, np.min(list(costs.values()), axis=0))


def test_equal_costs_and_dear_reviews_give_the_more_probable_side():
    config = RoutingConfig(missed_cost=1, needless_cost=1, review_cost=1)
    assert gate([0.2, 0.5, 0.51, np.nan], config).tolist() == ["standard", "standard", "crowded", "standard"]


def test_the_table_adds_up_what_mistakes_cost():
    n_star = [200_000, 200_000, 200_000, 5000, 5000, 0]
    judged = Judged.build(band=["g"] * 6, n_star=n_star, density_class=[5, 4, 4, 5, 3, 0], field=list("abcdef"))
    rules = {"one": np.array(["crowded", "standard", "review", "crowded", "standard", "standard"])}
    row = gate_table(judged, Gates(rules, 5, 1, 0.5), draws=20).iloc[0]
    assert row[["crowded", "review", "missed", "needless"]].tolist() == [2, 1, 1, 1]
    assert row["cost"] == pytest.approx((5 + 0.5 + 1) / 6)
