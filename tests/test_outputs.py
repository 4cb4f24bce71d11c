"""Files and folders that are replaced whole, what a dead process leaves, and URLs where a path is needed."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from csst_dask.errors import ConfigError
from csst_dask.outputs import (
    local_path,
    remove_leftovers,
    replaced_file,
    replaced_folder,
    restore,
    write_atomically,
)


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/m.zarr", "https://a.b/m", "memory://m", "simplecache::s3://b/m", "s3:"],
)
def test_urls_are_refused_also_as_paths(url, tmp_path):
    for path in (url, Path(url), tmp_path / Path(url)):
        with pytest.raises(ConfigError, match=r"map\.out: found the URL .*, expected a local path"):
            local_path(path, "map.out")


@pytest.mark.parametrize("path", ["m.zarr", "/data/a:b/m.zarr", "C:/data/m.zarr", "12:30/m", "../m 1.fits"])
def test_paths_are_paths(path):
    assert local_path(path, "map.out") == Path(path)


def test_a_file_url_is_a_path():
    assert local_path("file:///home/m.zarr", "map.out") == local_path(Path("file:///home/m.zarr"), "map.out")
    assert local_path("file:///home/m.zarr", "map.out") == Path("/home/m.zarr")


def a_folder(path, text):
    path.mkdir()
    (path / "text").write_text(text)


def fail(place, write, error):
    with place as fresh:
        write(fresh)
        raise error


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomically(path, b"old")
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space") as caught:
        fail(replaced_file(path), lambda fresh: fresh.write_bytes(b"ne"), full)
    assert caught.value.filename == str(path)
    with pytest.raises(KeyboardInterrupt):
        fail(replaced_file(path), lambda fresh: fresh.write_bytes(b"ne"), KeyboardInterrupt())
    assert path.read_bytes() == b"old"
    write_atomically(path, memoryview(b"new"))
    assert [(p.name, p.read_bytes()) for p in path.parent.iterdir()] == [("file", b"new")]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder"
    for text in ("one", "two"):
        with replaced_folder(path) as fresh:
            a_folder(fresh, text)
        assert (path / "text").read_text() == text
    with pytest.raises(KeyboardInterrupt):
        fail(replaced_folder(path), lambda fresh: a_folder(fresh, "thr"), KeyboardInterrupt())
    assert (path / "text").read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["folder"]


def test_a_reader_that_restores_does_not_stop_the_writer(tmp_path, monkeypatch):
    path, rename, restored = tmp_path / "folder", os.rename, []
    a_folder(path, "old")

    def meanwhile(source, target):
        rename(source, target)
        if Path(target).name.startswith(".folder.old-") and not restored:
            restore(path)
            restored.append((path / "text").read_text())

    monkeypatch.setattr(os, "rename", meanwhile)
    with replaced_folder(path) as fresh:
        a_folder(fresh, "new")
    assert restored == ["old"]
    assert (path / "text").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def name_of(kind, pid, host=None):
    return f".m.zarr.{kind}-{host or os.uname().nodename}-{pid}-0123abcd"


def test_only_what_the_dead_left_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = tmp_path / "m.zarr"
    kept = [name_of("new", os.getppid()), name_of("old", 1), name_of("new", ended.pid, "another-host"), ".m.zarr.new-x"]
    kept += [f".n.zarr.new-{os.uname().nodename}-{ended.pid}-0123abcd"]
    gone = [name_of("new", ended.pid), name_of("new", os.getpid())]
    for name in (*kept, *gone, name_of("old", ended.pid)):
        a_folder(tmp_path / name, name)
    os.utime(tmp_path / kept[1], (0, 0))
    with replaced_file(path) as fresh:  # being written, by this process
        fresh.write_text("x")
        remove_leftovers(path)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, fresh.name, name_of("old", ended.pid)])
    path.unlink()
    restore(path)
    assert (path / "text").read_text() == name_of("old", ended.pid), "the one that was written last"
    remove_leftovers(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "m.zarr"])
    os.utime(tmp_path / kept[2], (0, 0))
    remove_leftovers(path)
    assert not (tmp_path / kept[2]).exists(), "of another host, and very old"
    restore(path)
    assert (path / "text").read_text() == name_of("old", ended.pid)
