"""The main job on full-size images: files in, map out, with the shipped networks."""

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits

from csst_dask.config import Config, with_settings
from csst_dask.maps import detector_area
from csst_dask.preprocess import measure_image
from csst_dask.runners.predict import predict_survey
from csst_dask.runners.run import run_survey
from csst_dask.runners.simulate import simulate_store
from csst_dask.schema import BLOCK_STATS, FRAME_SHAPE, density_class
from csst_dask.store import SurveyStore
from csst_dask.store.dataset import open_dataset


def silent(name):
    return (lambda *chip: None), (lambda total: None)


@pytest.mark.full_size
@pytest.mark.timeout(600)
def test_images_to_map(client, tmp_path, write_exposures):
    files = write_exposures(
        tmp_path / "in", detectors=(24,), exposures=2, shape=FRAME_SHAPE, seed=11, star_counts=(0, 150_000)
    )
    config = with_settings(
        Config(),
        {
            "inputs": (tmp_path / "in",),
            "store": str(tmp_path / "survey.zarr"),
            "map.out": tmp_path / "map.zarr",
            "map.png": tmp_path / "map.png",
        },
    )
    with SurveyStore.write(config.store, config.ingest, config.mask) as store:
        summaries, sky = run_survey(client, store, config, silent)
    assert [(s.done, s.rejected, s.failed) for s in summaries.values()] == [(2, 0, 0)] * 3

    store = SurveyStore.read(config.store)
    survey = open_dataset(store)
    assert survey["image"].data.chunksize == (1, 1154, 1152)
    assert density_class(survey["n_star"].values).tolist() == [0, 5]
    image, flags = fits.getdata(files[1].image, 1), fits.getdata(files[1].flag, 1)
    np.testing.assert_array_equal(survey["image"][1].values, image)
    mask = survey["mask"][1].values
    np.testing.assert_array_equal(mask == 0, (flags == 0) & np.isfinite(image))
    again = measure_image(image, mask)
    assert survey["n_valid"].values[1] == again.n_valid == (mask == 0).sum()
    block_stats = survey["block_stats"][1].values
    assert block_stats.shape == (len(BLOCK_STATS), 224, 224)
    np.testing.assert_allclose(block_stats, again.maps.astype(np.float32), rtol=1e-4, atol=1e-4)
    assert survey["sky_sigma"].values[1] == again.sky_sigma

    predictions = store.predictions.scalars()
    np.testing.assert_allclose(predictions["class_probability"].sum("density_level"), 1, rtol=1e-5)
    bypassed = predictions["density_class"].values == 5
    np.testing.assert_array_equal(np.isnan(predictions["bright_count"].values), bypassed)
    assert abs(predictions["density_class"].values - [0, 5]).max() <= 1  # an empty and a crowded field are told apart

    shares = survey["n_valid"].values / np.prod(FRAME_SHAPE)
    corners = zip(survey["corner_ra"].values, survey["corner_dec"].values, strict=True)
    area = sum(share * detector_area(*corner) for share, corner in zip(shares, corners, strict=True))
    assert float(sky["visit_area"].sum()) == pytest.approx(area, rel=1e-6)
    assert (tmp_path / "map.png").exists()

    before = xr.open_zarr(tmp_path / "map.zarr", consolidated=False).load()
    with SurveyStore.write(config.store, config.ingest, config.mask) as store:
        summaries, _ = run_survey(client, store, config, silent)
    assert [summaries[name].done for name in ("ingest", "predict")] == [0, 0]
    xr.testing.assert_identical(before, xr.open_zarr(tmp_path / "map.zarr", consolidated=False).load())


@pytest.mark.full_size
@pytest.mark.timeout(600)
def test_rounded_pixels_tell_the_networks_the_same(client, tmp_path):
    found = {}
    for pixels in ("none", "quantised"):
        path, settings = str(tmp_path / f"{pixels}.zarr"), {"region": "demo", "detectors": (9, 24), "exposures": 3}
        config = with_settings(Config(), {"simulation": settings, "ingest.pixels": pixels})
        with SurveyStore.write(path, config.ingest, config.mask, keep_mask=pixels != "none") as store:
            assert simulate_store(client, store, config).done == 6
            assert predict_survey(client, store, config).done == 6
            found[pixels] = store.predictions.scalars(), store.scalars(("sky_level", "sky_sigma"))
    (exact, sky), (rounded, moved) = found["none"], found["quantised"]
    np.testing.assert_array_equal(rounded["density_class"], exact["density_class"])
    sigma = sky["sky_sigma"].values
    np.testing.assert_allclose(moved["sky_sigma"], sigma, rtol=0.004)
    np.testing.assert_array_less(np.abs(moved["sky_level"] - sky["sky_level"]), 0.003 * sigma)
    counts = [np.log10(1 + one["bright_count"].values) for one in (exact, rounded)]
    np.testing.assert_allclose(counts[1], counts[0], atol=0.03)
