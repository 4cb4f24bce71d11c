import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csst_dask.config.sections import DEFAULT_FLAG_BITS
from csst_dask.errors import ConfigError
from csst_dask.instrument import mask_table
from csst_dask.schema import MASK_MEANINGS, Mask

mappings = st.dictionaries(st.integers(0, 15), st.sampled_from(MASK_MEANINGS))


@given(mappings, st.integers(0, 65535), st.integers(0, 65535))
def test_the_table_is_a_union_over_bits(bits, a, b):
    table = mask_table(bits)
    assert table.shape == (65536,)
    assert table.dtype == np.uint8
    assert table[0] == 0
    assert table[a | b] == table[a] | table[b]


@given(mappings)
def test_a_single_flag_bit_gives_its_mask_bit_or_nothing(bits):
    table = mask_table(bits)
    for bit in range(16):
        assert table[1 << bit] == (Mask[bits[bit].upper()] if bit in bits else 0)


def test_the_published_bits():
    table = mask_table(DEFAULT_FLAG_BITS)
    assert table[2] == table[4] == table[6] == Mask.HOT
    assert table[64] == table[128] == Mask.GHOST
    assert table[1 | 8 | 16 | 32] == Mask.BAD | Mask.SATURATED | Mask.COSMIC_RAY | Mask.TRAIL
    assert not table[256::256].any()


@pytest.mark.parametrize("bits", [{16: "bad"}, {-1: "bad"}, {0: "wrong"}])
def test_unknown_bits_and_names_stop_the_run(bits):
    with pytest.raises(ConfigError, match="flag bit"):
        mask_table(bits)
