"""Laws of the plan of a job."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from csst_dask.capacity import GB, Costs, Site, plan
from csst_dask.cli import app
from csst_dask.errors import ConfigError

IMAGES, HOURS = st.integers(1, 10**8), st.floats(0.01, 1e4)
SITES = st.builds(
    Site, st.integers(1, 1000), st.integers(1, 256), st.integers(0, 16), *[st.floats(1e9, 1e13) for _ in range(5)]
)
PIXELS = st.sampled_from(["none", "quantised", "lossless"])
GROW = {
    "cores": ("cores",),
    "reading from storage": ("reading",),
    "writing to storage": ("writing",),
    "network of the nodes": ("network",),
    "GPUs, by what feeds them": ("gpus", "pcie"),
    "memory of workers": ("memory",),
}


@given(IMAGES, HOURS, SITES, PIXELS)
def test_needs_are_rates(images, hours, site, pixels):
    one, more, longer = (plan(n, h, site=site, pixels=pixels) for n, h in
                         ((images, hours), (3 * images, hours), (images, 3 * hours)))  # fmt: skip
    for a, b, c in zip(one.needs, more.needs, longer.needs, strict=True):
        assert b.needed == pytest.approx(3 * a.needed)
        assert c.needed == pytest.approx(a.needed / 3)
        assert a.have == b.have == c.have
    assert more.stored == pytest.approx(3 * one.stored)
    assert more.client_memory == pytest.approx(3 * one.client_memory)
    assert more.takes == pytest.approx(3 * one.takes)
    assert longer.takes == pytest.approx(one.takes)


@given(IMAGES, HOURS, SITES, PIXELS)
def test_a_job_takes_as_long_as_its_bottleneck(images, hours, site, pixels):
    found = plan(images, hours, site=site, pixels=pixels)
    assert found.bottleneck.load == max(need.load for need in found.needs)
    assert found.fits == all(need.load <= 1 for need in found.needs)
    assert found.fits == (found.takes <= hours) or found.takes == pytest.approx(hours)
    # given the time that it takes, it just fits
    assert plan(images, found.takes, site=site, pixels=pixels).bottleneck.load == pytest.approx(1)


@given(IMAGES, HOURS, SITES)
def test_what_is_not_stored_costs_nothing(images, hours, site):
    one, other = (plan(images, hours, site=site, pixels=pixels) for pixels in ("none", "lossless"))
    for a, b in zip(one.needs, other.needs, strict=True):
        assert a.needed <= b.needed
    assert one.stored < other.stored


@given(IMAGES, HOURS, SITES, PIXELS)
def test_more_of_the_bottleneck_helps(images, hours, site, pixels):
    found = plan(images, hours, site=site, pixels=pixels)
    for name in GROW.get(found.bottleneck.what, ()):
        better = plan(images, hours, site=dataclasses.replace(site, **{name: 2 * getattr(site, name)}), pixels=pixels)
        assert better.takes <= found.takes
        second = sorted(need.load for need in found.needs)[-2]
        assert better.bottleneck.load == pytest.approx(max(found.bottleneck.load / 2, second))


def test_costs_make_the_round_trip(tmp_path):
    costs = Costs(read={"image": 1.0}, written={"none": 2.0}, ingest={"none": 3.0})
    (tmp_path / "costs.json").write_text(costs.dump())
    assert Costs.load(tmp_path / "costs.json") == costs
    with pytest.raises(ConfigError, match="lossless"):
        plan(1, 1, costs, pixels="lossless")
    (tmp_path / "other.json").write_text('{"reading": 1}')
    with pytest.raises(ConfigError, match="expected an object with some of"):
        Costs.load(tmp_path / "other.json")
    for wrong in ('{"predict": "much"}', '{"predict": -1}', '{"read": 3}', '{"read": {"image": null}}', "[]"):
        (tmp_path / "other.json").write_text(wrong)
        with pytest.raises(ConfigError, match="expected"):
            Costs.load(tmp_path / "other.json")
    with pytest.raises(ConfigError, match="no costs can be read"):
        Costs.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize(("images", "hours"), [(0, 1), (1, 0), (1, -1), (1, float("nan")), (1, float("inf"))])
def test_nothing_to_plan(images, hours):
    with pytest.raises(ConfigError, match="positive"):
        plan(images, hours)


def test_the_command_says_what_the_function_says():
    words = ["plan", "--images", "1900000", "--hours", "24", "--reading", "5"]
    found = plan(1_900_000, 24, site=Site(reading=5 * GB))
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert told["bottleneck"] == found.bottleneck.what == "reading from storage"
    assert told["takes_hours"] == pytest.approx(found.takes)
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0
    assert f"first bottleneck: {found.bottleneck.what}" in shown.stdout
    assert CliRunner().invoke(app, [*words, "--pixels", "some"]).exit_code == 2
    assert CliRunner().invoke(app, [*words, "--nodes", "0"]).exit_code == 2
