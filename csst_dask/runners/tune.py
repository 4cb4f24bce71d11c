"""Search for the rates and loss weights of a recipe with Optuna: trials are tasks, the study is a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Client

from csst_dask.config import Config, TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.runners.window import Failure, Task, run_tasks

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


def searched(task: str, config: TrainingConfig) -> tuple[str, ...]:
    """Keys of `SPACE` that matter to a task: loss weights to the paper's regressor, layers to a pretrained one."""
    names = [name for name in SPACE if name not in (*OF_LOSS, *OF_LAYERS)]
    if task == "regressor" and config.recipe == "paper":
        names += OF_LOSS
        if config.pretrained is not None:
            names += OF_LAYERS
    return tuple(names)


def tune_network(
    client: Client,
    task: str,
    store: str,
    trials: int,
    out: Path,
    config: Config,
    progress: Callable[[str, str, str], None] | None = None,
    expect: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Run trials until there are as many as asked for; called again it goes on.

    Every trial trains on the training chips and is judged by its score on the validation chips; one that is behind the
    median of the others at the same epoch is pruned (Akiba et al. 2019, KDD, 2623).

    Parameters
    ----------
    client : distributed.Client
    task : str
        ``classifier`` or ``regressor``.
    store : str
        Survey store with truth; all workers see it, and ``out``.
    trials : int
        Finished or pruned trials in the end.
    out : Path
        Receives ``study.log`` (the study), ``best.yaml`` (a configuration) and the inputs that trials share.
    config : Config
        Section ``training``: what is not searched.
    progress, expect : callable, optional
        Called once per trial, and with the number of trials.

    Returns
    -------
    dict
        ``score`` (accuracy, or mean absolute error in dex), ``settings``, ``trials``, ``pruned`` and ``failed``.

    Raises
    ------
    ConfigError
        If Optuna is missing, the study is of another task or recipe, or no trial finished.
    """
    import yaml

    from csst_dask.models.files import write_atomically

    study = _study(out, task, config.training)
    _bury(study)
    left = max(0, trials - len(_ended(study)))
    if expect:
        expect(left)
    spec = (task, str(Path(store).resolve()), str(out), config.training.model_dump(mode="json"))
    if left:
        client.submit(share_inputs, *spec, pure=False).result()
    tasks = (Task(f"trial-{k}", spec) for k in range(left))
    failed = 0
    for unit, result in run_tasks(client, "tune", run_trial, tasks):
        failed += isinstance(result, Failure)
        if progress:
            bad = isinstance(result, Failure)
            progress(unit.name, "failed" if bad else "done", result.reason if isinstance(result, Failure) else "")
    done = [trial for trial in _ended(study) if trial.value is not None and trial.state.name == "COMPLETE"]
    if not done:
        raise ConfigError(f"none of the trials in {out} finished; the reasons are above, choose another folder")
    best = settings_of(study.best_trial.params, config.training)
    write_atomically(out / "best.yaml", yaml.safe_dump({"training": best}, sort_keys=False).encode())
    pruned = sum(trial.state.name == "PRUNED" for trial in _ended(study))
    return {
        "score": study.best_value,
        "settings": best,
        "trials": len(_ended(study)),
        "pruned": pruned,
        "failed": failed,
    }


def settings_of(params: dict[str, float], config: TrainingConfig) -> dict[str, Any]:
    """Fields of the ``training`` section for the parameters of a trial."""
    found: dict[str, Any] = {name: value for name, value in params.items() if name not in OF_LAYERS}
    if OF_LAYERS[0] in params:
        found["layer_rates"] = [config.layer_rates[0], params[OF_LAYERS[0]], params[OF_LAYERS[1]]]
    return found


def share_inputs(task: str, store: str, out: str, settings: dict[str, Any]) -> None:
    """Make the inputs of all trials, once."""
    from csst_dask.training.fit import make_inputs_of

    samples, split, config = _data(store, settings)
    make_inputs_of(task, samples, split, config, Path(out) / "inputs")


def run_trial(task: str, store: str, out: str, settings: dict[str, Any]) -> str:
    """One trial; its state and values are in the study's file.

    Parameters
    ----------
    task, store, out : str
    settings : dict
        Of `TrainingConfig`.

    Returns
    -------
    str
        State of the trial.
    """
    import optuna

    from csst_dask.training import fit

    samples, split, config = _data(store, settings)
    study = _study(Path(out), task, config)

    def objective(trial: optuna.Trial) -> float:
        params = {name: trial.suggest_float(name, *SPACE[name], log=True) for name in searched(task, config)}
        chosen = TrainingConfig.model_validate(settings | settings_of(params, config))

        def watch(row: dict[str, float]) -> None:
            trial.report(row["validation_score"], int(row["epoch"]))
            if trial.should_prune():
                raise optuna.TrialPruned

        folder = Path(out) / f"trial-{trial.number:04d}"
        fit(task, samples, split, chosen, folder, watch=watch, inputs=Path(out) / "inputs")
        return _best_score(folder, task)

    study.optimize(objective, n_trials=1, catch=())
    return study.trials[-1].state.name


def _best_score(folder: Path, task: str) -> float:
    import csv

    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = min(rows, key=lambda row: float(row["validation_loss"]))
    return float(best["validation_score"])


def _data(store: str, settings: dict[str, Any]) -> tuple[Any, Any, TrainingConfig]:
    from csst_dask.training import load_samples

    config = TrainingConfig.model_validate(settings)
    samples = load_samples(store, config.bands)
    return samples, samples.split(config.seed), config


def _study(out: Path, task: str, config: TrainingConfig) -> optuna.Study:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise ConfigError("tuning needs optuna, which is not installed: pip install 'csst_dask[train]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(out / "study.log")))
    name = f"{task} {config.recipe} {config.arch or 'default'} {config.epochs} epochs"
    others = [known.study_name for known in optuna.get_all_study_summaries(storage) if known.study_name != name]
    if others:
        raise ConfigError(f"{out} holds the study '{others[0]}', expected '{name}'; choose another folder")
    return optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True,
        direction="maximize" if task == "classifier" else "minimize",
        sampler=optuna.samplers.TPESampler(), pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
    )  # fmt: skip


def _bury(study: optuna.Study) -> None:
    """Trials that were running when their workers died count as failed."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)


def _ended(study: optuna.Study) -> list[Any]:
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
