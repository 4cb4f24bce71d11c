"""Whatever happens to a survey store, and in whatever order, what it ends with follows from its inputs alone.

A machine of rules adds, breaks, changes and supersedes files, runs the stages, ends them at any write, and damages
chunks. Now and then, and at the end, the survey is finished and compared with one that nothing happened to.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from conftest import assert_same_result
from dying import dies
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from serial import CLIENT, run_serially

from csst_dask.config import Config, with_settings
from csst_dask.inference import networks
from csst_dask.maps import degrade, open_map
from csst_dask.pipeline import block
from csst_dask.runners.ingest import ingest_survey
from csst_dask.runners.map import map_survey
from csst_dask.runners.predict import predict_survey
from csst_dask.runners.verify import verify_survey
from csst_dask.store import SurveyStore
from csst_dask.store.layout import CHIP_VARIABLES, PREDICTION_VARIABLES

NSIDE = 8192
OPTIONS = {
    "stateful_step_count": 40,
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": list(HealthCheck),
}
LEDGER_WRITES, PREDICTION_WRITES = 320, 60
"""Writes of an ingest that makes its store, and of a prediction, about."""
COLUMNS = [v.name for v in CHIP_VARIABLES] + [f"predictions/{v.name}" for v in PREDICTION_VARIABLES]
SETTLED_EVERY = 15
"""Steps between two comparisons, at least."""


class World:
    """What all examples share: contents of files, networks, a folder of inputs, and surveys that nothing happened to.

    The folder has one path in all examples, since reasons name files.
    """

    def __init__(self, folder: Path, config: Config, weights: list[Path], contents: dict[str, list[bytes]]):
        self.folder, self.inputs, self.config, self.weights = folder, folder / "in", config, weights
        self.contents = contents
        self.chips = sorted({name.rpartition("_")[0] for name in contents if name.endswith("_img.fits")})
        self.undisturbed: dict[Any, Path] = {}

    def names(self, chip: str) -> list[str]:
        """Files of a chip; those of the newer version share the catalogue of the older one."""
        older = chip.replace("_V02", "_V01").replace("_L1_", "_L0_")
        return [name for name in self.contents if name.startswith((chip, older + ".cat"))]

    def settings(self, which: int = 0, **settings: Any) -> Config:
        return with_settings(self.config, {"inference.weights": self.weights[which], **settings})

    def ingest(self, store: Path, update: bool = False) -> Any:
        with SurveyStore.write(store, self.config.ingest, self.config.mask) as opened:
            return ingest_survey(CLIENT, opened, [self.inputs], self.config, update=update)

    def predict(self, store: Path, which: int = 0) -> Any:
        with SurveyStore.write(store) as opened:
            return predict_survey(CLIENT, opened, self.settings(which))

    def map(self, store: Path, out: Path | None, add: Path | None = None, **options: Any) -> xr.Dataset:
        config = self.settings(**{"map.out": out, "map.nside": options.pop("nside", NSIDE)})
        return map_survey(CLIENT, SurveyStore.read(store), config, add, **options)[0].load()

    def finish(self, store: Path, out: Path, which: int) -> None:
        """Run all stages to the end."""
        for summary in (self.ingest(store, update=True), self.predict(store, which)):
            assert summary.failed == summary.given_up == 0, summary
        self.map(store, out)

    def without_disturbance(self, state: Any, which: int) -> Path:
        """Folder of a survey of the inputs as they are, made from nothing."""
        if (state, which) not in self.undisturbed:
            folder = self.folder / f"undisturbed-{len(self.undisturbed)}"
            folder.mkdir()
            self.finish(folder / "s.zarr", folder / "m.zarr", which)
            self.undisturbed[state, which] = folder
        return self.undisturbed[state, which]


def state_machine(world: World) -> type[RuleBasedStateMachine]:
    class SurveyMachine(RuleBasedStateMachine):
        """A survey, and all that may happen to it."""

        def __init__(self) -> None:
            super().__init__()
            shutil.rmtree(world.inputs, ignore_errors=True)
            shutil.rmtree(world.folder / "disturbed", ignore_errors=True)
            world.inputs.mkdir()
            (world.folder / "disturbed").mkdir()
            self.store, self.out = world.folder / "disturbed" / "s.zarr", world.folder / "disturbed" / "m.zarr"
            self.files: dict[str, tuple[int, int | None]] = {}
            self.made, self.predicted, self.weights, self.clock, self.steps = False, False, 0, 10**9, 0

        # files

        def write(self, name: str, variant: int, size: int | None = None) -> None:
            """Each change of a file has a time of its own, however fast it comes after another."""
            (world.inputs / name).write_bytes(world.contents[name][variant][:size])
            self.clock += 1
            os.utime(world.inputs / name, (self.clock, self.clock))
            self.files[name] = variant, size

        def there(self) -> list[str]:
            return [chip for chip in world.chips if f"{chip}_img.fits" in self.files]

        @initialize()
        def first(self) -> None:
            self.add(0)

        @precondition(lambda self: len(self.there()) < len(world.chips))
        @rule(pick=st.integers(0, 9))
        def add(self, pick: int) -> None:
            """A chip, or a newer version of one."""
            free = [chip for chip in world.chips if chip not in self.there()]
            for name in world.names(free[pick % len(free)]):
                if name not in self.files:
                    self.write(name, 0)

        @rule(pick=st.integers(0, 99), size=st.sampled_from([0, 100, 30_000, -100]))
        def break_file(self, pick: int, size: int) -> None:
            name = sorted(self.files)[pick % len(self.files)]
            self.write(name, self.files[name][0], size)

        @precondition(lambda self: any(size is not None for _, size in self.files.values()))
        @rule()
        def mend(self) -> None:
            for name, (variant, size) in self.files.items():
                if size is not None:
                    self.write(name, variant)

        @rule(pick=st.integers(0, 99))
        def change(self, pick: int) -> None:
            name = sorted(self.files)[pick % len(self.files)]
            self.write(name, 1 - self.files[name][0])

        # stages

        @rule(update=st.booleans())
        def ingest(self, update: bool) -> None:
            summary = world.ingest(self.store, update)
            assert summary.failed == summary.given_up == 0, summary
            self.made = True

        @rule(last=st.integers(0, LEDGER_WRITES), update=st.booleans())
        def die_in_ingest(self, last: int, update: bool) -> None:
            self.made |= not dies(last, world.ingest, self.store, update)

        @precondition(lambda self: self.made)
        @rule(which=st.integers(0, 1))
        def predict(self, which: int) -> None:
            assert world.predict(self.store, which).failed == 0
            self.weights, self.predicted = which, True

        @precondition(lambda self: self.made)
        @rule(which=st.integers(0, 1), last=st.integers(0, PREDICTION_WRITES))
        def die_in_predict(self, which: int, last: int) -> None:
            dies(last, world.predict, self.store, which)

        @precondition(lambda self: self.predicted)
        @rule()
        def map(self) -> None:
            """A map that is there is that of the store as it is now, or made again."""
            xr.testing.assert_identical(plain(world.map(self.store, self.out)), plain(world.map(self.store, None)))

        @precondition(lambda self: self.predicted)
        @rule(choice=st.integers(0, 63))
        def map_in_parts(self, choice: int) -> None:
            parts = [[row for row in range(6) if (choice >> row & 1) == side] for side in (0, 1)]
            first, both = (self.out.with_name(name) for name in ("first.zarr", "both.zarr"))
            world.map(self.store, first, chips=parts[0])
            world.map(self.store, both, first, chips=parts[1])
            assert_same_map(open_map(both).load(), world.map(self.store, None))

        @precondition(lambda self: self.predicted)
        @rule()
        def degrade(self) -> None:
            coarse = degrade(world.map(self.store, None), NSIDE // 4).drop_vars("n_visits")
            assert_same_map(coarse, world.map(self.store, None, nside=NSIDE // 4).drop_vars("n_visits"))

        # damage

        def findings(self, repair: bool = False) -> list[dict[str, Any]]:
            opened = SurveyStore.write(self.store, damaged=True) if repair else SurveyStore.read(self.store)
            with opened as store:
                return verify_survey(CLIENT, store, world.config, repair=repair)[0]

        @precondition(lambda self: self.made)
        @rule()
        def verify(self) -> None:
            assert self.findings() == []

        @precondition(lambda self: self.made)
        @rule(pick=st.integers(0, 9), array=st.sampled_from(["image", "mask", "block_stats", "header", *COLUMNS]),
              harm=st.sampled_from(["tear", "flip"]))  # fmt: skip
        def damage_and_repair(self, pick: int, array: str, harm: str) -> None:
            folder = self.store / array / "c"
            if array not in COLUMNS:
                done = np.flatnonzero(SurveyStore.read(self.store).scalars(["status"])["status"] == "done")
                if not done.size:
                    return
                folder /= str(done[pick % done.size])
            chunks = sorted(path for path in folder.rglob("*") if path.is_file())
            if not chunks:  # all of it is fill value
                return
            chunk = chunks[pick % len(chunks)]
            content = bytearray(chunk.read_bytes())
            if harm == "tear":
                content = content[: len(content) // 2]
            else:
                content[len(content) // 3] ^= 16
            chunk.write_bytes(content)
            assert any(found["variable"].startswith(array) for found in self.findings())
            self.findings(repair=True)
            assert self.findings() == []
            self.ingest(False)

        # the end

        @precondition(lambda self: self.steps > SETTLED_EVERY)
        @rule()
        def settle(self) -> None:
            self.steps = 0
            world.finish(self.store, self.out, self.weights)
            self.made = self.predicted = True
            folder = world.without_disturbance(frozenset(self.files.items()), self.weights)
            assert_same_survey(self.store, folder / "s.zarr")
            assert_same_map(open_map(self.out).load(), open_map(folder / "m.zarr").load())

        def check_invariants(self, *args: Any, **options: Any) -> None:
            super().check_invariants(*args, **options)
            self.steps += 1

        def teardown(self) -> None:
            if self.files:
                self.settle()

    return SurveyMachine


def plain(sky: xr.Dataset) -> xr.Dataset:
    return sky.drop_encoding()


def assert_same_survey(one: Path, other: Path) -> None:
    """Decoded arrays, attributes and what gave no chip are equal."""
    assert_same_result(str(one), str(other))
    assert_same_result(str(one), str(other), "predictions")
    a, b = SurveyStore.read(one), SurveyStore.read(other)
    assert a.predictions.column("chip").tolist() == list(range(a.rows))
    assert a.attrs == b.attrs
    assert a.predictions.attrs | {"store": ""} == b.predictions.attrs | {"store": ""}
    assert a.files.read() == b.files.read()


def assert_same_map(one: xr.Dataset, other: xr.Dataset) -> None:
    """Bit for bit if chips were added in one order, which the digest in the attributes tells; else to rounding."""
    if one.attrs["made_from"] == other.attrs["made_from"]:
        xr.testing.assert_identical(plain(one), plain(other))
    xr.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-18)


@pytest.fixture(scope="module")
def world(tmp_path_factory, write_exposures, small, weights):
    folder = tmp_path_factory.mktemp("machine")
    contents: dict[str, list[bytes]] = {}
    for chip in write_exposures(folder / "whole", detectors=(8,), exposures=2):
        for path in filter(None, (chip.image, chip.weight, chip.flag, chip.truth)):
            whole, other = Path(path).read_bytes(), changed(Path(path))
            contents[Path(path).name] = [whole, other]
            if path != chip.truth:
                contents[Path(path).name.replace("_V01_", "_V02_")] = [other, whole]
    other = Path(shutil.copytree(weights, folder / "other"))
    content = (other / "regressor.safetensors").read_bytes()
    (other / "regressor.safetensors").write_bytes(content.replace(b'"mae_dex\\"', b'"mae_DEX\\"', 1))
    # one chip a pass, since the last bits depend on the place of a row in it, and rows on what came first
    config = with_settings(Config(), {**small, "inference.batch": 1, "inference.device": "cpu"})
    with pytest.MonkeyPatch.context() as patch:
        run_serially(patch)
        patch.setattr(networks, "_models", lru_cache(2)(networks._models.__wrapped__))
        patch.setattr(block, "predictor_of", lru_cache(2)(networks.predictor_of.__wrapped__))
        yield World(folder, config, [weights, other], contents)


def changed(path: Path) -> bytes:
    """Other content of a file: an image with more light, and other flags, weights and stars."""
    if path.suffix == ".cat":
        lines = path.read_bytes().splitlines(keepends=True)
        return b"".join(lines[:-1])
    change: Callable = {"img": lambda x: x * 1.5, "wht": lambda x: x * 2, "flg": lambda x: np.roll(x, 5, 0)}[
        path.stem.rpartition("_")[2]
    ]
    with fits.open(path) as hdus:
        hdus[1].data = change(hdus[1].data)
        hdus.writeto(path.with_suffix(".new"))
    return path.with_suffix(".new").read_bytes()


def run(world: World, examples: int, **options: Any) -> None:
    run_state_machine_as_test(state_machine(world), settings=settings(max_examples=examples, **OPTIONS, **options))


@pytest.mark.timeout(900)
def test_a_survey_follows_from_its_inputs_whatever_happened_to_it(world):
    run(world, 30, derandomize=True, database=None, phases=[Phase.generate])  # shrinking takes minutes


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_survey_follows_from_its_inputs_in_many_more_histories(world):
    run(world, 200)
