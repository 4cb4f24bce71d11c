"""Configuration: one frozen, strict section per stage, read from YAML before any work starts."""

from csst_dask.config.cluster import ClusterConfig, SlurmConfig
from csst_dask.config.load import Config, build_config, load_config, with_settings
from csst_dask.config.section import Section
from csst_dask.config.sections import (
    DOWNLOAD,
    EPOCHS,
    START_EPOCHS,
    ExecutionConfig,
    InferenceConfig,
    IngestConfig,
    MapConfig,
    MaskConfig,
    PaperInputs,
    RoutingConfig,
    TrainingConfig,
)
from csst_dask.config.simulation import SimulationConfig

__all__ = [
    "DOWNLOAD",
    "EPOCHS",
    "START_EPOCHS",
    "ClusterConfig",
    "Config",
    "ExecutionConfig",
    "InferenceConfig",
    "IngestConfig",
    "MapConfig",
    "MaskConfig",
    "PaperInputs",
    "RoutingConfig",
    "Section",
    "SimulationConfig",
    "SlurmConfig",
    "TrainingConfig",
    "build_config",
    "load_config",
    "with_settings",
]
