"""Which chips of a store a network may be judged on: those on sky that it has not learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csst_dask.errors import ConfigError
from csst_dask.evaluation.truth import Truth
from csst_dask.schema import N_CLASSES, density_class

PARTS = ("all", "test")
"""All chips on sky that was not learned from; or the test chips that the weights record."""

FLATTERS = (
    "The sets were divided at random, as in the paper: chips of one field stand among those learned from and those "
    "judged. These scores flatter and serve for comparison with published figures only."
)

Checksum = Callable[[Truth], str]
"""SHA-256 of what chips are, as the weights record it."""


@dataclass(frozen=True, eq=False)
class Judgeable:
    """Chips to judge on."""

    chips: Truth
    notes: tuple[str, ...]
    """What a reader has to know about the choice."""


def choose_chips(chips: Truth, networks: Mapping[str, Mapping[str, Any]], part: str, checksum: Checksum) -> Judgeable:
    """The chips that all networks may be judged on.

    Parameters
    ----------
    chips : Truth
        Of the store.
    networks : mapping of str to mapping
        Name of each network to the metadata of its weights, of which ``split`` is looked at.
    part : str
        One of `PARTS`.
    checksum : callable
        Of chips.

    Returns
    -------
    Judgeable

    Raises
    ------
    ConfigError
        If weights do not record the test chips that are asked for, record those of another store, or if nothing is
        left to judge on.
    """
    if part not in PARTS:
        raise ConfigError(f"there is no part {part!r} of a store; expected one of {', '.join(PARTS)}")
    records = _pooled({name: metadata["split"] for name, metadata in networks.items() if "split" in metadata})
    silent = sorted(networks.keys() - records.keys())
    if part == "test":
        return _test(chips, networks, records, silent, checksum)
    seen = _any([_seen(chips, record, checksum) for record in records.values()], len(chips))
    notes = [_left_out(int(seen.sum()), len(chips), records)] if records else []
    if silent:
        notes.append(
            f"The weights of {', '.join(silent)} do not record what they learned from: whether they have seen these "
            "chips cannot be told."
        )
    if seen.all():
        raise ConfigError(
            f"{' and '.join(records)} learned from the sky of all {len(chips)} chips; judge them on another store, or "
            "with --part test on the store that they learned from"
        )
    return Judgeable(chips.take(~seen), tuple(notes))


def _pooled(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Records of one split, of which each task uses other chips, know each other's test fields."""

    def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        return all(one[name] == other[name] for name in ("kind", "seed", "stores"))

    return {
        name: {**record, "test_fields": sorted({
            field for other in records.values() if same(record, other) for field in other["test_fields"]
        })}
        for name, record in records.items()
    }  # fmt: skip


def _test(
    chips: Truth,
    networks: Mapping[str, Mapping[str, Any]],
    records: Mapping[str, Mapping[str, Any]],
    silent: Sequence[str],
    checksum: Checksum,
) -> Judgeable:
    if silent or not records:
        raise ConfigError(
            f"the weights of {', '.join(silent) or 'no network'} do not record which chips were their test chips; "
            "train them again, or judge --part all on a store that they did not learn from"
        )
    kinds = {record["kind"] for record in records.values()}
    if len(kinds) > 1:
        raise ConfigError(
            "some networks learned from a split by field and some from one at random, so they have no test chips in "
            "common; judge them apart"
        )
    kind = kinds.pop()
    tests = [_recorded(chips, name, {**networks[name], "split": record}, checksum) for name, record in records.items()]
    test = np.logical_and.reduce(tests)
    seen = np.zeros(len(chips), bool)
    if kind == "field":
        seen = test & _any([_seen(chips, record, checksum) for record in records.values()], len(chips))
    if not (test & ~seen).any():
        raise ConfigError(
            f"no chip of the store is a test chip of {' and '.join(records)} on sky that none of them learned from; "
            "name the store that they learned from, or judge --part all"
        )
    several = " that all networks share" if len(records) > 1 else ""
    notes = [f"The {int(test.sum())} test chips{several}, as the weights record them (split seed "
             f"{', '.join(sorted({str(record['seed']) for record in records.values()}))})."]  # fmt: skip
    if kind == "random":
        notes.append(FLATTERS)
    elif seen.any():
        notes.append(_left_out(int(seen.sum()), int(test.sum()), records))
    return Judgeable(chips.take(test & ~seen), tuple(notes))


def _recorded(chips: Truth, name: str, metadata: Mapping[str, Any], checksum: Checksum) -> NDArray[np.bool_]:
    """Test chips of one network; chips that its task leaves out, in whatever set, count as such."""
    record = metadata["split"]
    unusable = _unusable(chips, metadata)
    if record["kind"] == "field":
        return np.isin(chips.column("field"), record["test_fields"]) | unusable
    divided = np.flatnonzero(np.isin(chips.column("band"), record["bands"]))
    start = _start(chips, record, checksum)
    if start is None:
        then = " and ".join(str(store["chips"]) for store in record["stores"])
        raise ConfigError(
            f"{name} records a split at random of other chips than this store now holds ({then} then, "
            f"{len(divided)} now); name the very store that it learned from"
        )
    test, rows = np.zeros(len(chips), bool), np.array(record["test_rows"], np.int64) - start
    test[divided[rows[(rows >= 0) & (rows < len(divided))]]] = True
    return test | unusable


def _unusable(chips: Truth, metadata: Mapping[str, Any]) -> NDArray[np.bool_]:
    if metadata["task"] == "classifier":
        return np.zeros(len(chips), bool)
    return (chips.column("n_bright") < 0) | (density_class(chips.column("n_star")) == N_CLASSES - 1)


def _start(chips: Truth, record: Mapping[str, Any], checksum: Checksum) -> int | None:
    """Place of a store's first chip among all that were divided; None if it was not among these stores."""
    divided, start = chips.take(np.isin(chips.column("band"), record["bands"])), 0
    for store in record["stores"]:
        if len(divided) == store["chips"] and checksum(divided) == store["chips_sha256"]:
            return start
        start += store["chips"]
    return None


def _seen(chips: Truth, record: Mapping[str, Any], checksum: Checksum) -> NDArray[np.bool_]:
    """Chips on sky that a network learned from; the record is a little coarse, but not for its own test fields."""
    near = chips.near(record["centres"]["ra"], record["centres"]["dec"], record["separation"] + record["radius"])
    if near.any() and record["kind"] == "field" and _start(chips, record, checksum) is not None:
        near &= ~np.isin(chips.column("field"), record["test_fields"])
    return near


def _any(masks: Sequence[NDArray[np.bool_]], n: int) -> NDArray[np.bool_]:
    return np.logical_or.reduce([np.zeros(n, bool), *masks])


def _left_out(seen: int, chips: int, records: Mapping[str, Mapping[str, Any]]) -> str:
    separation = max(record["separation"] for record in records.values())
    if not seen:
        return f"None of the {chips} chips lies within {separation:g} deg of sky that a network learned from."
    return f"{seen} of {chips} chips are left out, within {separation:g} deg of sky that a network learned from."
