"""A process may die between any two writes: the same command, run again, ends in the undisturbed result.

Each command is played in this process, without a cluster, and dies at its first write, at its second, and so on until
it makes no more. Writes to the store and the renames that put outputs into their place are counted. What is compared is
every byte of the store and of the outputs; where bytes differ, the values. The making of a store, and the steps of a
rename, have tests of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import zarr
from dying import Death, Writes, writing
from serial import CLIENT, run_serially

from csst_dask.config import Config, with_settings
from csst_dask.runners.ingest import ingest_survey
from csst_dask.runners.map import map_survey
from csst_dask.runners.predict import predict_survey
from csst_dask.runners.run import run_survey
from csst_dask.store import SurveyStore
from csst_dask.training import load_samples
from csst_dask.training.exchange import export_samples

pytestmark = pytest.mark.timeout(900)


class Case:
    """A folder with a store, inputs and outputs, and the commands on it."""

    def __init__(self, folder: Path, config: Config):
        self.folder, self.store = folder, folder / "s.zarr"
        outputs = {"map.out": folder / "m.zarr", "map.fits": folder / "m.fits", "map.moc": folder / "m.moc"}
        self.config = with_settings(config, outputs | {"inputs": [folder / "in"]})

    def open(self) -> SurveyStore:
        return SurveyStore.write(self.store, self.config.ingest, self.config.mask)

    def ingest(self, **again: bool) -> None:
        with self.open() as store:
            ingest_survey(CLIENT, store, [self.folder / "in"], self.config, **again)

    def update(self) -> None:
        self.ingest(update=True)

    def predict(self) -> None:
        with self.open() as store:
            predict_survey(CLIENT, store, self.config)

    def predict_with_other_weights(self) -> None:
        with self.open() as store:
            other = with_settings(self.config, {"inference.weights": self.folder / "other"})
            predict_survey(CLIENT, store, other)

    def reroute(self) -> None:
        with self.open() as store:
            predict_survey(CLIENT, store, with_settings(self.config, {"routing.min_confidence": 1.0}))

    def map(self) -> None:
        map_survey(CLIENT, SurveyStore.read(self.store), self.config)

    def run(self) -> None:
        with self.open() as store:
            run_survey(CLIENT, store, self.config, lambda name: (None, None))

    def export(self) -> None:
        for _ in export_samples(load_samples(self.store), self.folder / "samples", "maps"):
            pass


def rename_weights(folder: Path) -> None:
    """The same numbers under another checksum."""
    for file in folder.glob("*.safetensors"):
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        own = json.loads(header["__metadata__"]["csst_dask"]) | {"remark": "other"}
        header["__metadata__"]["csst_dask"] = json.dumps(own)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


@pytest.fixture(scope="module")
def serially():
    with pytest.MonkeyPatch.context() as patch:
        run_serially(patch)
        yield


@pytest.fixture(scope="module")
def stages(tmp_path_factory, write_exposures, small, weights, serially):
    """Folders before each command: made, ingested, changed, predicted, with a newer version."""
    base = tmp_path_factory.mktemp("stages")
    config = with_settings(
        Config(),
        {**small, "inference.weights": weights, "inference.batch": 2, "map.nside": 512, "ingest.pixels": "none"},
    )

    def stage(name: str, before: str | None = None) -> Case:
        if before is not None:
            shutil.copytree(base / before, base / name)
        return Case(base / name, config)

    chips = write_exposures(base / "empty" / "in")
    with open(chips[1].image, "r+b") as file:
        file.truncate(30_000)
    (base / "empty" / "in" / "stray.fits").write_bytes(b"no image")
    shutil.copytree(weights, base / "empty" / "other")
    rename_weights(base / "empty" / "other")
    with stage("empty").open():
        pass
    stage("ingested", "empty").ingest()
    stage("predicted", "ingested").predict()
    stage("changed", "predicted")
    images = sorted((base / "changed" / "in").rglob("*08_L1_V01_img.fits"))
    shutil.copy(images[1], images[0])
    stage("superseded", "predicted")
    new = sorted((base / "superseded" / "in").rglob("*08_L1_V01_img.fits"))[0]
    shutil.copy(new, str(new).replace("_V01_", "_V02_"))
    return base, config


def content(folder: Path) -> dict[str, bytes]:
    """All files but inputs, by name; passing names are none."""
    names = ("s.zarr", "m.zarr", "m.fits", "m.moc", "samples")
    paths = (path for name in names for path in ([folder / name, *(folder / name).rglob("*")]) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def values(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a store and of a map, decoded; and attributes."""
    found: dict[str, np.ndarray] = {}
    for name in ("s.zarr", "s.zarr/predictions", "s.zarr/files", "m.zarr"):
        if (folder / name / "zarr.json").exists():
            group = zarr.open_group(folder / name, mode="r")
            found |= {f"{name}/{key}": array[...] for key, array in group.arrays()}
            found[name] = np.array(json.dumps(dict(group.attrs), sort_keys=True, default=str))
    return found


State = tuple[dict[str, bytes], dict[str, np.ndarray]]


def state(folder: Path) -> State:
    return content(folder), values(folder)


def assert_same(folder: Path, expected: State) -> None:
    """Bytes are equal; or, where they are not, values and the files that are no arrays."""
    here, there = content(folder), expected[0]
    if here == there:
        return
    found = values(folder)
    assert found.keys() == expected[1].keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[1][name], err_msg=name)
    for name in {*here, *there}:
        assert ".zarr/" in name or here.get(name) == there.get(name), name


def counted_renames(patch: pytest.MonkeyPatch, writes: Writes, folder: Path) -> None:
    """Renames that put a file or folder into its place are steps too."""
    for name in ("rename", "replace"):
        real = getattr(os, name)

        def step(*args, real=real, **options):
            if Path(args[-1]).parent in (folder, folder / "samples"):
                writes.step()
            return real(*args, **options)

        patch.setattr(os, name, step)


COMMANDS = (
    ("empty", "ingest"), ("changed", "update"), ("ingested", "predict"), ("superseded", "ingest"),
    ("predicted", "predict_with_other_weights"), ("predicted", "reroute"), ("predicted", "map"), ("empty", "run"),
    ("predicted", "export"),
)  # fmt: skip
ALIKE = (("changed", "update"), ("superseded", "ingest"))
"""Commands that make the writes of a first ingest, and some more: every other one of theirs is for the long tests."""


def cases() -> list:
    """Folder, command, first write to die at, and steps between."""
    found = []
    for before, command in COMMANDS:
        for first in range(2 if (before, command) in ALIKE else 1):
            # a whole run makes the writes of the others, and takes as long as all of them
            long = command == "run" or first > 0
            name, step = f"{command}-{before}", 2 if (before, command) in ALIKE else 1
            marks = [pytest.mark.long] if long else []
            found.append(
                pytest.param(before, command, first, step, id=f"{name}-{first}" if step > 1 else name, marks=marks)
            )
    return found


@pytest.mark.parametrize(("before", "command", "first", "step"), cases())
def test_a_command_that_died_at_any_write_ends_in_the_undisturbed_result(
    stages, tmp_path, before, command, first, step
):
    base, config = stages
    folder = tmp_path / "case"

    def fresh() -> Case:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base / before, folder)
        return Case(folder, config)

    getattr(fresh(), command)()
    expected = state(folder)
    last, ended = first, False
    while not ended:
        case = fresh()
        with writing(Writes(last)) as writes, pytest.MonkeyPatch.context() as patch:
            counted_renames(patch, writes, folder)
            try:
                getattr(case, command)()
                assert not writes.dead, "a handler has swallowed the death"
                ended = True
            except Death:
                pass
        getattr(case, command)()
        try:
            assert_same(folder, expected)
        except AssertionError as error:
            raise AssertionError(f"after a death at write {last + 1}: {error}") from None
        last += step
    assert last > 3, "the command writes nothing that could be lost"
    print(f"{command}: about {last - step} writes")
