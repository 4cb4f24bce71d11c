"""What the pipeline should do next with each chip."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.config import RoutingConfig
from csst_dask.inference.physics import PHYSICS
from csst_dask.schema import CROWDED, REVIEW_REASONS, ROUTE_CODES, ROUTE_FLAGS, ROUTES

AGAINST = sum(REVIEW_REASONS[name] for name in PHYSICS)
"""Bits of ``review_reason`` that follow from what was measured, whatever the thresholds."""


def gate(crowded_probability: ArrayLike, config: RoutingConfig) -> NDArray[np.str_]:
    """Decide which pipeline is expected to cost least.

    Parameters
    ----------
    crowded_probability : (n,) array_like of float
        Calibrated probability of density class 5.
    config : RoutingConfig
        With the chance p, the standard pipeline costs p ``missed_cost``, the crowded one (1 - p) ``needless_cost``, a
        review always ``review_cost``.

    Returns
    -------
    (n,) str array
        ``standard``, ``crowded`` or ``review``; of equal costs the first of these. NaN is ``standard``.
    """
    chance = np.asarray(crowded_probability, np.float64)
    missed, needless = chance * config.missed_cost, (1 - chance) * config.needless_cost
    crowded = (needless < missed) & (needless <= config.review_cost)
    review = np.minimum(missed, needless) > config.review_cost
    return np.where(crowded, "crowded", np.where(review, "review", "standard"))


def route(
    crowded_probability: ArrayLike,
    bright_count: ArrayLike,
    confidence: ArrayLike,
    valid: ArrayLike,
    out_of_distribution: ArrayLike,
    config: RoutingConfig,
    suspicious: ArrayLike = False,
) -> tuple[NDArray[np.str_], NDArray[np.uint8]]:
    """Route every chip.

    Parameters
    ----------
    crowded_probability : (n,) array_like of float
        Of density class 5; decides with `gate`.
    bright_count : (n,) array_like of float
        Predicted bright stars on the chip; NaN where bypassed, which is not sparse.
    confidence : (n,) array_like of float
        Largest class probability. NaN on a valid chip asks for review.
    valid : (n,) array_like of bool
        False: the chip has no usable prediction.
    out_of_distribution : (n,) array_like of bool
        True: unlike the training data, so that its probabilities say nothing.
    config : RoutingConfig
        Thresholds, where a value equal to one is good enough, and costs.
    suspicious : (n,) array_like of bool, optional
        True: physics speaks against the chip, or against its counts.

    Returns
    -------
    route : (n,) str array
        ``review`` for valid chips that are unlike; else the first that applies of `schema.ROUTES`: invalid, crowded,
        review, sparse, standard.
    route_flags : (n,) uint8 array
        All that apply, as bits of `schema.ROUTE_FLAGS`; the bit of ``standard`` stands alone.
    """
    bright_count, confidence = np.asarray(bright_count), np.asarray(confidence)
    valid, out_of_distribution = np.asarray(valid, bool), np.asarray(out_of_distribution, bool)
    gates = gate(crowded_probability, config)
    doubtful = (confidence < config.min_confidence) | (valid & np.isnan(confidence))
    applies = {
        "invalid": ~valid,
        "crowded": gates == "crowded",
        "review": out_of_distribution | doubtful | (gates == "review") | np.asarray(suspicious, bool),
        "sparse": bright_count < config.min_bright,
    }
    applies["standard"] = ~np.any(list(applies.values()), axis=0)
    flags = sum(ROUTE_FLAGS[name] * applies[name].astype(np.uint8) for name in ROUTES)
    names = np.asarray(ROUTES)[np.argmax([applies[name] for name in ROUTES], axis=0)]
    return np.where(valid & out_of_distribution, "review", names), np.asarray(flags, np.uint8)


def route_chips(found: Mapping[str, NDArray], config: RoutingConfig) -> dict[str, NDArray]:
    """Route predicted chips, and say why some need a review.

    Parameters
    ----------
    found : mapping of str to array
        At least ``class_probability``, ``bright_count``, ``confidence`` and ``out_of_distribution`` of each chip, and
        ``review_reason``, if any is known, of which those of `physics.PHYSICS` stay.
    config : RoutingConfig

    Returns
    -------
    dict of arrays
        ``route`` (n,) uint8, places in `schema.ROUTE_CODES`; ``route_flags`` and ``review_reason`` (n,) uint8 bits;
        ``confidence`` (n,) float32, NaN out of distribution, where probabilities say nothing.
    """
    ood, confidence = np.asarray(found["out_of_distribution"], bool), np.asarray(found["confidence"])
    crowded = found["class_probability"][:, CROWDED]
    against = np.broadcast_to(np.asarray(found.get("review_reason", 0), np.uint8), ood.shape) & np.uint8(AGAINST)
    names, flags = route(crowded, found["bright_count"], confidence, np.ones(ood.size, bool), ood, config, against > 0)
    reasons = {
        "out_of_distribution": ood,
        "low_confidence": ~ood & (confidence < config.min_confidence),
        "gate": ~ood & (gate(crowded, config) == "review"),
    }
    why = against + sum(REVIEW_REASONS[name] * holds.astype(np.uint8) for name, holds in reasons.items())
    codes = {name: code for code, name in enumerate(ROUTE_CODES)}
    return {
        "route": np.array([codes[str(name)] for name in names], np.uint8),
        "route_flags": flags,
        "review_reason": np.asarray(why, np.uint8),
        "confidence": np.where(ood, np.float32(np.nan), confidence).astype(np.float32),
    }
