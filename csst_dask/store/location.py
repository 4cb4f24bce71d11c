"""Where a store is: a folder, or a URL that fsspec understands; and the few file operations that Zarr does not have."""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import zarr
from fsspec.utils import get_protocol
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from csst_dask.errors import ConfigError

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://?")
_FILE = "file://"
_UNFINISHED = re.compile(r"\.lease-\d+\.json\.[0-9a-f]{16}|zarr\.[0-9a-f]{32}\.partial")
"""Files of this module and of Zarr that were not renamed to what they were to be, since their process died."""
_creating = threading.Lock()
"""``memory://`` looks whether an object exists, then writes it."""


def locate(path: str | os.PathLike[str]) -> str:
    """A location as every process can use it.

    Parameters
    ----------
    path : path or str
        Folder, ``file://`` URL, or URL of a file system that fsspec knows, such as ``s3://bucket/survey.zarr``.

    Returns
    -------
    str
        An absolute path, or the URL.

    Raises
    ------
    ConfigError
        If the URL is of no file system that is installed.
    """
    text = os.fspath(path)
    if text.startswith(_FILE):
        text = text[len(_FILE) :]
    if not _URL.match(text):
        return os.path.abspath(os.path.expanduser(text))
    protocol = get_protocol(text)
    if "://" not in text:
        raise ConfigError(
            f"{text} is no URL; expected a path, or a URL such as {protocol or 's3'}://bucket/survey.zarr"
        )
    try:
        fsspec.get_filesystem_class(protocol)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{text}: {error}; expected a path, or the URL of a file system that is installed") from None
    return text.rstrip("/")


def locate_all(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """`locate` of one location or of several."""
    return [locate(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]


def is_url(location: str) -> bool:
    """Whether a location is no local path."""
    return "://" in location


def open_zarr_store(location: str, *, read_only: bool) -> Store:
    """The Zarr store of a location.

    Parameters
    ----------
    location : str
        As `locate` gives it.
    read_only : bool

    Returns
    -------
    zarr.abc.store.Store
    """
    if is_url(location):
        return FsspecStore.from_url(location, read_only=read_only)
    return LocalStore(location, read_only=read_only)


def open_group(location: str, *, read_only: bool) -> zarr.Group:
    """The root group of a location, whatever consolidated metadata says."""
    store = open_zarr_store(location, read_only=read_only)
    return zarr.open_group(store, mode="r" if read_only else "r+", zarr_format=3, use_consolidated=False)


def root_document(location: str) -> dict[str, Any] | None:
    """Metadata of the Zarr node at a location, as it stands in the file; None where there is none.

    Raises
    ------
    ConfigError
        If the location is a file, or its metadata is damaged.
    """
    try:
        content = Folder(location).read("zarr.json")
    except NotADirectoryError:
        raise ConfigError(f"{location} is a file, expected a folder; name another place") from None
    if content is None:
        return None
    try:
        return dict(json.loads(content))
    except ValueError as error:
        raise ConfigError(f"{location}/zarr.json is damaged ({error}); restore it from a copy") from None


class Folder:
    """The objects directly below a location.

    Parameters
    ----------
    location : str
        As `locate` gives it.
    """

    def __init__(self, location: str):
        self.location = location
        self._system: Any = None
        self._path = location
        if is_url(location):
            self._system, self._path = fsspec.core.url_to_fs(location, use_listings_cache=False)

    def names(self) -> list[str]:
        """Names of what is there, sorted, but for files that a process did not finish; none if there is nothing.

        Raises
        ------
        NotADirectoryError
            If the location is a file.
        """
        if self._system is None:
            try:
                return sorted(name for name in os.listdir(self._path) if not _UNFINISHED.fullmatch(name))
            except FileNotFoundError:
                return []
        try:
            found = [str(name).rstrip("/") for name in self._system.ls(self._path, detail=False)]
        except FileNotFoundError:
            return []
        if found == [self._path.rstrip("/")] and self._system.isfile(self._path):
            raise NotADirectoryError(f"{self.location} is an object, not a folder")
        return sorted({name.rsplit("/", 1)[-1] for name in found if name != self._path.rstrip("/")})

    def read(self, name: str) -> bytes | None:
        """Content of an object; None where it is missing."""
        try:
            if self._system is None:
                return Path(self._path, name).read_bytes()
            return self._system.cat_file(self._join(name))
        except FileNotFoundError:
            return None

    def create(self, name: str, content: bytes) -> bool:
        """Write an object that must not exist yet; of several processes that try at once, one succeeds.

        Returns
        -------
        bool
            Whether it was written; False where there is one already.
        """
        if self._system is None:
            os.makedirs(self._path, exist_ok=True)
            return _create_file(Path(self._path, name), content)
        with _creating:
            try:
                self._system.pipe_file(self._join(name), content, mode="create")
            except OSError as error:
                # FileExistsError, or what servers and older clients call it: a failed condition
                if not isinstance(error, FileExistsError) and self.read(name) is None:
                    raise
                return False
        return True

    def write(self, name: str, content: bytes) -> None:
        """Write an object at once and whole, in the place of another of this name."""
        if self._system is not None:
            self._system.pipe_file(self._join(name), content)
            return
        with _temporary(Path(self._path, name), content) as fresh:
            os.replace(fresh, Path(self._path, name))

    def remove(self, name: str) -> None:
        """Remove an object that may be missing."""
        with suppress(FileNotFoundError):
            if self._system is None:
                os.remove(Path(self._path, name))
            else:
                self._system.rm_file(self._join(name))

    def remove_if_empty(self) -> None:
        """Remove the folder itself where nothing is in it."""
        if self._system is None:
            with suppress(OSError):
                os.rmdir(self._path)

    def _join(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"


@contextmanager
def _temporary(path: Path, content: bytes) -> Iterator[Path]:
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(fresh, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        yield fresh
    finally:
        with suppress(FileNotFoundError):
            os.remove(fresh)


def _create_file(path: Path, content: bytes) -> bool:
    """With a hard link, which appears whole or not at all; exclusively where the file system has no links."""
    with _temporary(path, content) as fresh:
        try:
            os.link(fresh, path)
            return True
        except FileExistsError:
            return False
        except OSError:
            pass
    try:
        with open(path, "xb") as stream:
            stream.write(content)
    except FileExistsError:
        return False
    return True
