"""Files and folders that are replaced whole: a process may die at any moment, and the old one or the new one is there.

The new one is written beside its place under a passing name. A file is then renamed over the old one. A folder cannot
be: the old one is moved aside and the new one into its place. Where a process died between these two, `restore`
moves the old one back; what else it left behind, `remove_leftovers` takes away.

Passing names are ``.NAME.KIND-HOST-PID-TOKEN``. Of kind ``old`` is what is whole, of kind ``new`` what may be broken.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from csst_dask.errors import ConfigError

DEAD_AFTER = 86400.0
"""What another machine left is its process's as long as it is younger than this, s."""

_SCHEME = re.compile(r"[A-Za-z][\w+.:-]+:")
_URL = re.compile(r"^[A-Za-z][\w+.-]+:/")
_FILE = re.compile(r"^file:/+")
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}
_in_use: set[str] = set()
"""Tokens of this process that are being written."""


def is_url(text: str) -> bool:
    """Whether a text is a URL, or meant to be one."""
    return _URL.match(text) is not None


def local_path(path: str | os.PathLike[str], what: str) -> Path:
    """A local path; the user's home is expanded, and ``file://`` is dropped.

    Parameters
    ----------
    path : path or str
        A `Path` made of a URL is recognised too, though it has lost a slash.
    what : str
        What the path is for, such as ``"map.out"``.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError
        If it is the URL of something else.
    """
    text = os.fspath(path)
    if _FILE.match(text):
        return Path("/" + _FILE.sub("", text))
    if "://" in text or any(_SCHEME.fullmatch(part) for part in Path(text).parts):
        raise ConfigError(
            f"{what}: found the URL {text}, expected a local path, since only a survey store may be a URL; name a "
            "local file or folder, and copy it there or from there"
        )
    return Path(text).expanduser()


@contextmanager
def replaced_file(path: str | Path) -> Iterator[Path]:
    """A file to be written in place of another.

    Parameters
    ----------
    path : path
        Replaced if it exists, when the block ends without an error; its folder is made.

    Yields
    ------
    Path
        Where to write.

    Raises
    ------
    OSError
        Names the file, also where the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _passing(path) as fresh:
        try:
            yield fresh
            _flush(fresh)
            os.replace(fresh, path)
        except OSError as error:
            if error.errno and not error.filename:  # as where a disk is full
                error.filename = str(path)
            raise


def write_atomically(path: str | Path, data: bytes | memoryview) -> None:
    """Write a file whole.

    Parameters
    ----------
    path : path
        Replaced if it exists; its folder is made.
    data : bytes or memoryview
        Whole content.

    Raises
    ------
    OSError
        Names the file, also where the disk is full.
    """
    with replaced_file(path) as fresh:
        fresh.write_bytes(data)


@contextmanager
def replaced_folder(path: str | Path) -> Iterator[Path]:
    """A folder to be written in place of another.

    Parameters
    ----------
    path : path
        Replaced if it exists, when the block ends without an error; the folder that holds it is made.

    Yields
    ------
    Path
        Folder to make and fill.

    Raises
    ------
    OSError
        What is at `path` is then as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _passing(path) as fresh:
        yield fresh
        _exchange(fresh, path)


def restore(path: str | Path) -> None:
    """Move a folder back to its place, if a process died after it had moved it aside.

    Parameters
    ----------
    path : path
        Place of the folder. Nothing is done if anything is there, or if nothing was moved aside.
    """
    path = Path(path)
    if not os.path.lexists(path):
        aside = [old for old in _leftovers(path) if old.kind == "old"]
        if aside:
            with suppress(OSError):  # another process was faster, or this one may only read
                os.rename(max(aside, key=lambda old: old.written).path, path)


def remove_leftovers(path: str | Path) -> None:
    """Remove what processes that died in a write of `path` left beside it.

    Parameters
    ----------
    path : path
        Of a file or a folder; if nothing is there, what `restore` can use stays.
    """
    path = Path(path)
    for leftover in _leftovers(path):
        if leftover.is_dead and (leftover.kind == "new" or os.path.lexists(path)):
            _discard(path, leftover.path)


@dataclass(frozen=True)
class _Leftover:
    """Something with a passing name."""

    path: Path
    kind: str
    host: str
    pid: int
    token: str

    @property
    def written(self) -> float:
        """When, in s since 1970; 0 if it is gone."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return 0.0

    @property
    def is_dead(self) -> bool:
        """Whether its process runs no more."""
        if self.host != socket.gethostname():
            return time.time() - self.written > DEAD_AFTER
        if self.pid == os.getpid():
            return self.token not in _in_use
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return False


@contextmanager
def _passing(path: Path) -> Iterator[Path]:
    """A name of kind ``new``; what still has it at the end is removed."""
    fresh, token = _name(path, "new")
    _in_use.add(token)
    try:
        yield fresh
    finally:
        _remove(fresh)
        _in_use.discard(token)


def _exchange(fresh: Path, path: Path) -> None:
    moved: list[Path] = []
    try:
        while True:
            try:
                os.rename(fresh, path)
                break
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            old, _ = _name(path, "old")
            with suppress(FileNotFoundError):  # then another process took it away
                os.rename(path, old)
                moved.append(old)
    except BaseException:
        restore(path)
        raise
    for old in moved:
        if os.path.lexists(old):
            _discard(path, old)


def _discard(path: Path, leftover: Path) -> None:
    """Remove a leftover, under a name that `restore` does not take for whole."""
    gone, _ = _name(path, "new")
    with suppress(OSError):
        os.rename(leftover, gone)
        _remove(gone)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _name(path: Path, kind: str) -> tuple[Path, str]:
    token = secrets.token_hex(4)
    return path.with_name(f".{path.name}.{kind}-{socket.gethostname()}-{os.getpid()}-{token}"), token


def _leftovers(path: Path) -> list[_Leftover]:
    name = re.compile(re.escape(f".{path.name}.") + r"(new|old)-(.+)-(\d+)-([0-9a-f]{8})")
    try:
        found = [match for entry in sorted(os.listdir(path.parent)) if (match := name.fullmatch(entry))]
    except OSError:
        return []
    return [_Leftover(path.with_name(m[0]), m[1], m[2], int(m[3]), m[4]) for m in found]
