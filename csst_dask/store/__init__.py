"""The survey store: one Zarr group for all chips."""

from csst_dask.store.survey import ChipWriter, create_survey, open_scalars, open_survey

__all__ = ["ChipWriter", "create_survey", "open_scalars", "open_survey"]
