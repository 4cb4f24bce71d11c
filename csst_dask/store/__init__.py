"""The survey store: one Zarr group for all chips."""

from csst_dask.store.survey import create_survey, open_scalars, open_survey
from csst_dask.store.writer import ChipWriter

__all__ = ["ChipWriter", "create_survey", "open_scalars", "open_survey"]
