"""Training that goes on from weights: at first they answer as before, and what they know of their inputs stays."""

from dataclasses import replace

import numpy as np
import pytest
from test_training_counts import CONFIG as COUNTS
from test_training_counts import counted_samples
from test_training_fit import CONFIG, SPLIT, fit, make_samples

from csst_dask.errors import ConfigError
from csst_dask.models import load_weights
from csst_dask.models.density import ask
from csst_dask.training.cache import make_block
from csst_dask.training.recipes import task_named
from csst_dask.training.run import plan_run


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Weights of a regressor that corrects counts."""
    out = tmp_path_factory.mktemp("shipped")
    fit("regressor", counted_samples(), SPLIT, COUNTS, out, threads=1)
    return out / "regressor.safetensors"


def going_on(shipped, **settings):
    return COUNTS.model_copy(update={"start": shipped, "epochs": 3} | settings)


def answers(weights, samples, rows):
    import torch

    model = load_weights(weights)
    context = torch.from_numpy(make_block(samples, rows, model.inputs)[1])
    with torch.no_grad():
        return ask(model.module, model.metadata, None, context)["counts"].numpy()


def test_before_the_first_step_the_answers_are_those_of_the_weights(shipped, tmp_path):
    samples, rows = counted_samples(), np.arange(8)
    config = going_on(shipped, learning_rate=1e-30)
    result = fit("regressor", samples, SPLIT, config, tmp_path, threads=1)
    np.testing.assert_allclose(answers(result.weights, samples, rows), answers(shipped, samples, rows), atol=2e-3)


def test_what_is_new_is_learned_and_what_is_usual_stays(shipped, tmp_path):
    samples = counted_samples()
    other = samples.counted

    def shifted(rows):
        """A camera whose direct counts are 0.3 dex too low."""
        numbers = other(rows).copy()
        numbers[:, :11] -= 0.3
        return numbers

    commissioning = replace(samples, counted=shifted)
    before = np.abs(
        answers(shipped, commissioning, SPLIT.test)[:, 6] - np.log10(1 + samples.n_bright[SPLIT.test])
    ).mean()
    result = fit("regressor", commissioning, SPLIT, going_on(shipped, epochs=60), tmp_path / "a", threads=1)
    after = np.abs(
        answers(result.weights, commissioning, SPLIT.test)[:, 6] - np.log10(1 + samples.n_bright[SPLIT.test])
    ).mean()
    assert after < before
    start, end = load_weights(shipped), load_weights(result.weights)
    for name in ("center", "spread", "whitening", "band_center"):
        np.testing.assert_array_equal(getattr(start.module, name), getattr(end.module, name), err_msg=name)
    assert end.metadata["ood_limit"] >= start.metadata["ood_limit"]
    # eight chips calibrate nothing
    assert end.metadata["residual_quantiles"] == start.metadata["residual_quantiles"]
    assert end.metadata["start"] == {"sha256": start.checksum, "chips": len(SPLIT.train)}
    assert f"learned from {len(SPLIT.train)} chips (SHA-256 `{start.checksum}`)" in result.card.read_text()


def test_a_folder_of_weights_will_do_and_the_training_is_known_by_their_content(shipped, tmp_path):
    samples = counted_samples()

    def fingerprint(config):
        return plan_run(task_named("regressor"), samples, SPLIT, config).fingerprint

    copy = tmp_path / "regressor.safetensors"
    copy.write_bytes(shipped.read_bytes())
    assert fingerprint(going_on(tmp_path)) == fingerprint(going_on(shipped)) == fingerprint(going_on(copy))
    assert fingerprint(COUNTS.model_copy(update={"epochs": 3})) != fingerprint(going_on(shipped))


def test_weights_of_another_kind_are_refused(shipped, tmp_path):
    samples = counted_samples()
    with pytest.raises(ConfigError, match=r"holds a regressor with inputs 'counts'.*expected inputs 'context'"):
        plan_run(
            task_named("regressor"), make_samples(40), SPLIT, CONFIG.model_copy(update={"start": shipped, "arch": None})
        )
    with pytest.raises(ConfigError, match="expected arch 'resnet18'"):
        plan_run(task_named("regressor"), samples, SPLIT, going_on(shipped, arch="resnet18"))
    with pytest.raises(ConfigError, match="No such file"):
        plan_run(task_named("regressor"), samples, SPLIT, going_on(tmp_path / "none.safetensors"))
    with pytest.raises(ConfigError, match="holds a regressor; expected a classifier"):
        plan_run(task_named("classifier"), samples, SPLIT, going_on(shipped))
