"""A whole configuration: from YAML or plain values to frozen sections, with one clear error."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import ValidationError

from csst_dask.config.cluster import ClusterConfig
from csst_dask.config.section import LocalPath, Section, section_in
from csst_dask.config.sections import (
    DOWNLOAD,
    ExecutionConfig,
    InferenceConfig,
    IngestConfig,
    MapConfig,
    MaskConfig,
    RoutingConfig,
    TrainingConfig,
)
from csst_dask.config.simulation import SimulationConfig
from csst_dask.errors import ConfigError
from csst_dask.outputs import is_url

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class Config(Section):
    """A whole run, as one YAML file."""

    inputs: tuple[LocalPath, ...] = ()
    """FITS files, or folders that are searched recursively."""
    store: str | None = None
    """Survey store: a folder or a URL."""
    cluster: ClusterConfig = ClusterConfig()
    execution: ExecutionConfig = ExecutionConfig()
    simulation: SimulationConfig = SimulationConfig()
    mask: MaskConfig = MaskConfig()
    ingest: IngestConfig = IngestConfig()
    inference: InferenceConfig = InferenceConfig()
    routing: RoutingConfig = RoutingConfig()
    map: MapConfig = MapConfig()
    training: TrainingConfig = TrainingConfig()


def build_config(data: dict, source: str = "configuration") -> Config:
    """Validate nested settings.

    Parameters
    ----------
    data : dict
        Sections of `Config`, as plain values.
    source : str
        Where they come from, for the error.

    Returns
    -------
    Config

    Raises
    ------
    ConfigError
        Names every field that is wrong, what was found and what was expected.
    """
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in item['loc']) or '(whole)'}: {_expected(item)}"
            + (f" (found {item['input']!r})" if not isinstance(item["input"], dict) else "")
            for item in error.errors()
        ]
        raise ConfigError(f"{source} is not valid:\n" + "\n".join(lines)) from None


def _expected(item: ErrorDetails) -> str:
    """What is wrong with a field, and what there could be."""
    if item["type"] != "extra_forbidden":
        return item["msg"].removeprefix("Value error, ")
    *sections, name = (str(part) for part in item["loc"])
    place: type[Section] = Config
    for section in sections:
        place = section_in(place.model_fields[section].annotation) or place
    names = list(place.model_fields)
    close = get_close_matches(name, names, n=1)
    return "there is no such setting; " + (
        f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}"
    )


def with_settings(config: Config, settings: dict[str, object], source: str = "options") -> Config:
    """Change some fields of a configuration.

    Parameters
    ----------
    config : Config
    settings : dict
        Values by dotted name, such as ``{"map.nside": 512}``; None leaves a field alone.
    source : str
        Where they come from, for the error.

    Returns
    -------
    Config

    Raises
    ------
    ConfigError
        If a value or a name is wrong.
    """
    data = config.model_dump()
    for name, value in settings.items():
        if value is not None:
            *sections, field = name.split(".")
            place = data
            for section in sections:
                if not isinstance(place.get(section), dict):
                    raise ConfigError(f"{source} is not valid:\n  {name}: there is no section {section!r}")
                place = place[section]
            place[field] = value
    return build_config(data, source)


def load_config(path: str | Path | None) -> Config:
    """Read a YAML configuration.

    Parameters
    ----------
    path : path or None
        None gives the defaults. Relative paths inside the file are taken from the folder of the file.

    Returns
    -------
    Config

    Raises
    ------
    ConfigError
        If the file cannot be read, is not YAML or holds a wrong or unknown field.
    """
    if path is None:
        return Config()
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}; expected a mapping of sections such as 'store:'")
    return _anchor_paths(build_config(data, str(path)), path.resolve().parent)


def _anchor_store(store: str, folder: Path) -> str:
    return store if is_url(store) else str(folder / Path(store).expanduser())


def _anchor_paths(config: Config, folder: Path) -> Config:
    def anchor(value: Path | None) -> Path | None:
        return None if value is None else folder / value.expanduser()

    def anchored(section: Section, *names: str) -> dict:
        values = {name: anchor(getattr(section, name)) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    slurm = config.cluster.slurm
    return config.model_copy(
        update={
            "inputs": tuple(anchor(path) or path for path in config.inputs),
            "store": None if config.store is None else _anchor_store(config.store, folder),
            "cluster": config.cluster.model_copy(
                update=anchored(config.cluster, "scheduler_file")
                | ({"slurm": slurm.model_copy(update=anchored(slurm, "log_directory"))} if slurm else {})
            ),
            "inference": config.inference.model_copy(update=anchored(config.inference, "weights")),
            "simulation": config.simulation.model_copy(
                update=anchored(config.simulation, "psf")
                | {"avoid": tuple(folder / path.expanduser() for path in config.simulation.avoid)}
            ),
            "execution": config.execution.model_copy(update=anchored(config.execution, "report")),
            "training": config.training.model_copy(
                update={} if config.training.pretrained == DOWNLOAD else anchored(config.training, "pretrained")
            ),
            "map": config.map.model_copy(update=anchored(config.map, "out", "png", "fits", "moc")),
        }
    )
