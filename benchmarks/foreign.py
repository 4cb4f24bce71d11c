"""The foreign benchmark: full-size chips of skies and a camera that share no code and no laws with the simulator.

    python benchmarks/foreign.py --set twin --store twin.zarr       # renders, ingests, keeps no pixels
    python benchmarks/foreign.py --set twin --out twin --chips 10   # image, flag file and truth catalogue of each chip

GalSim draws PSFs and galaxies. The set ``benchmark`` is frozen: nothing learns from it and nothing is chosen by it;
choices are made by ``twin``, which has another seed and other ranges. Every chip has random numbers of its own, so that
it is the same whichever others are rendered. Chips that are there already are not rendered again. Lists of all that was
drawn (`foreign_files.write_list`) lie in ``lists`` under the output folder, or beside the store in ``<store>-lists``.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foreign_files import VERSION, chip_paths, draw_picture, list_path, write_chip, write_list
from foreign_image import render
from foreign_plan import SETS, Plan, plan_chip
from rich.progress import track

from csst_dask.schema import DONE, FRAME_SHAPE

CHIPS = 120


def write_files(plans: list[Plan], folder: Path, shape: tuple[int, int] = FRAME_SHAPE) -> None:
    """Render chips to files, those without an image or a list.

    Parameters
    ----------
    plans : list of Plan
    folder : Path
        Lists go to its sub-folder ``lists``.
    shape : (int, int)
        Frame (ny, nx), pixel.
    """
    lists = folder / "lists"
    missing = [p for p in plans if not (chip_paths(p, folder)["img"].exists() and list_path(p, lists).exists())]
    for plan in track(missing, f"{len(plans) - len(missing)} of {len(plans)} were there"):
        chip = render(plan, shape)
        write_list(chip, lists)
        write_chip(chip, folder)


def fill_store(plans: list[Plan], store: Path, shape: tuple[int, int] = FRAME_SHAPE, client: object = None) -> None:
    """Render chips, bring each into a store that keeps no pixels, and remove its files.

    Parameters
    ----------
    plans : list of Plan
    store : Path
    shape : (int, int)
        Frame (ny, nx), pixel.
    client : distributed.Client, optional
        By default one worker process here.
    """
    from csst_dask import Config, Survey
    from csst_dask.config import with_settings

    lists, settings = lists_of(store), {"ingest.frame": shape}
    if shape != FRAME_SHAPE:
        settings["ingest.chunks"] = shape
    survey = Survey(store, config=with_settings(Config(), settings), quiet=True)
    there = stored(store)
    missing = [p for p in plans if (p.obs_id, p.detector) not in there or not list_path(p, lists).exists()]
    if not missing:
        return
    store.parent.mkdir(parents=True, exist_ok=True)
    with one_worker(client) as worker:
        for plan in track(missing, f"{len(plans) - len(missing)} of {len(plans)} were there"):
            chip = render(plan, shape)
            write_list(chip, lists)
            folder = Path(tempfile.mkdtemp(prefix="foreign-", dir=store.parent))
            try:
                write_chip(chip, folder)
                del chip
                survey.ingest(folder, pixels="none", client=worker)
            finally:
                shutil.rmtree(folder)
            if (plan.obs_id, plan.detector) not in stored(store):
                raise SystemExit(f"{plan.name} was not taken into {store}: csst-dask status --store {store} says why")


@contextmanager
def one_worker(client: object = None) -> Iterator[object]:
    """The client given, or one with a worker process of its own that ends with the block."""
    if client is not None:
        yield client
        return
    import csst_dask

    with csst_dask.connect(workers=1, quiet=True) as started:
        yield started


def stored(store: Path) -> set[tuple[str, int]]:
    """(obs_id, detector) of the chips that a store has."""
    from csst_dask.store import SurveyStore

    if not (store / "zarr.json").exists():
        return set()
    opened = SurveyStore.read(store)
    return {
        (key.obs_id, key.detector)
        for key, row in opened.row_of.items()
        if key.version == VERSION and opened.ledger["status"][row] == DONE
    }


def lists_of(store: Path) -> Path:
    """Folder of the lists that belong to a store."""
    return store.with_name(f"{store.stem}-lists")


def frame_shape(text: str) -> tuple[int, int]:
    """``full``, or rows x columns such as ``368x384``."""
    if text == "full":
        return FRAME_SHAPE
    ny, nx = text.lower().split("x")
    return int(ny), int(nx)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=tuple(SETS), required=True)
    parser.add_argument("--out", type=Path, help="folder for files")
    parser.add_argument("--store", type=Path, help="survey store, instead of files")
    parser.add_argument("--chips", type=int, default=CHIPS)
    parser.add_argument("--first", type=int, default=0, help="number of the first chip")
    parser.add_argument("--shape", type=frame_shape, default=FRAME_SHAPE, help="full, or such as 368x384")
    parser.add_argument("--picture", type=Path, help="PNG of the chips' middles")
    args = parser.parse_args()
    if (args.out is None) == (args.store is None):
        parser.error("give one of --out and --store")
    plans = [plan_chip(args.set, index) for index in range(args.first, args.first + args.chips)]
    if args.store is None:
        write_files(plans, args.out, args.shape)
    else:
        fill_store(plans, args.store, args.shape)
    if args.picture is not None:
        lists = args.out / "lists" if args.store is None else lists_of(args.store)
        draw_picture([list_path(plan, lists) for plan in plans], args.picture)


if __name__ == "__main__":
    main()
