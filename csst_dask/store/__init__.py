"""The survey store: one Zarr group for all chips, and the object that owns it."""

from csst_dask.store.create import check_usable
from csst_dask.store.location import locate
from csst_dask.store.survey import SurveyStore

__all__ = ["SurveyStore", "check_usable", "locate"]
