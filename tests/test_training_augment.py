import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csst_dask.preprocess.inputs import KINDS, make_inputs
from csst_dask.training.augment import apply_dihedral, apply_jitter, draw_dihedral, draw_jitter


def test_the_eight_symmetries_are_all_there_and_differ():
    maps = torch.arange(9.0).reshape(1, 1, 3, 3).expand(8, 1, 3, 3)
    turned = apply_dihedral(maps, np.arange(8))
    square = np.arange(9, dtype=np.float32).reshape(3, 3)
    expected = {np.rot90(m, k).tobytes() for m in (square, square.T) for k in range(4)}
    assert {t.numpy().tobytes() for t in turned.contiguous()} == expected


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 7), st.sampled_from(sorted(KINDS)))
def test_augmenting_the_inputs_is_augmenting_the_maps(symmetry, kind):
    rng = np.random.default_rng(0)
    block_stats = rng.uniform(0.1, 1, (1, 6, 5, 5)).astype(np.float32)
    block_stats[:, :4, 0, 1] = np.nan
    scalars = {name: np.array([0.2]) for name in ("pixel_mean", "pixel_std", "sky_level", "sky_sigma")}
    turned = apply_dihedral(torch.from_numpy(block_stats), np.array([symmetry])).numpy()
    one = make_inputs(kind, turned, scalars, ["g"])
    other = apply_dihedral(torch.from_numpy(make_inputs(kind, block_stats, scalars, ["g"])), np.array([symmetry]))
    np.testing.assert_array_equal(one, other.numpy())


def test_a_draw_belongs_to_the_sample():
    """More samples, or another order of visiting them, change nothing."""
    np.testing.assert_array_equal(draw_dihedral(3, 7, 50)[:20], draw_dihedral(3, 7, 20))
    np.testing.assert_array_equal(draw_jitter(3, 7, 50, 0.1)[:20], draw_jitter(3, 7, 20, 0.1))
    assert (draw_dihedral(3, 7, 50) != draw_dihedral(3, 8, 50)).any()
    assert (draw_dihedral(3, 7, 50) != draw_dihedral(4, 7, 50)).any()


def test_all_symmetries_are_drawn_equally_often():
    counts = np.bincount(draw_dihedral(0, 0, 8000), minlength=8)
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_jitter_is_linear_where_there_is_an_image_and_leaves_holes_alone():
    inputs = torch.ones(2, 2, 4, 4)
    inputs[:, 0] = 3.0
    inputs[:, :, 0, 0] = 0.0
    out = apply_jitter(inputs, np.array([[1.1, 0.2], [1.0, 0.0]], np.float32))
    assert torch.equal(out[1], inputs[1])
    assert torch.equal(out[:, 1], inputs[:, 1])
    assert out[0, 0, 0, 0] == 0
    assert out[0, 0, 1, 1].item() == pytest.approx(3.5)
    draws = draw_jitter(0, 0, 1000, 0.1)
    assert np.abs(draws - [1, 0]).max() <= 0.1 + 1e-6


def test_maps_that_are_not_square_are_flipped_but_not_turned():
    maps = torch.rand(1, 2, 3, 4)
    assert torch.equal(apply_dihedral(maps, np.array([1])), maps.flip(-2))
    with pytest.raises(ValueError, match="square"):
        apply_dihedral(maps, np.array([4]))
