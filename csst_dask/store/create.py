"""Make an empty store, and refuse places where none can be made or written."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import zarr

from csst_dask.config import IngestConfig, MaskConfig
from csst_dask.errors import ConfigError
from csst_dask.store.arrays import at_once, group_of, known_warnings, make_array
from csst_dask.store.layout import (
    CHIP_VARIABLES,
    COORDINATES,
    FILE_VARIABLES,
    FILES,
    FORMAT,
    MEASURED,
    PREDICTION_AXES,
    PREDICTION_VARIABLES,
    PREDICTIONS,
    ROOT_AXES,
    VERSION,
    pixel_variables,
)
from csst_dask.store.lease import is_lease
from csst_dask.store.location import Folder, locate, open_group, open_zarr_store, root_document

MAKING = "making"
"""Attribute of a store that is not finished: the format that it is to have."""


def check_usable(location: str, ingest: IngestConfig | None, mask: MaskConfig | None) -> None:
    """Refuse a place where no store can be made or written with these settings; a free place is fine.

    Raises
    ------
    ConfigError
        If there is something else at the place, or a store of another layout or other settings.
    """
    location = locate(location)
    root = root_document(location)
    attrs = (root or {}).get("attributes", {})
    if root is None:
        others = [name for name in Folder(location).names() if not is_lease(name)]
        if others:
            raise ConfigError(
                f"{location} exists and is no survey store (it holds {', '.join(others[:3])}); name another place for "
                "the store"
            )
    elif not is_store(root) and attrs.get(MAKING) != FORMAT:
        raise ConfigError(f"{location} is a Zarr {root.get('node_type')} and no survey store; name another place")
    if ingest is None or is_store(root):
        attrs = check_format(location, root)
        if ingest is not None and mask is not None:
            check_same_settings(location, attrs, ingest, mask)


def is_store(root: Mapping[str, Any] | None) -> bool:
    return root is not None and "format" in root.get("attributes", {})


def check_format(location: str, root: Mapping[str, Any] | None) -> dict[str, Any]:
    """Attributes of a store of this layout."""
    attrs = dict((root or {}).get("attributes", {}))
    if root is None or (attrs.get(MAKING) == FORMAT and not is_store(root)):
        raise ConfigError(f"no survey store at {location}; make one with 'csst-dask ingest' or check the path")
    name, version = attrs.get("format"), attrs.get("format_version")
    if name == FORMAT and version == 1:
        raise ConfigError(
            f"{location} is a survey store of layout version 1, expected {VERSION}; ingest the images again into "
            "another place (predictions and maps follow from them)"
        )
    if (name, version) != (FORMAT, VERSION):
        raise ConfigError(f"{location} holds {name!r} version {version}; expected {FORMAT!r} version {VERSION}")
    return attrs


def check_same_settings(location: str, attrs: Mapping[str, Any], ingest: IngestConfig, mask: MaskConfig) -> None:
    for name, found, wanted in (
        ("ingest.frame", tuple(attrs["frame"]), tuple(ingest.frame)),
        ("ingest.pixels", attrs["pixels"], ingest.pixels),
        ("mask.invalid", attrs["invalid_bits"], mask.invalid_bits),
        ("mask.flag_bits", attrs["flag_bits"], _bits(mask)),
    ):
        if found != wanted:
            raise ConfigError(
                f"{location} was made with {name} {found}, not {wanted}; use another store or that setting"
            )


def _bits(mask: MaskConfig) -> dict[str, str]:
    return {str(bit): name for bit, name in mask.flag_bits.items()}


def create(location: str, ingest: IngestConfig, mask: MaskConfig, keep_mask: bool) -> zarr.Group:
    """Make an empty store; its format is written last, so that an unfinished one is not taken for a store.

    Returns
    -------
    zarr.Group
        Its root, opened to write.
    """
    if root_document(location) is None:
        store = open_zarr_store(location, read_only=False)
        group = zarr.create_group(store, zarr_format=3, attributes={MAKING: FORMAT})
    else:
        group = open_group(location, read_only=False)
    variables = pixel_variables(ingest.frame, ingest.chunks, ingest.pixels, ingest.shard, keep_mask)
    unwanted = {"image", "mask"} - {variable.name for variable in variables}
    if found := [name for name in sorted(unwanted) if name in group]:
        raise ConfigError(
            f"{location} is unfinished, and was begun with {', '.join(found)}, which these settings leave out; use the "
            "same settings, remove the store, or name another place"
        )
    for name, below in (
        ("", (*variables, *CHIP_VARIABLES, *ROOT_AXES)),
        (PREDICTIONS, (*PREDICTION_VARIABLES, *PREDICTION_AXES)),
        (FILES, FILE_VARIABLES),
    ):
        part = group if not name else group.require_group(name)
        with known_warnings():
            at_once(partial(make_array, part), below)
    copied = [name for name in COORDINATES if name != "header"]
    group_of(group, PREDICTIONS).update_attributes({"coordinates": " ".join(copied), "store": location})
    attrs: dict[str, Any] = {
        "Conventions": "CF-1.12",
        "title": "CSST survey store",
        "format_version": VERSION,
        "frame": list(ingest.frame),
        "chunks": list(ingest.chunks),
        "pixels": ingest.pixels,
        "keep_mask": keep_mask,
        "invalid_bits": mask.invalid_bits,
        "flag_bits": _bits(mask),
        "measured": list(MEASURED),
        "coordinates": " ".join(COORDINATES),
        "format": FORMAT,
    }
    with known_warnings():
        group.attrs.put(attrs)
    return group
