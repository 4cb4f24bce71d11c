"""The pass over pixels on a torch device gives what the compiled one gives, chip after chip."""

import threading
from contextlib import contextmanager

import in_process
import numpy as np
import pytest
import torch
from conftest import CHUNKS, FRAME, decoded

from csst_dask.config import Config, with_settings
from csst_dask.errors import ChipRejected
from csst_dask.io import discover
from csst_dask.pipeline import block as block_module
from csst_dask.pipeline.device import DevicePass
from csst_dask.pipeline.frame import PixelPass
from csst_dask.preprocess import Measured, standardised
from csst_dask.schema import BLOCK_STATS, FRAME_SHAPE
from csst_dask.store import SurveyStore

CPU = torch.device("cpu")


def raw_frame(shape, seed=0):
    """Pixels with stars, NaN and infinities; flags; weights, all native."""
    rng = np.random.default_rng(seed)
    image = (rng.standard_normal(shape, np.float32) * 0.05 + 0.2).astype(np.float32)
    image[rng.integers(0, shape[0], 300), rng.integers(0, shape[1], 300)] += 5
    image[rng.integers(0, shape[0], 99), rng.integers(0, shape[1], 99)] = np.nan
    image[5, 7], image[6, 8] = np.inf, -np.inf
    flags, weights = np.zeros(shape, np.uint16), np.ones(shape, np.float32)
    for bit in range(16):
        flags[rng.integers(0, shape[0], 60), rng.integers(0, shape[1], 60)] |= np.uint16(1 << bit)
    weights[rng.integers(0, shape[0], 99), rng.integers(0, shape[1], 99)] = rng.choice([0, -1, np.nan], 99)
    return image, flags, weights


def assert_same_scatter(found, expected, level):
    """Rounding of the sums of squares shows in the variance."""
    np.testing.assert_allclose(found**2, expected**2, rtol=1e-5, atol=1e-6 * level**2)


def rows_of(*parts):
    return lambda y0, y1: tuple(None if part is None else part[y0:y1].copy() for part in parts)


def assert_same(found: Measured, expected: Measured) -> None:
    np.testing.assert_allclose(standardised(found), standardised(expected), atol=2e-6, rtol=0)
    for name in ("valid", "max", "point", "point_valid"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, atol=1e-12, err_msg=name)
    assert_same_scatter(found["std"], expected["std"], np.nanmax(expected["max"]))
    assert found.n_valid == expected.n_valid
    assert (found.sky_level, found.sky_sigma) == (expected.sky_level, expected.sky_sigma)


def config_of(**ingest):
    return with_settings(Config(), {f"ingest.{name}": value for name, value in ingest.items()})


@pytest.mark.parametrize("order", ["=", ">"])
@pytest.mark.parametrize("present", ["image", "flags", "weights", "all"])
def test_equals_the_compiled_pass(order, present):
    image, flags, weights = (part.astype(part.dtype.newbyteorder(order)) for part in raw_frame(FRAME))
    parts = image, flags if present in ("flags", "all") else None, weights if present in ("weights", "all") else None
    config = config_of(frame=FRAME, chunks=CHUNKS, pixels="none")
    found = DevicePass(config, CPU).run(rows_of(*parts), None)
    assert_same(found, PixelPass(config).run(rows_of(*parts), None))


def test_integers_and_wide_flags_are_taken_as_the_compiled_pass_takes_them():
    image, flags, _ = raw_frame(FRAME)
    counts = np.nan_to_num(image * 100, nan=0, posinf=9, neginf=0).astype(">i2")
    config = config_of(frame=FRAME, chunks=CHUNKS, pixels="none")
    rows = rows_of(counts, flags.astype(">i4"), None)
    assert_same(DevicePass(config, CPU).run(rows, None), PixelPass(config).run(rows, None))


@pytest.mark.full_size
def test_a_full_size_frame_equals_the_compiled_pass():
    image, flags, weights = raw_frame(FRAME_SHAPE)
    rows = rows_of(image.astype(">f4"), flags.astype(">u2"), weights.astype(">f4"))
    config = config_of(pixels="none")
    assert_same(DevicePass(config, CPU).run(rows, None), PixelPass(config).run(rows, None))


@pytest.mark.parametrize("pixels", ["lossless", "quantised", "none"])
def test_the_store_is_the_same(tmp_path, write_exposures, small, monkeypatch, pixels):
    write_exposures(tmp_path / "in", detectors=(8, 9), exposures=2)
    files, _ = discover([str(tmp_path / "in")])
    with open(files[2].image, "r+b") as damaged:
        damaged.truncate(40_000)
    config = with_settings(Config(), {**small, "ingest.pixels": pixels})
    outcomes = []
    for name in ("compiled", "device"):
        if name == "device":
            monkeypatch.setattr(block_module, "choose_device", lambda wanted: "the device")
            monkeypatch.setattr(block_module, "_device_pass", lambda config, device: DevicePass(config, CPU))
        found = in_process.ingest(str(tmp_path / name), [tmp_path / "in"], config)
        assert found.errors == {}
        assert found.device == ("cpu" if name == "compiled" else "the device")
        outcomes.append({row: (chip.status, chip.reason) for row, chip in found.chips.items()})
    assert outcomes[0] == outcomes[1]
    assert [status for status, _ in outcomes[0].values()].count("rejected") == 1
    assert SurveyStore.read(str(tmp_path / "compiled")).attrs["devices"] == ["cpu"]
    assert SurveyStore.read(str(tmp_path / "device")).attrs["devices"] == ["the device"]
    one, other = decoded(str(tmp_path / "compiled")), decoded(str(tmp_path / "device"))
    assert one.keys() == other.keys()
    assert ("image" in one) == (pixels != "none")
    for name in one:
        if name == "block_stats":
            maps, others = (dict(zip(BLOCK_STATS, part[name].swapaxes(0, 1), strict=True)) for part in (one, other))
            assert_same_scatter(others.pop("std"), maps.pop("std"), np.nanmax(maps["max"]))
            np.testing.assert_array_equal(others.pop("valid"), maps.pop("valid"))
            for channel in maps:
                np.testing.assert_allclose(others[channel], maps[channel], rtol=1e-5, atol=2e-6)
        elif name in ("pixel_mean", "pixel_std"):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-6)
        else:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_the_next_chip_is_read_while_one_is_worked_on_and_bad_ones_do_not_stop_the_others():
    config = config_of(frame=FRAME, chunks=CHUNKS, pixels="none")
    frames, opened, read = [raw_frame(FRAME, seed) for seed in range(5)], [], [threading.Event() for _ in range(5)]

    @contextmanager
    def chip(k):
        opened.append(threading.current_thread())
        if k == 1:
            raise ChipRejected("spoilt")
        yield rows_of(*frames[k]), None
        read[k].set()

    several = DevicePass(config, CPU)
    results = several.run_many(chip(k) for k in range(5))
    found = [next(results)]
    assert read[2].wait(60)  # though nobody has asked for it
    assert not read[4].wait(0.3)  # there is no memory for it yet
    found += results
    assert all(thread is not threading.main_thread() for thread in opened)
    assert isinstance(found[1], ChipRejected)
    for k in (0, 2, 3, 4):
        assert_same(found[k], PixelPass(config).run(rows_of(*frames[k]), None))
    results = several.run_many(chip(k) for k in (0, 2, 3))
    next(results)
    results.close()  # and the memory serves again
    assert_same(several.run(rows_of(*frames[3]), None), found[3])
