"""Shared fixtures: small and full-size simulated exposures, a cluster, and tiny networks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import dask
import numpy as np
import pytest
import zarr

os.environ.setdefault("MPLBACKEND", "Agg")

FRAME, CHUNKS = (184, 192), (92, 96)
"""A small frame, for tests in which size is not the point."""
EXPOSURES = 12
"""Exposures of two detectors that whole runs are made of."""


def pytest_collection_modifyitems(items):
    """Files whose tests start processes and wait for them come first; those that only compute fill the gaps."""
    slow = {item.path for item in items if item.get_closest_marker("processes")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def terminal():
    """Ctrl-C as in a terminal, for a test and for processes that it starts: a shell that starts the suite in the
    background lets it ignore SIGINT, and what is ignored is inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def client():
    """A Dask cluster of two worker processes; not the default, or what others compute would go there too."""
    from csst_dask.runners import cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "OwnClient", partial(cluster.OwnClient, set_as_default=False))
        found = cluster.connect(workers=2, quiet=True)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def same_dask():
    """A test that makes Dask send what others compute elsewhere is found where it does so."""
    before = dask.config.get("scheduler", None)
    yield
    assert dask.config.get("scheduler", None) == before


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """The shipped networks, in a folder of their own."""
    from csst_dask.models import weights_folder

    return Path(shutil.copytree(weights_folder(None), tmp_path_factory.mktemp("weights") / "shipped"))


@pytest.fixture(scope="session")
def write_exposures():
    """Write simulated chips of a small frame; returns their files."""
    from csst_dask.config import SimulationConfig
    from csst_dask.simulation.product import write_chip
    from csst_dask.simulation.renderer import Renderer
    from csst_dask.simulation.survey import plan_survey

    def write(folder: Path, detectors=(8, 9), exposures=2, shape=FRAME, seed=3, star_counts=None) -> list:
        plan = plan_survey(
            SimulationConfig(
                seed=seed, exposures=exposures, detectors=detectors, region="demo", star_counts=star_counts
            )
        )
        renderer = Renderer(shape)
        return [write_chip(renderer.render(e, d), folder) for e in plan for d in e.detectors]

    return write


@pytest.fixture(scope="session")
def exposures(tmp_path_factory, write_exposures) -> Path:
    """Files for a whole run."""
    folder = tmp_path_factory.mktemp("exposures")
    write_exposures(folder, exposures=EXPOSURES)
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, exposures, weights) -> Path:
    """Folder of a whole run that nothing happened to."""
    from whole_run import configuration, run

    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    result = run(configuration(folder, exposures, weights))
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="session")
def small():
    """Settings of a store with the small frame."""
    return {"ingest.frame": FRAME, "ingest.chunks": CHUNKS}


@pytest.fixture(scope="session")
def training_store(tmp_path_factory) -> str:
    """Blocks that are the brighter the more stars there are, in 30 fields far from each other."""
    from in_process import write_maps

    rng, n, size = np.random.default_rng(0), 120, 16
    path = str(tmp_path_factory.mktemp("store") / "training.zarr")
    n_star = np.tile([0, 30, 300, 3000, 30_000, 300], n // 6)
    mean = 0.2 + 1e-3 * np.sqrt(n_star)[:, None, None] * rng.exponential(size=(n, size, size))
    std, valid = 0.05 + mean - 0.2, np.ones_like(mean)
    block_stats = np.stack([mean, valid, std, mean + 5 * std, mean, valid], axis=1).astype(np.float32)
    write_maps(path, block_stats, [_training_chip(row, n_star[row], mean[row]) for row in range(n)])
    return path


def _training_chip(row: int, n_star: int, mean: np.ndarray):
    from csst_dask.schema import ChipInfo

    ra = 9.0 * (row // 4)
    return ChipInfo(
        band="gi"[row % 2], exptime=150.0, mjd=61_000.0, ra=ra, dec=0.0, corner_ra=(ra,) * 4, corner_dec=(0.0,) * 4,
        field=f"f{row // 4}", n_star=int(n_star), n_bright=int(n_star) // 2, pixel_mean=float(mean.mean()),
        pixel_std=float(mean.std()), n_valid=FRAME[0] * FRAME[1], sky_level=0.2, sky_sigma=0.05,
    )  # fmt: skip


def decoded(path: str, group: str = "") -> dict[str, np.ndarray]:
    """Every array of a store, decoded and in the order of chip keys; files, their dates and rows left out."""
    root = zarr.open_group(path, mode="r", path=group)
    chips = zarr.open_group(path, mode="r")
    keys = list(zip(*(chips[name][:].tolist() for name in ("obs_id", "detector", "version")), strict=True))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return {
        name: array[:][order] if array.metadata.dimension_names[0] == "chip" else array[:]
        for name, array in root.arrays()
        if name not in ("source", "source_id", "truth_id", "chip")
    }


def assert_same_result(one: str, other: str, group: str = "") -> None:
    """Decoded arrays equal bit for bit."""
    a, b = decoded(one, group), decoded(other, group)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and how to give it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    found = subprocess.run(mount, capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"no file system can be mounted here: {found.stderr.strip()}")
    yield folder, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)
