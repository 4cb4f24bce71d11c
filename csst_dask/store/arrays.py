"""Arrays of a store by name: made once, opened once, grown together, and written by rows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from csst_dask.errors import ConfigError, DamagedStore
from csst_dask.store.codecs import checked
from csst_dask.store.layout import BLOCK, Variable

REQUESTS = 16
"""Requests to the storage at a time."""

T = TypeVar("T")
R = TypeVar("R")


def at_once(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Call a function that waits for storage on many items, several at a time; results in their order."""
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="store") as pool:
        return list(pool.map(function, items))


@contextmanager
def known_warnings() -> Iterator[None]:
    """Without Zarr's remarks that fixed-width text and consolidated metadata are extensions of the format.

    Filters are of the whole process: enter this before threads are started, and not in them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.UnstableSpecificationWarning)
        warnings.filterwarnings("ignore", "Consolidated metadata", zarr.errors.ZarrUserWarning)
        yield


def array_of(group: zarr.Group, name: str) -> Any:
    """An array of a group; Zarr's own types do not tell it from a group or a scalar."""
    return group[name]


def group_of(group: zarr.Group, name: str) -> zarr.Group:
    """A group of a group, whatever consolidated metadata says."""
    mode: Literal["r", "r+"] = "r" if group.store_path.store.read_only else "r+"
    return zarr.open_group(group.store_path / name, mode=mode, zarr_format=3, use_consolidated=False)


def make_array(group: zarr.Group, variable: Variable) -> zarr.Array:
    """Create an array without chips, or take the one that an unfinished run has made.

    Raises
    ------
    ConfigError
        If what is there has another shape, type or codec.
    """
    rows = len(variable.values) if variable.values is not None else 0
    options: dict[str, Any] = {
        "shape": (rows, *variable.shape),
        "chunks": variable.chunks or (BLOCK, *variable.shape),
        "shards": variable.shards,
        "dtype": variable.dtype,
        "fill_value": variable.fill,
        "compressors": checked(variable.codec),
        "dimension_names": variable.dims,
        "attributes": dict(variable.attrs),
    }
    try:
        array = group.create_array(variable.name, **options)
    except zarr.errors.ContainsArrayError:
        array = array_of(group, variable.name)
        wanted = zarr.create_array(store=zarr.storage.MemoryStore(), zarr_format=3, **options)
        if array.metadata.to_dict() != wanted.metadata.to_dict():
            raise ConfigError(
                f"{group.store_path} is unfinished, and its array {variable.name!r} was made with other settings; "
                "use these, remove the store, or name another place"
            ) from None
    if variable.values is not None:
        array[:] = variable.values
    return array


def read_chip(array: Any, index: Any) -> NDArray:
    """A part of an array that belongs to one chip.

    Raises
    ------
    DamagedStore
        If a chunk was torn or changed.
    """
    try:
        return np.asarray(array[index])
    except (ValueError, RuntimeError) as error:  # of checksums and codecs
        raise DamagedStore(
            f"{array.name.lstrip('/')} is damaged ({error}); run 'csst-dask verify --repair', then ingest again"
        ) from None


def read_column(array: Any, n: int, rows: Sequence[int] | NDArray[np.int64] | None = None, where: str = "") -> NDArray:
    """A per-chip variable of the first ``n`` rows, or of some rows; text is decoded.

    Raises
    ------
    DamagedStore
        If a chunk was torn or changed.
    """
    try:
        return decode(array[:n] if rows is None else array.oindex[np.asarray(rows, np.int64)])
    except (ValueError, RuntimeError) as error:
        raise DamagedStore(
            f"{where}: the variable {array.name.lstrip('/')!r} is damaged ({error}); run 'csst-dask verify --repair'"
        ) from None


def grow(arrays: Iterable[Any], rows: int) -> None:
    """Give arrays so many rows, where they have another number."""

    def resize(array: Any) -> None:
        if array.shape[0] != rows:
            array.resize((rows, *array.shape[1:]))

    with known_warnings():
        at_once(resize, arrays)


def write_rows(
    arrays: Mapping[str, Any], rows: Sequence[int] | NDArray[np.int64], columns: Mapping[str, ArrayLike]
) -> None:
    """Write per-chip values of some rows, column after column in the order given.

    Raises
    ------
    DamagedStore
        If a chunk, of which other rows are kept, was torn or changed.
    """
    if not len(rows):
        return
    index = np.asarray(rows)
    for name, values in columns.items():
        content = encode(values, arrays[name].dtype)
        try:
            arrays[name].oindex[index] = content
        except (ValueError, RuntimeError) as error:
            raise DamagedStore(
                f"{arrays[name].store_path}: the variable is damaged ({error}); run 'csst-dask verify --repair'"
            ) from error


def encode(values: ArrayLike, dtype: np.dtype) -> NDArray:
    """Values as an array of a type; text that is too long for it ends with three dots."""
    if dtype.kind != "S":
        return np.asarray(values, dtype)
    if np.asarray(values).dtype.kind == "S":
        return np.asarray(values, dtype)
    texts = np.asarray(values, object).ravel().tolist()
    return np.array([shorten(str(text), dtype.itemsize) for text in texts], dtype)


def shorten(text: str, width: int) -> bytes:
    """UTF-8 of a text in at most so many bytes, cut between characters."""
    found = text.encode("utf-8", "replace")
    if len(found) <= width:
        return found
    return found[: width - 3].decode("utf-8", "ignore").encode() + b"..."


def decode(values: NDArray) -> NDArray:
    """Bytes that hold UTF-8 as text; other types as they are."""
    return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values


def consolidate(group: zarr.Group, arrays: Mapping[str, Any], groups: Mapping[str, zarr.Group]) -> None:
    """Write the metadata of arrays and groups into that of the group that holds them, in the order given.

    Zarr's own function sorts the names, and lists the store to find them.
    """
    prototype = default_buffer_prototype()

    def document(node: Any) -> dict[str, Any]:
        return json.loads(node.metadata.to_buffer_dict(prototype)["zarr.json"].to_bytes())

    with known_warnings(), zarr.config.set({"json_indent": None}):  # which Python writes in a tenth of the time
        whole = document(group)
        whole["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": {name: document(node) for name, node in {**arrays, **groups}.items()},
        }
    content = prototype.buffer.from_bytes(json.dumps(whole).encode())
    sync((group.store_path / "zarr.json").set(content))
