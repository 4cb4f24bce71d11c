"""Bits of a CSST ``flg`` file, and what they mean as mask bits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from csst_dask.errors import ConfigError
from csst_dask.schema import MASK_MEANINGS, Mask

FLAG_BAD, FLAG_HOT, FLAG_WARM, FLAG_SATURATED, FLAG_COSMIC_RAY, FLAG_TRAIL, FLAG_GHOST = 1, 2, 4, 8, 16, 32, 64

FLAG_BITS = 16
"""Bits of one CSST flag value."""


def mask_table(flag_bits: Mapping[int, str]) -> NDArray[np.uint8]:
    """Mask bits of every possible flag value.

    ``mask_table(bits)[flags]`` turns a whole array of flags into a mask.

    Parameters
    ----------
    flag_bits : mapping of int to str
        Bit number, 0 to 15, of a CSST ``flg`` file -> name of a bit of `csst_dask.schema.Mask` in lower case.
        Flag bits that are not named are ignored.

    Returns
    -------
    (65536,) uint8 array
        Or-ed `csst_dask.schema.Mask` bits by flag value.

    Raises
    ------
    ConfigError
        If a bit number or a name is unknown.
    """
    values = np.arange(1 << FLAG_BITS, dtype=np.uint32)
    table = np.zeros(values.size, dtype=np.uint8)
    for bit, name in flag_bits.items():
        if not 0 <= bit < FLAG_BITS:
            raise ConfigError(f"flag bit {bit} found, expected 0 to {FLAG_BITS - 1}; correct mask.flag_bits")
        if name not in MASK_MEANINGS:
            raise ConfigError(
                f"flag bit {bit} is mapped to {name!r}, expected one of {', '.join(MASK_MEANINGS)}; "
                "correct mask.flag_bits"
            )
        table[(values >> bit) & 1 == 1] |= np.uint8(Mask[name.upper()])
    return table
