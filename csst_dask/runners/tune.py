"""Search for the rates and loss weights of a recipe with Optuna: trials are tasks, the study is a file."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from distributed import Client, get_worker

from csst_dask.config import Config, ExecutionConfig, TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.runners.cluster import known_workers
from csst_dask.runners.faults import Failure, TaskFailed
from csst_dask.runners.window import Task, run_tasks
from csst_dask.store.location import locate_all
from csst_dask.training.study import JOURNAL, Search, count_states, create_study, fail_orphans, open_study, trial_folder

if TYPE_CHECKING:
    import optuna

SPACE: dict[str, tuple[float, float]] = {
    "learning_rate": (1e-5, 1e-2),
    "weight_decay": (1e-4, 1e-1),
    "mse_weight": (0.1, 10.0),
    "mae_weight": (0.1, 10.0),
    "relative_weight": (0.01, 1.0),
    "layer_rate_last": (0.03, 1.0),
    "layer_rate_rest": (0.003, 1.0),
}
"""Settings and their ranges, all searched on a logarithmic scale; the last two are `TrainingConfig.layer_rates`."""

OF_LOSS = ("mse_weight", "mae_weight", "relative_weight")
OF_LAYERS = ("layer_rate_last", "layer_rate_rest")

_one_at_a_time = threading.Lock()
"""Torch's generators and number of threads belong to the process, so a worker trains one trial at a time."""


def search_space(task: str, config: TrainingConfig) -> dict[str, tuple[float, float]]:
    """What of `SPACE` matters to a task: loss weights to the paper's regressor, layers to a pretrained one."""
    names = [name for name in SPACE if name not in (*OF_LOSS, *OF_LAYERS)]
    if task == "regressor" and config.recipe == "paper":
        names += OF_LOSS
        if config.pretrained is not None:
            names += OF_LAYERS
    return {name: SPACE[name] for name in names}


def settings_of(params: dict[str, float], config: TrainingConfig) -> dict[str, Any]:
    """Fields of the ``training`` section for the parameters of a trial."""
    found: dict[str, Any] = {name: value for name, value in params.items() if name not in OF_LAYERS}
    if OF_LAYERS[0] in params:
        found["layer_rates"] = [config.layer_rates[0], params[OF_LAYERS[0]], params[OF_LAYERS[1]]]
    return found


def tune_network(
    client: Client,
    task: str,
    store: str | Sequence[str],
    trials: int,
    out: Path,
    config: Config,
    progress: Callable[[str, str, str], None] | None = None,
    expect: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Run trials until there are as many as asked for; called again it goes on.

    Every trial trains on the training chips and is judged by its score on the validation chips; one that is behind the
    median of the others at the same epoch is pruned (Akiba et al. 2019, KDD, 2623), and so is one whose loss diverges.
    Trials that fail are replaced by others, as long as not all of them fail. Those that were running when their client
    or worker died count as failed, and their parameters are tried again. On one worker, a search draws the
    same trials again for the same ``training.seed``.

    Parameters
    ----------
    client : distributed.Client
    task : str
        ``classifier`` or ``regressor``.
    store : str or sequence of str
        Survey stores with truth; all workers see them, and ``out``.
    trials : int
        Finished or pruned trials in the end, those of earlier calls included.
    out : Path
        Receives `JOURNAL`, ``best.yaml`` (a configuration that repeats the best trial) and the inputs that trials
        share. For one call at a time.
    config : Config
        Section ``training``: what is not searched; ``execution``, but that a trial may take as long as it likes.
    progress, expect : callable, optional
        Called with name, state and reason of each trial, and with the number of trials.

    Returns
    -------
    dict
        ``score`` (accuracy, or mean absolute error in dex) and ``settings`` of the best trial; ``trials`` that finished
        or were pruned, ``pruned`` and ``failed`` ones of the study.

    Raises
    ------
    ConfigError
        If Optuna is missing, a setting is wrong, the folder holds another study, or no trial finished.
    RunEnded
        If the cluster is lost, the run is asked to stop, no worker can read the stores, or trials only fail.
    """
    settings = config.training.model_dump(mode="json")
    if isinstance(config.training.pretrained, Path):
        settings["pretrained"] = str(config.training.pretrained.resolve())
    stores, out = locate_all(store), Path(out).resolve()
    identity = _ask(client, config, identify, task, stores, settings)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    search = Search(task, stores, str(out), settings, f"{task}-{digest[:16]}", uuid.uuid4().hex)
    study = create_study(search, identity)
    fail_orphans(study, out)
    ended, tried, why = count_states(study)["ended"], 0, ""
    if ended < trials:
        _ask(client, config, prepare, search)
    while ended < trials:
        left, first, before = trials - ended, len(study.trials), ended
        tried += left
        if expect:
            expect(tried)
        tasks = (Task(f"trial-{k}", (search, k, _workers_by_host(client))) for k in range(first, first + left))
        for unit, result in run_tasks(client, "tune", run_trial, tasks, _limits(config)):
            state, reason = ("failed", result.reason) if isinstance(result, Failure) else result
            why = reason if state == "failed" else why
            if progress:
                progress(unit.name, state, reason)
        fail_orphans(study, out)
        ended = count_states(study)["ended"]
        if ended == before:
            break
    found = _conclude(study, search, identity["arch"])
    if ended < trials:
        raise TaskFailed(
            f"found {ended} trials that finished or were pruned, expected {trials}: the last {left} failed ({why}); "
            f"mend that and call it again, or take {out / 'best.yaml'} as it is"
        )
    return found


def _limits(config: Config) -> ExecutionConfig:
    return config.execution.model_copy(update={"time_limit": None})


def _ask(client: Client, config: Config, function: Callable[..., Any], *args: Any) -> Any:
    """What a worker says; workers may still have to come."""
    task = Task(function.__name__, args)
    [(_, found)] = run_tasks(client, "tune", function, [task], _limits(config))
    if isinstance(found, Failure):
        raise TaskFailed(f"no trial can start: {found.reason}")
    return found


def _conclude(study: optuna.Study, search: Search, arch: str) -> dict[str, Any]:
    """Write the best settings and count the trials."""
    import yaml

    from csst_dask.outputs import write_atomically
    from csst_dask.training.run import HOW

    states = count_states(study)
    if not states["COMPLETE"]:
        raise ConfigError(
            f"none of the trials in {search.out} finished ({states['PRUNED']} pruned, {states['FAIL']} failed, for the "
            "reasons above); change the settings and choose another folder, or ask for more trials"
        )
    found = settings_of(study.best_trial.params, search.config)
    whole = search.config.model_dump(mode="json", exclude=HOW, exclude_none=True) | {"arch": arch} | found
    said = f"# {search.task}, trial {study.best_trial.number} of {JOURNAL}: validation score {study.best_value:.6g}\n"
    text = said + yaml.safe_dump({"training": whole}, sort_keys=False)
    write_atomically(Path(search.out) / "best.yaml", text.encode())
    counts = {"trials": states["ended"], "pruned": states["PRUNED"], "failed": states["FAIL"]}
    return {"score": study.best_value, "settings": found} | counts


def identify(task: str, stores: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """What makes a study what it is: task, chips and every setting that is fixed; runs on a worker."""
    run, config = _plan(task, stores, settings), TrainingConfig.model_validate(settings)
    space = search_space(task, config)
    fixed = {name: value for name, value in run.settings.items() if name not in space}
    if OF_LAYERS[0] in space:
        fixed["layer_rates"] = fixed["layer_rates"][:1]
    return {"chips": run.inputs_key, "parts": config.parts} | fixed


def prepare(search: Search) -> None:
    """See that the network can be built, and make the inputs that trials share; runs on a worker."""
    from csst_dask.training.cache import InputCache

    run = _plan(search.task, search.stores, search.settings)
    folder = Path(search.out) / "inputs" / run.inputs_key
    run.draw()
    InputCache.fill(folder, run.samples, run.visited, run.inputs)


def run_trial(search: Search, place: int, workers: dict[str, int]) -> tuple[str, str]:
    """One trial, on a worker; its state and values are in the study.

    What goes wrong is part of the answer, so that the cluster does not repeat a trial that has failed.

    Parameters
    ----------
    search : Search
    place : int
        Of the trial among all; the sampler's seed follows from it.
    workers : dict of str to int
        Workers by host, which share the cores of the host.

    Returns
    -------
    state : str
        ``done``, ``pruned`` or ``failed``.
    reason : str
        Why, if it was not done.
    """
    import optuna
    from optuna.trial import TrialState

    from csst_dask.training.losses import Diverged

    unit = f"{search.call} {place}"
    with _one_at_a_time:
        study = open_study(search, place)
        earlier = [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("unit") == unit]
        fail_orphans(study, Path(search.out), earlier)  # of a worker that died
        trial = study.ask()
        trial.set_user_attr("unit", unit)
        try:
            value = _train(search, trial, _threads(workers))
        except (optuna.TrialPruned, Diverged) as reason:
            study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            return "pruned", str(reason)
        except Exception as error:
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            return "failed", f"{type(error).__name__}: {error}"
        study.tell(trial, value, skip_if_finished=True)
        return "done", ""


def _train(search: Search, trial: optuna.Trial, threads: int) -> float:
    """Validation score of the epoch that a training with these parameters keeps."""
    import optuna

    from csst_dask.training import fit
    from csst_dask.training.losses import Diverged

    space = search_space(search.task, search.config)
    params = {name: trial.suggest_float(name, *limits, log=True) for name, limits in space.items()}
    config = TrainingConfig.model_validate(search.settings | settings_of(params, search.config))
    rows: list[dict[str, float]] = []

    def watch(row: dict[str, float]) -> None:
        rows.append(row)
        trial.report(row["validation_score"], int(row["epoch"]))
        if trial.should_prune():
            raise optuna.TrialPruned(f"behind the median after epoch {row['epoch']:.0f}")

    def progress(epoch: int, epochs: int, step: int, steps: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} in epoch {epoch}")

    samples, split = _data(search.stores, config)
    folder, inputs = Path(search.out) / trial_folder(trial.number), Path(search.out) / "inputs"
    try:
        result = fit(search.task, samples, split, config, folder, progress, threads=threads, watch=watch, inputs=inputs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows[result.best_epoch - 1]["validation_score"]


def _data(stores: list[str], config: TrainingConfig) -> tuple[Any, Any]:
    from csst_dask.training import load_samples

    samples = load_samples(stores, config.bands)
    return samples, samples.split(config.seed, config.split, config.chips)


def _plan(task: str, stores: list[str], settings: dict[str, Any]) -> Any:
    from csst_dask.training.recipes import task_named
    from csst_dask.training.run import plan_run

    config = TrainingConfig.model_validate(settings)
    return plan_run(task_named(task), *_data(stores, config), config)


def _workers_by_host(client: Client) -> dict[str, int]:
    known = known_workers(client)
    return dict(Counter(str(urlparse(address).hostname) for address in known))


def _threads(workers: dict[str, int]) -> int:
    """Threads of a trial: what its worker was given, or its share of the host's cores if that is more.

    Where there is no worker, on its own, the share is that of the fullest host.
    """
    from dask.system import CPU_COUNT

    try:
        worker = get_worker()
    except ValueError:  # in a process of its own
        return max(1, CPU_COUNT // max(workers.values(), default=1))
    host = str(urlparse(worker.address).hostname)
    return max(worker.state.nthreads, CPU_COUNT // workers.get(host, 1))
