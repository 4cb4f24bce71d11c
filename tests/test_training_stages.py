"""A pretrained regressor is unfrozen from its head to its first layer, and can be killed in every stage."""

import shutil
from functools import partial
from urllib.error import URLError

import pytest
import torch
from torchvision.models import resnet18

from csst_dask.config import DOWNLOAD, EPOCHS, TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.models import build_regressor, load_weights
from csst_dask.models.density import CONTEXT_PARTS, build_density_network
from csst_dask.runners.gang import train_gang
from csst_dask.training import fit as fit_anywhere
from csst_dask.training import load_samples
from csst_dask.training.rank import write_spec
from csst_dask.training.recipes import task_named
from csst_dask.training.run import plan_run
from csst_dask.training.stages import (
    Stage,
    build_optimiser,
    build_schedule,
    checksum_pretrained,
    load_pretrained,
    plan_stages,
)

fit = partial(fit_anywhere, threads=1, device="cpu")


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The file that torchvision would publish, with weights that nobody trained."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pretrained") / "resnet18.pth"
    torch.save(resnet18(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def samples(training_store):
    return load_samples(training_store)


@pytest.fixture(scope="module")
def config(pretrained):
    return TrainingConfig(
        recipe="paper", arch="resnet18", batch=128, pretrained=pretrained, stage_epochs=(1, 1, 1),
        layer_rates=(1.0, 0.3, 0.1), learning_rate=1e-3, checkpoint_minutes=1e-6,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(samples, config, tmp_path_factory):
    """An undisturbed training, and the network after each of its epochs."""
    out, states = tmp_path_factory.mktemp("whole"), []

    def watch(row):
        states.append(torch.load(out / "checkpoint.pt", weights_only=True))

    return fit("regressor", samples, samples.split(0), config, out, watch=watch), states


def moved(before, after):
    """First parts of the names of all tensors that differ; counters of batches left out."""
    return {
        ".".join(name.split(".")[:1])
        for name, tensor in after.items()
        if not name.endswith("num_batches_tracked") and not torch.equal(tensor, before[name])
    }


def test_every_stage_moves_its_layers_alone_with_their_statistics(samples, whole, config):
    """What is frozen keeps its weights and the running statistics of its normalisations, bit for bit."""
    begin = build_regressor("resnet18", 2)
    load_pretrained(begin, config.pretrained)
    states = [state["module"] for state in whole[1]]
    body = {name: tensor for name, tensor in begin.state_dict().items() if not name.startswith("fc.")}
    assert len(states) == 3
    assert moved(body, {name: states[0][name] for name in body}) == set()
    assert moved(states[0], states[1]) == {"layer4", "fc"}
    assert moved(states[1], states[2]) == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}
    for name in ("bn1.running_mean", "layer3.0.bn1.running_var"):
        assert torch.equal(states[1][name], body[name])
        assert not torch.equal(states[2][name], body[name])


def test_layers_learn_at_their_own_rates(whole):
    groups = [state["optimiser"]["param_groups"] for state in whole[1]]
    rates = [[group["lr"] for group in stage] for stage in groups]
    assert rates == [pytest.approx(expected) for expected in ([1e-3], [1e-3, 3e-4], [1e-3, 3e-4, 1e-4])]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_killed_in_any_stage_it_ends_as_if_undisturbed(samples, config, whole, tmp_path, stage):
    def kill(epoch, epochs, step, steps, loss):
        assert epochs == 3
        if (epoch, step) == (stage, 2):
            raise Killed

    with pytest.raises(Killed):
        fit("regressor", samples, samples.split(0), config, tmp_path, kill)
    calls = []
    result = fit("regressor", samples, samples.split(0), config, tmp_path, lambda *call: calls.append(call))
    assert calls[0][:3:2] == (stage, 2)  # goes on within the epoch
    assert result.weights.read_bytes() == whole[0].weights.read_bytes()


def test_two_ranks_take_the_steps_of_one_in_every_stage(client, training_store, samples, config, tmp_path):
    """With dropout and jitter; the stages freeze parameters, so that the ranks have less to tell each other."""
    both = config.model_copy(update={"parts": 2, "timeout": 10.0})
    alone = fit("regressor", samples, samples.split(0), both, tmp_path / "alone", threads=1)
    spec = write_spec(
        tmp_path / "rank.json", task="regressor", store=training_store, out=str(tmp_path / "two"), data="", command="",
        config=both.model_dump(mode="json"), parts=2,
    )  # fmt: skip
    train_gang(client, spec, 2, both.timeout, 0)
    found = alone.weights, tmp_path / "two" / "regressor.safetensors"
    one, two = (load_weights(path, "regressor").module.state_dict() for path in found)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_the_first_convolution_answers_to_equal_channels_as_to_grey(pretrained):
    """Channels that are all alike are a grey picture: the sum over the channels of a kernel stays."""
    colours, channels = resnet18(weights=None), build_regressor("resnet18", 5)
    colours.load_state_dict(torch.load(pretrained, weights_only=True))
    load_pretrained(channels, pretrained)
    grey = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = colours.conv1(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(channels.conv1(grey.expand(-1, 5, -1, -1)), expected, rtol=1e-4, atol=1e-5)


def test_stages_follow_the_configuration(config):
    assert plan_stages(TrainingConfig(pretrained="file"), "layers") == (
        Stage(30, (1.0, 0.0, 0.0)), Stage(40, (1.0, 0.3, 0.0)), Stage(70, (1.0, 0.3, 0.1)),
    )  # fmt: skip
    assert plan_stages(TrainingConfig(epochs=7), "layers") == (Stage(7),)
    assert plan_stages(config, "") == (Stage(EPOCHS),)


def test_what_answers_without_maps_learns_first():
    first, then = plan_stages(TrainingConfig(context_epochs=5, epochs=7), "context")
    assert (first.epochs, first.maps, then.epochs, then.maps) == (5, False, 7, True)
    assert plan_stages(TrainingConfig(context_epochs=0, epochs=7), "context") == (Stage(7),)
    assert plan_stages(TrainingConfig(context_epochs=0), "context") == (Stage(EPOCHS),)
    assert plan_stages(TrainingConfig(context_epochs=5), "context", maps=False) == (first,)
    alone = plan_stages(TrainingConfig(context_epochs=5, epochs=7), "context", maps=False)
    assert alone == (Stage(7, first.multipliers, maps=False),)
    module = build_density_network("resnet18", 4, 12, 0)
    build_optimiser(module, first, TrainingConfig())
    learning = {name.split(".")[0] for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert learning == set(CONTEXT_PARTS)
    build_optimiser(module, then, TrainingConfig())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_the_plateau_schedule_halves_every_rate_when_the_loss_rests(config):
    optimiser = build_optimiser(build_regressor("resnet18", 2), Stage(1, (1.0, 0.3, 0.1)), config)
    schedule = build_schedule("plateau", optimiser, steps=10, patience=6)
    for loss in (1.0, 0.9, 0.9, 0.9, 0.9):  # three epochs without a better loss: more than a third of the patience
        schedule.step(loss)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([5e-4, 1.5e-4, 5e-5])


def test_the_cosine_schedule_climbs_and_ends_at_a_hundredth():
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = build_schedule("cosine", optimiser, steps=200, patience=1), []
    for _ in range(201):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert rates[:10] == pytest.approx([0.1 * (k + 1) for k in range(10)])
    assert rates[10] == 1.0
    assert rates[105] == pytest.approx(0.505)  # half way down
    assert rates[-1] == pytest.approx(0.01)


@pytest.mark.parametrize(("task", "recipe"), [("classifier", "paper"), ("regressor", "csst"), ("classifier", "csst")])
def test_pretrained_weights_are_for_the_regressor_of_the_paper(samples, config, task, recipe):
    with pytest.raises(ConfigError, match=r"leave training\.pretrained out"):
        plan_run(task_named(task), samples, samples.split(0), config.model_copy(update={"recipe": recipe}))


@pytest.mark.parametrize("inputs", ["paper-point", "paper-area"])
def test_the_paper_may_resize_in_two_ways(samples, config, inputs):
    def plan(**update):
        plain = {"pretrained": None, "inputs": inputs}
        return plan_run(task_named("classifier"), samples, samples.split(0), config.model_copy(update=plain | update))

    assert plan().inputs == inputs
    assert plan(inputs=None).inputs == "paper-point"
    other = {"paper-point": "paper-area", "paper-area": "paper-point"}[inputs]
    assert plan().fingerprint != plan(inputs=other).fingerprint
    assert plan().inputs_key != plan(inputs=other).inputs_key
    with pytest.raises(ConfigError, match=rf"found {inputs} for the recipe csst: leave training\.inputs out"):
        plan(recipe="csst")


def test_files_that_cannot_be_used_are_told(samples, config, pretrained, tmp_path):
    missing = config.model_copy(update={"pretrained": tmp_path / "none.pth"})
    with pytest.raises(ConfigError, match=r"none\.pth.*No such file"):
        fit("regressor", samples, samples.split(0), missing, tmp_path / "out")
    (tmp_path / "broken.pth").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="torchvision network"):
        load_pretrained(build_regressor("resnet18", 2), tmp_path / "broken.pth")
    with pytest.raises(ConfigError, match=r"architecture of training\.arch"):
        load_pretrained(build_regressor("resnet50", 2), pretrained)


def test_a_training_is_known_by_the_content_of_the_file_and_by_what_it_learns_from(samples, config, tmp_path):
    def fingerprint(task="regressor", **update):
        found = config.model_copy(update=update)
        return plan_run(task_named(task), samples, samples.split(0), found).fingerprint

    copy, other = tmp_path / "copy.pth", tmp_path / "other.pth"
    copy.write_bytes(config.pretrained.read_bytes())
    state = torch.load(copy, weights_only=True)
    torch.save(state | {"conv1.weight": state["conv1.weight"] + 1}, other)
    assert fingerprint(pretrained=copy) == fingerprint()
    assert fingerprint(pretrained=other) != fingerprint()
    assert fingerprint(ranks=2, timeout=5.0) == fingerprint()
    assert fingerprint(batch=32) != fingerprint()
    plain = {"pretrained": None, "recipe": "csst"}
    assert fingerprint(**plain) != fingerprint("classifier", **plain)


def test_a_finished_training_asks_for_no_pretrained_file_but_knows_another_one(samples, config, whole, tmp_path):
    result, out = whole[0], whole[0].weights.parent
    text = result.card.read_text()
    assert f"ImageNet weights {config.pretrained.name}" in text
    assert "| 3 | 1 | 0.001 | 0.0003 | 0.0001 | maps |" in text
    gone = config.model_copy(update={"pretrained": tmp_path / "gone.pth"})
    assert fit("regressor", samples, samples.split(0), gone, out) == result
    with pytest.raises(ConfigError, match=r"cannot read .*gone\.pth"):
        fit("regressor", samples, samples.split(0), gone, tmp_path / "new")
    torch.save({}, tmp_path / "gone.pth")
    with pytest.raises(
        ConfigError,
        match=f"pretrained was {checksum_pretrained(config.pretrained)}, is {checksum_pretrained(gone.pretrained)}",
    ):
        fit("regressor", samples, samples.split(0), gone, out)


def test_downloaded_weights_are_those_of_the_file_and_are_fetched_once(samples, config, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    wanted, asked = config.model_copy(update={"pretrained": DOWNLOAD}), []

    def download(url, path, *_, **__):
        asked.append(url)
        shutil.copy(config.pretrained, path)

    def offline(url, *_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    out = whole[0].weights.parent
    assert fit("regressor", samples, samples.split(0), wanted, out) == whole[0]  # finished: nothing is fetched
    with pytest.raises(ConfigError, match=r"cannot fetch .*resnet18.*no route to host.*from scratch"):
        fit("regressor", samples, samples.split(0), wanted, tmp_path / "new")
    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    run = plan_run(task_named("regressor"), samples, samples.split(0), config)
    for _ in range(2):
        again = plan_run(task_named("regressor"), samples, samples.split(0), wanted)
        assert again.fingerprint == run.fingerprint
    assert len(asked) == 1
    assert asked[0].startswith("https://download.pytorch.org/models/resnet18-")
