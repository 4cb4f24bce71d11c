import itertools

import numpy as np
import pytest

from csst_dask.config import RoutingConfig
from csst_dask.inference import route
from csst_dask.schema import ROUTE_FLAGS, ROUTES

CONFIG = RoutingConfig(min_bright=20, min_confidence=0.6)
CASES = list(itertools.product([True, False], [2, 5], [5.0, 50.0], [0.3, 0.9], [True, False]))


@pytest.mark.parametrize(("valid", "level", "bright", "confidence", "unlike"), CASES)
def test_truth_table(valid, level, bright, confidence, unlike):
    count = np.nan if level == 5 else bright
    expected = [
        name
        for name, holds in (
            ("invalid", not valid),
            ("crowded", level == 5),
            ("review", confidence < 0.6 or unlike),
            ("sparse", level != 5 and bright < 20),
        )
        if holds
    ] or ["standard"]
    name, flags = route([level], [count], [confidence], [valid], [unlike], CONFIG)
    assert name[0] == expected[0]
    assert flags[0] == sum(ROUTE_FLAGS[word] for word in expected)
    assert flags.dtype == np.uint8


def test_a_value_at_its_threshold_is_good_enough():
    assert route([2], [20.0], [0.6], [True], [False], CONFIG)[0][0] == "standard"


def test_an_unknown_confidence_asks_for_review_unless_the_chip_is_invalid_anyway():
    names, flags = route([2, 2], [50.0, 50.0], [np.nan] * 2, [True, False], [False] * 2, CONFIG)
    assert names.tolist() == ["review", "invalid"]
    assert flags[1] == ROUTE_FLAGS["invalid"]


def test_chips_do_not_influence_each_other():
    rows = [(level, np.nan if level == 5 else b, c, v, u) for v, level, b, c, u in CASES]
    together = route(*(np.array(column) for column in zip(*rows, strict=True)), CONFIG)
    alone = [route(*([value] for value in row), CONFIG) for row in rows]
    assert together[0].tolist() == [name[0] for name, _ in alone]
    assert together[1].tolist() == [flag[0] for _, flag in alone]
    assert set(together[0]) == set(ROUTES)


def test_no_chips():
    names, flags = route([], [], [], [], [], CONFIG)
    assert names.shape == flags.shape == (0,)
