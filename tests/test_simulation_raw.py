"""Counts are what the converter would give: they undo to the image within half a count, and end at its limits."""

import numpy as np
import pytest

from csst_dask.instrument.flags import FLAG_SATURATED
from csst_dask.io.readout import OVERSCAN, OVERSCAN_ROWS, PRESCAN, assemble, readout_shape, strip_place
from csst_dask.simulation.detector import DetectorModel
from csst_dask.simulation.raw import BIAS, BIAS_SCATTER, Channels, draw_channels, equal_channels, to_adu, to_readout

SHAPE, EXPTIME = (60, 96), 150.0
MODEL = DetectorModel(dark=0.03, gain=1.3)


def image_of(seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(0.2, 0.05, SHAPE).astype(np.float32)
    image[::7, ::5] += rng.uniform(0, 400, image[::7, ::5].shape).astype(np.float32)
    return image, np.zeros(SHAPE, np.uint16)


def test_counts_undo_to_the_image_within_half_a_count():
    image, flags = image_of()
    before = image.copy()
    counts = to_adu(image, flags, MODEL, EXPTIME)
    assert counts.dtype == np.uint16
    electrons = (counts.astype(float) - BIAS) * MODEL.gain
    off = electrons / EXPTIME - MODEL.dark - image
    assert np.abs(off).max() <= 0.5 * MODEL.gain / EXPTIME * (1 + 1e-2)
    assert np.abs(off).max() > 0.4 * MODEL.gain / EXPTIME
    assert abs(off.mean()) < 0.03 * MODEL.gain / EXPTIME  # rounded to nearest, not down
    np.testing.assert_array_equal(image, before)


def test_the_converter_has_limits():
    image, flags = image_of()
    image[0, :4] = [-1e4, np.nan, 1e6, (65535.4 - BIAS) * MODEL.gain / EXPTIME - MODEL.dark]
    image[1, :2] = [-(BIAS - 0.4) * MODEL.gain / EXPTIME - MODEL.dark, (65534.4 - BIAS) * MODEL.gain / EXPTIME - 0.03]
    flags[2, 0], flags[2, 1] = FLAG_SATURATED | 1, 16
    counts = to_adu(image, flags, MODEL, EXPTIME)
    assert counts[0, :4].tolist() == [0, 0, 65535, 65535]
    assert counts[1, :2].tolist() == [0, 65534]
    assert counts[2, 0] == 65535
    assert np.count_nonzero(counts == 65535) == 3


def test_every_strip_has_its_own_electronics():
    image, flags = np.full(SHAPE, 0.5, np.float32), np.zeros(SHAPE, np.uint16)
    channels = Channels(500 + 10.0 * np.arange(16), 1 + 0.1 * np.arange(16))
    counts = to_adu(image, flags, MODEL, EXPTIME, channels)
    for strip in range(16):
        upper, column, _ = strip_place(strip)
        part = counts[30 * upper : 30 * (upper + 1), 12 * column : 12 * (column + 1)]
        assert (part == round((0.53 * EXPTIME) / channels.gain[strip] + channels.bias[strip])).all()
    equal = equal_channels(MODEL)
    assert (to_adu(image, flags, MODEL, EXPTIME) == to_adu(image, flags, MODEL, EXPTIME, equal)).all()


def test_a_readout_frame_holds_the_counts_and_dark_noise_around_them():
    image, flags = image_of()
    readout, channels = to_readout(image, flags, MODEL, EXPTIME, 77)
    assert readout.shape == readout_shape(SHAPE)
    np.testing.assert_array_equal(assemble(readout), to_adu(image, flags, MODEL, EXPTIME, channels))
    for number, strip in enumerate(np.split(readout, 16, axis=1)):
        for area in (strip[:, :PRESCAN], strip[:, -OVERSCAN:], strip[-OVERSCAN_ROWS:]):
            noise, n = MODEL.read_noise / channels.gain[number], area.size
            assert area.mean() == pytest.approx(channels.bias[number], abs=5 * noise / np.sqrt(n))
            assert area.std() == pytest.approx(np.hypot(noise, 12**-0.5), rel=5 / np.sqrt(2 * n))


def test_a_key_is_a_set_of_strips():
    image, flags = image_of()
    one, same, other = (to_readout(image, flags, MODEL, EXPTIME, key) for key in (5, 5, 2**63 + 6))
    np.testing.assert_array_equal(one[0], same[0])
    np.testing.assert_array_equal(one[1].gain, same[1].gain)
    assert (one[0] != other[0]).mean() > 0.5
    many = np.array([draw_channels(MODEL, key).bias for key in range(40)])
    assert many.mean() == pytest.approx(BIAS, abs=5 * BIAS_SCATTER / np.sqrt(many.size))
    assert many.std() == pytest.approx(BIAS_SCATTER, rel=0.2)


def test_a_frame_that_cannot_be_cut():
    image, flags = np.zeros((61, 90), np.float32), np.zeros((61, 90), np.uint16)
    assert to_adu(image, flags, MODEL, EXPTIME).shape == (61, 90)
    with pytest.raises(ValueError, match="cannot be cut into 2 x 8"):
        to_readout(image, flags, MODEL, EXPTIME, 1)
