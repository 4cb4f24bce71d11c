"""What imperfect frames do: each case changes what it says and nothing else, and the table tells it."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from robustness import DENSITIES, OTHER, measure, summary  # noqa: E402
from robustness_cases import CASES, Frame, amplifiers, ramp, smooth_field  # noqa: E402

from csst_dask.instrument.cells import AMPLIFIERS  # noqa: E402
from csst_dask.instrument.flags import FLAG_COSMIC_RAY, FLAG_HOT, FLAG_SATURATED  # noqa: E402

SHAPE = (460, 480)
FLAGS_ONLY = (
    [name for name in CASES if "flagged" in name and "bleeding" not in name]
    + [name for name in CASES if "masked" in name]
    + ["no flags"]
)


@pytest.fixture
def frame(rng):
    image = (0.2 + 0.05 * rng.standard_normal(SHAPE)).astype(np.float32)
    image[100:103, 100:103] += 50
    flags = np.zeros(SHAPE, np.uint16)
    for bit in (FLAG_COSMIC_RAY, FLAG_HOT, FLAG_SATURATED):
        flags.reshape(-1)[rng.choice(flags.size, 2000, replace=False)] |= np.uint16(bit)
    return Frame(image, flags, 150.0, 0.2)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", CASES)
def test_a_case_leaves_the_frame_that_it_is_given_and_is_the_same_from_its_seed(frame, name):
    image, flags = frame.image.copy(), frame.flags.copy()
    one, two = (CASES[name](frame, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(frame.image, image)
    np.testing.assert_array_equal(frame.flags, flags)
    np.testing.assert_array_equal(one.image, two.image)
    assert one.image.dtype == np.float32
    assert one.image.shape == SHAPE
    assert np.isfinite(one.image).all()
    changed = (
        (one.image != image).any() or one.flags is None or (one.flags != flags).any() or one.exptime != frame.exptime
    )
    assert changed
    assert ((one.image == image).all()) == (name in FLAGS_ONLY or "header" in name)


@pytest.mark.parametrize(("name", "bit"), [("cosmic rays", FLAG_COSMIC_RAY), ("hot pixels", FLAG_HOT)])
def test_flags_go_from_as_many_pixels_as_a_case_says(frame, rng, name, bit):
    before = (frame.flags & bit > 0).sum()
    all_of_them = CASES[f"{name} not flagged"](frame, rng).flags
    assert not (all_of_them & bit).any()
    assert ((all_of_them | bit) == (frame.flags | bit)).all()  # others stay
    kind = {"cosmic rays": "cosmic-ray pixels", "hot pixels": "hot pixels"}[name]
    some = CASES[f"10 % of {kind} not flagged"](frame, rng).flags
    assert (some & bit > 0).sum() == pytest.approx(0.9 * before, rel=0.02)


@pytest.mark.parametrize("name", [name for name in CASES if "fifth masked" in name])
def test_a_fifth_is_a_fifth(frame, rng, name):
    clean = replace(frame, flags=np.zeros(SHAPE, np.uint16))
    assert (CASES[name](clean, rng).flags > 0).mean() == pytest.approx(0.2, abs=0.035)


def test_shapes_have_the_size_that_they_say(rng):
    plane = ramp(SHAPE)
    assert np.ptp(plane) == pytest.approx(2)
    assert plane.mean() == pytest.approx(0, abs=1e-6)
    field = smooth_field((2000, 2000), 50, rng)
    assert field.std() == pytest.approx(1, abs=0.25)
    assert np.abs(np.diff(field, axis=0)).max() < 0.2
    values = rng.standard_normal(AMPLIFIERS)
    steps = amplifiers(SHAPE, values)
    assert np.unique(steps).size == values.size
    assert steps[0, 0] == np.float32(values[0, 0])
    assert steps[-1, -1] == np.float32(values[-1, -1])


def test_the_table_tells_every_case_of_every_chip():
    found = measure(["g"], DENSITIES[-1:], 770, SHAPE)
    assert found["case"].tolist() == ["as it is", *CASES, *OTHER]
    table = summary(found)
    assert (table["chips"] == 1).all()
    assert table.loc["as it is", ["star: median", "bright: median", "direct: median"]].fillna(0).tolist() == [0, 0, 0]
    assert (
        table.filter(like="silently").fillna(0).to_numpy() <= table.filter(like=": moved").fillna(0).to_numpy()
    ).all()
