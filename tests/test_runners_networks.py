"""Networks stay where they work: loaded once by each process, named in tasks, chosen with a batch that is kept."""

import os
import pickle
import signal
import time
from dataclasses import replace

import in_process
import pytest

from csst_dask.config import Config, with_settings
from csst_dask.errors import ConfigError
from csst_dask.inference import networks
from csst_dask.inference.networks import ModelPair, fitting_batch, predictor_of
from csst_dask.inference.predictor import CPU_BATCH
from csst_dask.models.files import identify_pair
from csst_dask.pipeline.block import Work
from csst_dask.pipeline.plan import scalars_of
from csst_dask.runners.blocks import block_task, divide
from csst_dask.runners.networks import choose_pair
from csst_dask.runners.predict import predict_survey
from csst_dask.store import SurveyStore


@pytest.fixture(scope="module")
def config(small, weights):
    simulation = {"simulation.seed": 5, "simulation.exposures": 8, "simulation.detectors": (6, 8)}
    return with_settings(Config(), {**small, **simulation, "inference.weights": weights})


@pytest.fixture(scope="module")
def path(tmp_path_factory, config):
    found = str(tmp_path_factory.mktemp("networks") / "s.zarr")
    in_process.simulate(found, config)
    return found


@pytest.fixture
def store(path):
    with SurveyStore.write(path) as opened:
        assert opened.rows == 16
        yield opened


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
    asked = ModelPair(*identify_pair(config.inference.weights), config.inference)
    networks._models.cache_clear()
    before = predictor_of(asked)
    after = predictor_of(replace(asked, batch=3))
    assert (before.batch, after.batch) == (CPU_BATCH, 3)
    assert after.models is before.models
    assert networks._models.cache_info().misses == 1


def test_networks_do_not_travel(store, config):
    pair = ModelPair(*identify_pair(config.inference.weights), config.inference, CPU_BATCH)
    work = Work(store.location, store.rows, config, pair=pair)
    blocks = list(divide(CPU_BATCH, known=scalars_of(store, range(16))))
    assert len(blocks) == 2
    for block in blocks:
        task = block_task(block, work)
        assert len(pickle.dumps((task.name, task.args))) < 10_000


def test_other_weights_at_a_worker_are_refused(config):
    folder, checksums = identify_pair(config.inference.weights)
    other = dict.fromkeys(checksums, "0" * 64)
    with pytest.raises(ConfigError, match="other weights here than at the client"):
        predictor_of(ModelPair(folder, other, config.inference, 4))


def test_a_batch_that_is_chosen_is_that_of_the_store(client, store, config):
    assert fitting_batch(ModelPair(*identify_pair(config.inference.weights), config.inference)) == CPU_BATCH
    predict_survey(client, store, with_settings(config, {"inference.batch": 3}))
    assert choose_pair(client, config, store).batch == 3
    assert predict_survey(client, store, config).skipped == 16
    assert choose_pair(client, config).batch == CPU_BATCH
    store.predictions.set_attrs({"classifier_sha256": "another"})
    assert choose_pair(client, config, store).batch == CPU_BATCH
