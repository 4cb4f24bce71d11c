"""From a calibrated image back to the counts that the electronics would have sent down."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from csst_dask.instrument.flags import FLAG_SATURATED
from csst_dask.io.counts import ADC_LIMIT
from csst_dask.io.readout import CHANNELS, OVERSCAN, OVERSCAN_ROWS, PRESCAN, by_column, split
from csst_dask.simulation.detector import DetectorModel

BIAS = 500.0
"""ADU. The real level is not public."""

BIAS_SCATTER, GAIN_SCATTER = 8.0, 0.01
"""How far the strips of a read-out frame differ, standard deviation: ADU, and relative."""


@dataclass(frozen=True)
class Channels:
    """Electronics of the 16 read-out strips."""

    bias: NDArray[np.float64]
    """(16,) ADU"""
    gain: NDArray[np.float64]
    """(16,) e-/ADU"""


def equal_channels(model: DetectorModel) -> Channels:
    """All strips alike: what a plain frame of level 0 assumes."""
    return Channels(np.full(CHANNELS, BIAS), np.full(CHANNELS, model.gain))


def draw_channels(model: DetectorModel, key: int) -> Channels:
    """Strips that differ a little, drawn from a key of at least 0; numbers are rounded as headers keep them."""
    rng = np.random.default_rng([key, 0])
    bias = np.round(BIAS + BIAS_SCATTER * rng.standard_normal(CHANNELS), 2)
    return Channels(bias, np.round(model.gain * (1 + GAIN_SCATTER * rng.standard_normal(CHANNELS)), 4))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _digitise(image, flags, per_electron, bias, exptime, dark, saturated, limit, counts):
    ny, nx = image.shape
    for y in range(ny):
        half = 1 if y >= ny // 2 else 0
        pixels, bits, out = image[y, :], flags[y, :], counts[y, :]
        factor, offset = per_electron[half, :], bias[half, :]
        for x in range(nx):
            value = (pixels[x] * exptime + dark) * factor[x] + offset[x] + np.float32(0.5)
            if bits[x] & saturated or value >= limit:
                out[x] = limit
            elif value >= np.float32(1):
                out[x] = np.uint16(value)
            else:  # also where it is not a number
                out[x] = 0


def to_adu(
    image: NDArray[np.float32],
    flags: NDArray[np.uint16],
    model: DetectorModel,
    exptime: float,
    channels: Channels | None = None,
) -> NDArray[np.uint16]:
    """Counts of an assembled frame.

    Parameters
    ----------
    image : (ny, nx) float32 array
        e-/s, without dark current; not modified. Defects and cosmic rays stay as they are.
    flags : (ny, nx) uint16 array
        CSST flag bits; saturated pixels give the converter's limit, and so does everything above it.
    model : DetectorModel
    exptime : float
        s
    channels : Channels, optional
        By default `equal_channels`.

    Returns
    -------
    (ny, nx) uint16 array
        floor(electrons / gain + bias + 1/2), dark current included, from 0 to 65535 ADU.
    """
    channels = channels or equal_channels(model)
    counts = np.empty(image.shape, np.uint16)
    _digitise(
        image, flags, by_column(1 / channels.gain, image.shape[1]), by_column(channels.bias, image.shape[1]),
        np.float32(exptime), np.float32(model.dark * exptime), np.uint16(FLAG_SATURATED), np.uint16(ADC_LIMIT), counts,
    )  # fmt: skip
    return counts


def to_readout(
    image: NDArray[np.float32],
    flags: NDArray[np.uint16],
    model: DetectorModel,
    exptime: float,
    key: int,
) -> tuple[NDArray[np.uint16], Channels]:
    """Counts as the 16 strips of a read-out frame, with noisy prescan and overscan.

    Parameters
    ----------
    image, flags, model, exptime
        As for `to_adu`.
    key : int
        At least 0; one key is one set of strips and one noise.

    Returns
    -------
    readout : (rows, columns) uint16 array
        Of `csst_dask.io.readout.readout_shape`.
    channels : Channels
        What its header should say.

    Raises
    ------
    ValueError
        If the frame cannot be cut into 2 x 8 equal parts.
    """
    channels = draw_channels(model, key)
    readout = split(to_adu(image, flags, model, exptime, channels))
    rng = np.random.default_rng([key, 1])
    for strip, bias, gain in zip(np.split(readout, CHANNELS, axis=1), channels.bias, channels.gain, strict=True):
        dark_areas = (
            strip[:-OVERSCAN_ROWS, :PRESCAN],
            strip[:-OVERSCAN_ROWS, -OVERSCAN:],
            strip[-OVERSCAN_ROWS:],
        )
        for area in dark_areas:
            noise = rng.standard_normal(area.shape, dtype=np.float32)
            noise *= np.float32(model.read_noise / gain)
            noise += np.float32(bias + 0.5)
            np.clip(noise, 0, ADC_LIMIT, out=noise)
            area[:] = noise.astype(np.uint16)
    return readout, channels
