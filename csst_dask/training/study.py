"""The study of a search: a file in Optuna's journal format, which any number of workers append to."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csst_dask.config import TrainingConfig
from csst_dask.errors import ConfigError

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.log"
"""File of the study, in Optuna's journal format."""


@dataclass(frozen=True)
class Search:
    """What every trial is told; travels to the workers."""

    task: str
    stores: list[str]
    out: str
    settings: dict[str, Any]
    """Of `TrainingConfig`: what is not searched."""
    study: str
    """Name of the study in the journal."""
    call: str
    """Tells the trials of this call from those of calls that died."""

    @property
    def config(self) -> TrainingConfig:
        """The settings, validated."""
        return TrainingConfig.model_validate(self.settings)


def create_study(search: Search, identity: dict[str, Any]) -> optuna.Study:
    """The study of a folder, made if there is none.

    Parameters
    ----------
    search : Search
    identity : dict
        From `identify`; kept with the study.

    Returns
    -------
    optuna.Study

    Raises
    ------
    ConfigError
        If Optuna is missing, or the folder holds another study.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("tuning needs optuna, which is not installed: pip install 'csst_dask[train]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Path(search.out).mkdir(parents=True, exist_ok=True)
    _drop_torn_line(Path(search.out) / JOURNAL)
    storage = _storage(search)
    for known in optuna.get_all_study_summaries(storage, include_best_trial=False):
        other = known.user_attrs.get("identity", {})
        if known.study_name != search.study:
            names = [name for name in identity if other.get(name) != identity[name]]
            differs = "; ".join(f"{name} {other.get(name)!r}, expected {identity[name]!r}" for name in names)
            raise ConfigError(f"{search.out} holds another study ({differs}); choose another folder")
    study = optuna.create_study(
        storage=storage, study_name=search.study, load_if_exists=True,
        direction="maximize" if search.task == "classifier" else "minimize",
    )  # fmt: skip
    study.set_user_attr("identity", identity)
    return study


def open_study(search: Search, place: int) -> optuna.Study:
    """The study, with the sampler of one trial: it knows what runs elsewhere, and draws from a generator of its own."""
    import numpy as np
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = int(np.random.SeedSequence((search.config.seed, place)).generate_state(1)[0])
    return optuna.load_study(
        storage=_storage(search), study_name=search.study,
        sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=_unjudged(search)),
    )  # fmt: skip


def _unjudged(search: Search) -> int:
    """Epochs in which trials cannot be told apart yet: a third of all, and all before the last stage of several.

    Rates climb at first, and those of layers mean nothing as long as the layers are frozen.
    """
    from csst_dask.training.recipes import RECIPES, describe_network, task_named
    from csst_dask.training.stages import plan_stages

    maps = bool(describe_network(task_named(search.task), search.config)["channels"])
    epochs = [stage.epochs for stage in plan_stages(search.config, RECIPES[search.config.recipe].staged, maps)]
    return max(sum(epochs) // 3, sum(epochs[:-1]))


def _storage(search: Search) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(Path(search.out) / JOURNAL)))


def _drop_torn_line(journal: Path) -> None:
    """Cut off a last line that a full disk left unfinished: the next one would be glued to it and spoil the study."""
    from optuna.storages.journal import JournalFileSymlinkLock

    if journal.exists():
        lock = JournalFileSymlinkLock(str(journal))
        lock.acquire()
        try:
            data = journal.read_bytes()
            os.truncate(journal, data.rfind(b"\n") + 1)
        finally:
            lock.release()


def fail_orphans(study: optuna.Study, out: Path, trials: Iterable[Any] | None = None) -> None:
    """Let running trials (by default all) that nobody runs any more fail, and put their parameters first in the queue.

    If somebody does, they end with their next epoch: a trial that is over takes no reports.
    """
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False) if trials is None else trials:
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            shutil.rmtree(out / trial_folder(trial.number), ignore_errors=True)
            if trial.params:
                study.enqueue_trial(trial.params)


def count_states(study: optuna.Study) -> Counter[str]:
    """Trials by state, and ``ended`` ones: finished or pruned."""
    counts = Counter(trial.state.name for trial in study.get_trials(deepcopy=False))
    counts["ended"] = counts["COMPLETE"] + counts["PRUNED"]
    return counts


def trial_folder(number: int) -> str:
    return f"trial-{number:04d}"
