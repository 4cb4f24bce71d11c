"""Train one network from a survey store with truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from csst_dask.config import TrainingConfig

if TYPE_CHECKING:
    from csst_dask.training import FitResult


def train_network(
    task: str,
    store: str,
    out: Path,
    config: TrainingConfig,
    progress: Callable[[int, int, int, int, float], None] | None = None,
    command: str = "",
) -> FitResult:
    """Train in this process, on its GPU where it has one.

    Parameters
    ----------
    task : str
        ``classifier`` or ``regressor``.
    store : str
        Survey store whose chips have truth.
    out : Path
        Receives checkpoints, log, weights and model card; an interrupted training goes on from there.
    config : TrainingConfig
    progress : callable, optional
        Called with epoch, epochs, step, steps and loss.
    command : str
        How to repeat this, for the model card.

    Returns
    -------
    FitResult

    Raises
    ------
    ConfigError
        If the store has no chips to learn from, or a setting is wrong.
    """
    from csst_dask.training import fit, load_samples

    samples = load_samples(store, config.bands)
    split = samples.split(config.seed)
    data = f"{Path(store).name}: {len(samples)} chips with truth"
    return fit(task, samples, split, config, out, progress, data=data, command=command)
