"""Places where a store can be: a path, ``file://``, ``memory://`` and S3; and what is there, object by object."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3fs
from s3_server import NAME, Bucket

KINDS = ("path", "file", "memory", "s3")


@dataclass(frozen=True)
class Place:
    """A location with nothing at it yet."""

    url: str

    def below(self, name: str) -> Place:
        """A place in this one."""
        return Place(f"{self.url}/{name}")

    def put(self, name: str, content: bytes = b"x") -> None:
        """Write an object, as a program that is not ours."""
        system, root = self._system
        if isinstance(system, fsspec.get_filesystem_class("file")):
            system.makedirs(os.path.dirname(f"{root}/{name}"), exist_ok=True)
        system.pipe_file(f"{root}/{name}", content)

    def objects(self) -> dict[str, bytes]:
        """Content of all objects, by their name below the location."""
        system, root = self._system
        names = system.find(root) if system.exists(root) else []
        prefix = root.rstrip("/") + "/"
        return {name.removeprefix(prefix): system.cat_file(name) for name in sorted(names)}

    def remove(self) -> None:
        """Remove all objects; the file system in memory is the slower the more it holds."""
        system, root = self._system
        if system.exists(root):
            system.rm(root, recursive=True)

    def chunks(self, array: str) -> list[str]:
        """Names of the chunks of an array."""
        return [name for name in self.objects() if name.startswith(f"{array}/c/") or name == f"{array}/c"]

    @property
    def bare(self) -> str:
        """The location as Zarr takes it to make something there."""
        return self.url.removeprefix("file://")

    @property
    def _system(self) -> tuple[Any, str]:
        return fsspec.core.url_to_fs(self.url, use_listings_cache=False)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    """A bucket that this process and its children find by their environment."""
    with Bucket() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield found
    s3fs.S3FileSystem.clear_instance_cache()


def new_place(request: pytest.FixtureRequest, folder: Path) -> Place:
    """A free place of the kind that a fixture's parameter names."""
    name = secrets.token_hex(4)
    if request.param == "s3":
        request.getfixturevalue("bucket")
    return {
        "path": Place(str(folder / name)),
        "file": Place(f"file://{folder}/{name}"),
        "memory": Place(f"memory://{name}"),
        "s3": Place(f"s3://{NAME}/{name}"),
    }[request.param]


@pytest.fixture(params=KINDS)
def place(request, tmp_path) -> Iterator[Place]:
    """A free place of each kind."""
    found = new_place(request, tmp_path)
    yield found
    found.remove()
