"""Networks stay where they work: loaded once by each process, named in tasks, chosen with a batch that is kept."""

import os
import pickle
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from csst_dask.config import Config, with_settings
from csst_dask.errors import ConfigError
from csst_dask.inference.batching import CPU_BATCH
from csst_dask.models.files import identify_pair
from csst_dask.runners import networks
from csst_dask.runners.networks import Pair, choose_pair, fitting_batch, predictor_of
from csst_dask.runners.predict import block_tasks, predict_survey
from csst_dask.runners.simulate import simulate_store
from csst_dask.store import predictions as stored
from csst_dask.store.survey import open_scalars


@pytest.fixture(scope="module")
def config(small, weights):
    simulation = {"simulation.seed": 5, "simulation.exposures": 8, "simulation.detectors": (6, 8)}
    return with_settings(Config(), {**small, **simulation, "inference.weights": weights})


@pytest.fixture(scope="module")
def store(client, tmp_path_factory, config):
    path = str(tmp_path_factory.mktemp("networks") / "s.zarr")
    assert simulate_store(client, path, config).done == 16
    return path


def renew_workers(client):
    """Kill all worker processes, and wait until others are there."""
    old = set(client.run(os.getpid).values())
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        there = set(client.cluster.scheduler.workers)
        new = {nanny.pid for nanny in client.cluster.workers.values() if nanny.worker_address in there} - old
        if len(new) == len(old):
            return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_each_worker_loads_once_and_again_after_a_restart(client, store, config):
    for batch in (2, 4):
        renew_workers(client)
        some = with_settings(config, {"inference.batch": batch})
        assert predict_survey(client, store, some).done == 16
        found = client.run(lambda: networks._models.cache_info().misses)
        assert set(found.values()) <= {0, 1}
        assert sum(found.values()) >= 1


def test_who_is_asked_for_a_batch_has_loaded_the_networks(config):
    """As on a GPU, where the batch that fits is measured with the networks in place."""
    asked = Pair(*identify_pair(config.inference.weights), config.inference)
    networks._models.cache_clear()
    before = predictor_of(asked)
    after = predictor_of(replace(asked, batch=3))
    assert (before.batch, after.batch) == (CPU_BATCH, 3)
    assert after.models is before.models
    assert networks._models.cache_info().misses == 1


def test_networks_do_not_travel(store, config):
    pair = Pair(*identify_pair(config.inference.weights), config.inference, CPU_BATCH)
    every = np.ones(16, bool)
    for task in block_tasks(store, open_scalars(store), every, pair):
        assert len(pickle.dumps((task.name, task.args))) < 10_000


def test_other_weights_at_a_worker_are_refused(config):
    folder, checksums = identify_pair(config.inference.weights)
    other = dict.fromkeys(checksums, "0" * 64)
    with pytest.raises(ConfigError, match="other weights here than at the client"):
        predictor_of(Pair(folder, other, config.inference, 4))


def test_a_batch_that_is_chosen_is_that_of_the_store(client, store, config):
    assert fitting_batch(Pair(*identify_pair(config.inference.weights), config.inference)) == CPU_BATCH
    predict_survey(client, store, with_settings(config, {"inference.batch": 3}))
    assert choose_pair(client, config, store).batch == 3
    assert predict_survey(client, store, config).skipped == 16
    assert choose_pair(client, config).batch == CPU_BATCH
    assert stored.batch_of(store, {"classifier_sha256": "another"}) is None
