"""What scatter of the counts costs, what it is common to, and what the methods themselves cost."""

import numpy as np
import pytest

from csst_dask.errors import ConfigError
from csst_dask.evaluation import cost
from csst_dask.evaluation.budget import (
    TARGET,
    accuracy_curve,
    budget_table,
    expected_accuracy,
    needed_mae,
    variance_components,
)
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.page import SHIPPED, name_methods
from csst_dask.schema import BANDS, density_class


def counts(n=3000, seed=0):
    return (10 ** np.random.default_rng(seed).uniform(0, 5.6, n)).astype(int) - 1


@pytest.mark.parametrize("law", ["laplace", "normal"])
def test_expected_accuracy_is_that_of_counts_that_err_so(law):
    rng, n_star = np.random.default_rng(1), counts(60_000)
    draw = (
        rng.laplace(0, 0.05, n_star.size) if law == "laplace" else rng.normal(0, 0.05 * np.sqrt(np.pi / 2), n_star.size)
    )
    assert np.abs(draw).mean() == pytest.approx(0.05, rel=0.02)
    called = density_class(np.round(np.maximum(10 ** (np.log10(1 + n_star) + draw) - 1, 0)))
    assert expected_accuracy(n_star, 0.05, law) == pytest.approx(np.mean(called == density_class(n_star)), abs=4e-3)


def test_the_needed_error_gives_the_target_and_fewer_errors_more():
    n_star = counts()
    for law in ("laplace", "normal"):
        assert expected_accuracy(n_star, needed_mae(n_star, law), law) == pytest.approx(TARGET, abs=1e-5)
    accuracies = [expected_accuracy(n_star, mae) for mae in (0, 0.01, 0.1, 1)]
    assert accuracies[0] == 1
    assert (np.diff(accuracies) < 0).all()
    assert np.isnan([needed_mae([]), expected_accuracy([], 0.1)]).all()


def test_the_budget_of_chips_done_by_hand():
    n_star = np.array([990, 1010, 3000, 1010])
    judged = Judged.build(
        band=["g", "g", "u", "u"], n_star=n_star, density_class=[3, 3, 4, 3], log_star=np.log10(1 + n_star) + 0.02,
        field=list("abcd"), n_bright=[-1] * 4,
    )  # fmt: skip
    table = budget_table(judged, 20)
    first = table.iloc[0]
    assert (first["chips"], first["wrong"]) == (4, 2)
    assert first["mae"] == pytest.approx(0.02)
    assert first["chips_within_0.02"] == 0.75
    assert first["wrong_within_0.02"] == 0.5
    assert first["expected_laplace"] == pytest.approx(expected_accuracy(n_star, 0.02))
    assert table["part"].tolist() == ["flat", "published", "u", "g"] or set(table["part"][2:]) == {"g", "u"}
    curve = accuracy_curve(judged)
    assert (np.diff(curve["laplace_flat"]) <= 0).all()


def test_scatter_is_taken_apart():
    rng = np.random.default_rng(0)
    fields, chips = 400, 6
    common = np.repeat(rng.normal(0, 0.05, fields), chips)
    n_star = counts(fields * chips)
    error = 0.03 + common + rng.normal(0, 0.02, fields * chips)
    judged = Judged.build(
        band=np.tile(["g", "g", "g", "u", "u", "u"], fields), n_star=n_star, density_class=density_class(n_star),
        field=np.repeat(np.arange(fields), chips), log_star=np.log10(1 + n_star) + error,
    )  # fmt: skip
    table = variance_components(judged)
    assert table["band"].tolist() == ["all", *(band for band in BANDS if band in "ug")]
    for _, row in table.iterrows():
        assert row["bias"] == pytest.approx(0.03, abs=0.01)
        assert row["between_fields"] == pytest.approx(0.05, rel=0.1)
        assert row["within_fields"] == pytest.approx(0.02, rel=0.06)
        total = row["bias"] ** 2 + row["between_fields"] ** 2 + row["within_fields"] ** 2
        assert total == pytest.approx(row["rms"] ** 2, rel=0.01)
    assert not len(variance_components(judged.take(np.arange(6))))


def test_a_network_is_measured_in_a_process_of_its_own(weights):
    from csst_dask.models import load_weights

    path = weights / "classifier.safetensors"
    found = cost.measure_network("mine", path, 2)
    assert found.parameters == sum(tensor.numel() for tensor in load_weights(path).module.parameters())
    assert (found.part, found.model, found.threads, found.batch) == ("classifier", "perceptron", 1, 2)
    assert 0 < found.ms_per_image < 60_000
    assert 4 * found.parameters / 1e6 < found.memory_mb < 2000
    assert "cores" in cost.describe_machine()
    with pytest.raises(cost.CostUnknown, match="cost of mine failed: TypeError"):
        cost._measure("mine", 1, kind="trees")


def test_names_tell_folders_apart(tmp_path):
    paths = [tmp_path / part for part in ("one/weights", "two/weights", "three")]
    assert list(name_methods(paths)) == ["one/weights", "two/weights", "three"]
    assert list(name_methods([None, tmp_path / "a" / "shipped"])) == [SHIPPED, "a/shipped"]
    assert list(name_methods([tmp_path / "x" / "trees-and-svm"])) == ["x/trees-and-svm"]
    with pytest.raises(ConfigError, match="given twice"):
        name_methods([paths[0], tmp_path / "one" / ".." / "one" / "weights"])
    with pytest.raises(ConfigError, match="cannot be told apart"):
        name_methods([tmp_path / "a-b", tmp_path / "a_b"])
