"""What xarray shows of a store is all that it holds."""

import in_process
import pytest

from csst_dask.config import Config, with_settings
from csst_dask.store import SurveyStore
from csst_dask.store.dataset import open_dataset


@pytest.mark.parametrize("pixels", ["none", "lossless"])
def test_nothing_of_a_store_is_left_out(tmp_path, write_exposures, small, pixels):
    write_exposures(tmp_path / "in", detectors=(8,), exposures=1)
    path = str(tmp_path / "survey.zarr")
    in_process.ingest(path, [tmp_path / "in"], with_settings(Config(), {**small, "ingest.pixels": pixels}))
    store = SurveyStore.read(path)
    for predictions, arrays in ((False, store.arrays), (True, store.predictions.arrays)):
        found = open_dataset(store, predictions=predictions)
        assert set(arrays) <= set(found.variables)
        assert {"corner_ra", "corner_dec", "band", "obs_id"} <= set(found.coords)
        assert list(found.data_vars) == [name for name in arrays if name in found.data_vars]
        assert found.sizes["chip"] == 1
