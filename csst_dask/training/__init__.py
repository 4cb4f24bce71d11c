"""From a survey store with truth to a trained network."""

from csst_dask.training.finish import FitResult
from csst_dask.training.fit import fit
from csst_dask.training.samples import Samples, load_samples
from csst_dask.training.split import Split, split_by_field

__all__ = ["FitResult", "Samples", "Split", "fit", "load_samples", "split_by_field"]
