"""Writes two maps in turn, and is stopped at one change of the file system after another.

    python dying_writer.py die|raise FOLDER

A process of its own makes every write, so that it can end there and then; another one looks at what it left. It is
stopped at each change about the moment when the new map takes the place of the old one, and at every `STRIDE`-th of
the others, which are alike. ``raise`` lets a change fail, as on a full disk, and ``die`` ends the process. Prints how
often a write was stopped.
"""

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import xarray as xr
from test_maps_export import a_map

from csst_dask.maps.export import open_map, write_zarr

STRIDE = 7
DONE, STOPPED, WRONG = 0, 11, 1


class Changes:
    """Counts renamed and removed folders and files, and stops at one of them."""

    def __init__(self, stop: int, how: str) -> None:
        self.seen: list[str] = []
        self.stop, self.how = stop, how
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple) -> None:
        if event not in ("os.rename", "os.remove", "os.rmdir"):
            return
        self.seen.append(f"{event} {args[0]} {args[1]}")
        if len(self.seen) == self.stop:
            if self.how == "die":
                os._exit(STOPPED)
            raise OSError(errno.ENOSPC, "No space left on device")


def write(stop: int, how: str, ds: xr.Dataset, path: Path) -> int:
    changes = Changes(stop, how)
    try:
        write_zarr(ds, path)
    except OSError:
        return STOPPED
    return STOPPED if len(changes.seen) >= stop else DONE


def plan(ds: xr.Dataset, path: Path, out: Path) -> int:
    changes = Changes(0, "")
    write_zarr(ds, path)
    exchange = next(k for k, change in enumerate(changes.seen, 1) if str(path) in change.split())
    total = len(changes.seen)
    out.write_text(json.dumps(sorted({*range(1, total, STRIDE), *range(exchange - 3, exchange + 6), total})))
    return DONE


def look(how: str, old: xr.Dataset, new: xr.Dataset, path: Path) -> int:
    found = open_map(path).load()
    assert found.identical(old) or found.identical(new), "neither the old map nor the new one"
    left = [p.name for p in path.parent.iterdir()]
    assert how == "die" or len(left) <= 2, f"more than the map and what could not be removed: {left}"
    write_zarr(new, path)
    assert open_map(path).identical(new), "running again does not end in the undisturbed result"
    assert [p.name for p in path.parent.iterdir()] == [path.name], "something is left over"
    return DONE


def in_a_process(function: Callable[..., int], *args: object) -> int:
    pid = os.fork()
    if pid == 0:
        status = WRONG
        try:
            status = function(*args)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(how: str, folder: Path) -> None:
    path = folder / "maps" / "map.zarr"
    old, new = (a_map(n).isel(band=[0], cells=slice(2)) for n in (50.0, 9.0))
    for ds in (new, old):
        assert in_a_process(plan, ds, path, folder / "plan.json") == DONE
    stops = json.loads((folder / "plan.json").read_text())
    for stop in stops:
        assert in_a_process(write, stop, how, new, path) == STOPPED, f"change {stop}"
        assert in_a_process(look, how, old, new, path) == DONE, f"after change {stop}"
        old, new = new, old
    assert in_a_process(write, stops[-1] + 1, how, new, path) == DONE, "more changes than were planned"
    print(len(stops))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
