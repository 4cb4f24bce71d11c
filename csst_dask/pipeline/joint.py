"""Estimates from whole exposures, learned on one half of the fields of a store and made for the other."""

from __future__ import annotations

import numpy as np

from csst_dask.errors import ConfigError
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.neighbours import Joint
from csst_dask.evaluation.truth import Truth
from csst_dask.inference.joint import combine, learn_joint


def estimate_jointly(truth: Truth, judged: Judged, seed: int) -> Joint | None:
    """Joint estimates of judged chips.

    Fields are dealt into two halves; each is estimated with what was learned from the other one.

    Parameters
    ----------
    truth : Truth
        The chips.
    judged : Judged
        Their predictions, in the same order.
    seed : int
        Deals the fields.

    Returns
    -------
    Joint or None
        None where exposures hold one chip only, predictions have no intervals, or chips are too few to learn from.
    """
    names, field = np.unique(judged.field, return_inverse=True)
    half = (np.random.default_rng(seed).permutation(len(names)) % 2)[field]
    exposure, target = truth.column("obs_id"), judged.true_log_star
    scale = np.log10(1 + judged.star_upper) - judged.log_star  # the lower bound may be cut off at no star
    found, error = np.full((2, len(judged)), np.nan)
    for learn, make in ((half == 0, half == 1), (half == 1, half == 0)):
        known = judged.log_star, scale, judged.band, exposure
        try:
            model = learn_joint(target[learn], *(column[learn] for column in known))
        except ConfigError:
            return None
        found[make], error[make] = combine(model, *(column[make] for column in known))
    return Joint(found, error)
