"""What the model card says of a training: data, sets, network, stages and what it took."""

from __future__ import annotations

import platform
import shlex

import numpy as np
import torch
from torch import nn

from csst_dask.schema import N_CLASSES
from csst_dask.training.record import kind_of_split
from csst_dask.training.run import HOW, Run
from csst_dask.training.split import SEPARATION
from csst_dask.training.stages import GROUPS


def describe_data(run: Run, data: str = "") -> str:
    """What was learned from; ``data`` says where it comes from."""
    rows = np.concatenate([run.split.train, run.split.validation, run.split.test])
    counts = np.bincount(run.samples.density_class[rows], minlength=N_CLASSES)
    shares = ", ".join(f"{label}: {count}" for label, count in enumerate(counts))
    target = "the density class" if run.task.name == "classifier" else "log10(1 + n_bright)"
    text = f"{len(rows)} chips with truth; the target is {target}. Chips of each density class: {shares}."
    return f"{text} {data}" if data else text


def describe_split(run: Run) -> str:
    """How the chips were divided into sets."""
    parts = [
        f"{len(rows)} chips of {len(np.unique(run.samples.field[rows]))} fields {what}"
        for rows, what in (
            (run.split.train, "to learn from"),
            (run.split.validation, f"to {_choose(run)}calibrate probabilities and intervals"),
            (run.split.test, "for the scores below"),
        )
    ]
    sets = "; ".join(parts)
    if kind_of_split(run.samples, run.split, run.config.split) == "random":
        return (
            f"At random, as in the paper: {sets}. Chips of one field, or of neighbouring fields, stand in more than "
            "one set, so the scores below are of sky that the network has seen: they flatter, and serve for comparison "
            f"with published figures only. Seed {run.config.seed}."
        )
    return f"By sky field, {SEPARATION} deg apart: {sets}. No field is shared. Seed {run.config.seed}."


def _choose(run: Run) -> str:
    return "choose the epoch and " if run.recipe.schedule == "plateau" else ""


def describe_architecture(run: Run, module: nn.Module) -> str:
    """Architecture, size, and what its weights were before the first step."""
    network, parameters = run.network, sum(tensor.numel() for tensor in module.parameters())
    context = f", {network['context']} numbers of context" if network["context"] else ""
    text = (
        f"{network['arch']}, {parameters:,} parameters; inputs `{network['inputs']}`: {network['channels']} channels "
        f"of maps{context}."
    )
    if "anchors" in network:
        text += " It corrects direct counts, within bounds that these set."
    if run.start is not None:
        learned = run.start.metadata.get("training", {}).get("chips", {}).get("train", "an unknown number of")
        return f"{text} Goes on from weights that learned from {learned} chips (SHA-256 `{run.start.checksum}`)."
    if run.pretrained_file is None:
        return f"{text} Trained from scratch, from random weights of seed {run.config.seed}."
    return (
        f"{text} The backbone began with the ImageNet weights {run.pretrained_file.name} (SHA-256 "
        f"`{run.pretrained}`), the head with random ones of seed {run.config.seed}."
    )


def describe_training(run: Run, epochs: int, best: int, parts: int) -> str:
    """Recipe, stages and which epoch was kept; ``parts`` are the micro-batches of a step."""
    config, recipe = run.config, run.recipe
    early, in_parts = "", f" in {parts} parts" if parts > 1 else ""
    if recipe.schedule == "plateau":
        planned = sum(stage.epochs for stage in run.stages)
        early = f", {'stopped' if epochs < planned else 'to stop'} after {config.early_stopping_epochs} epochs without"
        early += " a better validation loss"
    lines = [
        f"Recipe `{config.recipe}`: AdamW, batches of {config.batch}{in_parts}, weight decay {config.weight_decay:g}, "
        f"gradients clipped at {config.clip:g}, schedule `{recipe.schedule}`{early}. Epochs run: {epochs}; the weights "
        f"are those of epoch {best}.",
        "",
        f"| stage | epochs at most | rate of {', '.join(GROUPS[0])} | of {', '.join(GROUPS[1])} | of the rest | sees |",
        "|---|---|---|---|---|---|",
    ]
    for number, stage in enumerate(run.stages, 1):
        rates = [f"{factor * config.learning_rate:.3g}" if factor else "frozen" for factor in stage.multipliers]
        sees = "maps" if stage.maps else "context"
        lines.append(f"| {number} | {stage.epochs} | {' | '.join(rates)} | {sees} |")
    return "\n".join(lines)


def describe_budget(run: Run, epochs: int, seconds: float | None, hardware: str = "") -> str:
    """What it took: chips, epochs, time (s; None where nobody took it) and class of the hardware."""
    took = "a time that was not recorded" if seconds is None else f"{seconds:,.0f} s"
    where = f" on {hardware}" if hardware else ""
    return (
        f"{len(run.split.train)} chips, {run.visits} visits an epoch; {epochs} epochs of {run.steps} steps in "
        f"{took}{where}, validation included and the making of inputs not."
    )


def describe_command(run: Run, parts: int) -> str:
    """How to repeat what was not started by a command."""
    import yaml  # not where only torch is

    settings = run.config.model_dump(mode="json", exclude=HOW, exclude_defaults=True)
    settings |= {"recipe": run.config.recipe, "parts": parts}
    told = yaml.safe_dump({"training": settings}, default_flow_style=True, sort_keys=True, width=10_000).strip()
    return (
        f"echo {shlex.quote(told)} > training.yaml\n"
        f"csst-dask train {run.task.name} --config training.yaml --store STORE --out DIR"
    )


def describe_hardware(device: torch.device, ranks: int = 1) -> str:
    """Class of what a training runs on."""
    if device.type == "cuda":
        return f"{ranks} x {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    each = f"{threads} {'thread' if threads == 1 else 'threads'} of {platform.machine()} cores"
    return each if ranks == 1 else f"{ranks} processes with {each}"
