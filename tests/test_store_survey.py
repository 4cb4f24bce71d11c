"""The survey store: what is written comes back, and a store is whole whenever its client dies."""

import dataclasses
import warnings

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from csst_dask.config import IngestConfig, MaskConfig
from csst_dask.errors import ConfigError
from csst_dask.schema import CHANNELS, MASK_MEANINGS, REDUCED_SHAPE, STATUSES, ChipInfo, ChipKey, ChipResult, Mask
from csst_dask.store import ChipWriter, create_survey, layout, open_scalars, open_survey, predictions
from csst_dask.store import rows as table
from csst_dask.store import survey as store
from csst_dask.store.codecs import STEPS_PER_SIGMA, quantisation_step, quantise

FRAME, CHUNKS = (92, 96), (46, 48)
SMALL = IngestConfig(frame=FRAME, chunks=CHUNKS)
INFO = ChipInfo(
    "g", 150.0, 61000.5, 10.0, -20.0, (1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0), "north",
    120, 17, 0.3, 0.1, 8800, 0.2, 0.01,
)  # fmt: skip


def keys(n, start=0):
    return [ChipKey(f"1010000{start + k:04d}", 6 + k % 4, 1) for k in range(n)]


@pytest.fixture
def path(tmp_path):
    create_survey(str(tmp_path / "s.zarr"), SMALL, MaskConfig())
    return str(tmp_path / "s.zarr")


def opened(path):
    """The store as xarray, with every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return open_survey(path)


def chip(seed):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=FRAME).astype("f4")
    image[3, 4] = np.nan
    mask = rng.integers(0, 128, FRAME).astype("u1")
    maps = rng.normal(size=(len(CHANNELS), *REDUCED_SHAPE))
    cards = rng.integers(32, 127, 800).astype("u1")
    return image, mask, maps, cards


def write(path, row, image, mask, maps, cards):
    writer = ChipWriter(path, row)
    for y in range(0, FRAME[0], writer.band_rows):
        writer.write_pixels(y, image[y : y + writer.band_rows], mask[y : y + writer.band_rows])
    writer.write_maps(maps, cards)


@pytest.mark.parametrize("shard", [False, True])
def test_a_chip_comes_back_as_it_was_written(tmp_path, shard):
    path = str(tmp_path / "s.zarr")
    create_survey(path, IngestConfig(frame=FRAME, chunks=CHUNKS, shard=shard), MaskConfig())
    assert table.allocate(path, keys(3)) == [0, 1, 2]
    image, mask, maps, cards = chip(1)
    assert ChipWriter(path, 1).band_rows == (92 if shard else 46)
    write(path, 1, image, mask, maps, cards)
    found = opened(path)
    assert found["image"].dims == ("chip", "y", "x")
    np.testing.assert_array_equal(found["image"][1], image)
    np.testing.assert_array_equal(found["mask"][1], mask)
    np.testing.assert_array_equal(found["reduced"][1], maps.astype("f4"))
    assert found["reduced"].dims == ("chip", "channel", "iy", "ix")
    assert tuple(found["channel"].values) == CHANNELS
    header = found["header"].values[1]
    np.testing.assert_array_equal(header[:800], cards)
    assert (header[800:] == 32).all()
    # its neighbours are untouched
    for row in (0, 2):
        assert np.isnan(found["image"][row]).all()
    files = sorted(p.name for p in (tmp_path / "s.zarr" / "image" / "c" / "1").rglob("*") if p.is_file())
    assert len(files) == (1 if shard else 4)


def test_what_has_not_been_written_says_so(path):
    table.allocate(path, keys(2))
    found = opened(path)
    assert (found["mask"] == Mask.NOT_OBSERVED).all()
    for name in ("image", "reduced", "ra", "mjd", "pixel_mean", "corner_ra", "sky_sigma"):
        assert np.isnan(found[name]).all()
        assert found[name].dtype.kind == "f"
    assert (found["header"] == 32).all()
    assert found["status"].values.tolist() == ["pending"] * 2
    assert found["n_star"].values.tolist() == found["n_bright"].values.tolist() == [-1, -1]
    assert found["band"].values.tolist() == ["", ""]
    assert (found["mask"].dtype, found["n_star"].dtype, found["detector"].dtype) == (np.uint8, np.int64, np.int16)


def test_attributes_follow_the_conventions(path):
    found = opened(path)
    flags = found["mask"].attrs
    assert [int(bit) for bit in flags["flag_masks"]] == [1 << k for k in range(8)]
    assert tuple(flags["flag_meanings"].split()) == MASK_MEANINGS
    for name, bit in zip(flags["flag_meanings"].split(), flags["flag_masks"], strict=True):
        assert Mask[name.upper()] == bit
    assert found.attrs["Conventions"].startswith("CF-")
    assert (found["ra"].attrs["units"], found["dec"].attrs["units"]) == ("degrees_east", "degrees_north")
    assert all(found[name].attrs.get("long_name") for name in found.variables if name not in ("chip", "channel"))
    assert set(layout.COORDINATES) <= set(found.coords)


@pytest.mark.parametrize("pixels", ["lossless", "quantised", "none"])
@pytest.mark.parametrize("keep_mask", [True, False])
def test_arrays_follow_the_settings_and_chunks_divide_the_frame(tmp_path, pixels, keep_mask):
    path = str(tmp_path / "s.zarr")
    create_survey(path, IngestConfig(frame=FRAME, chunks=CHUNKS, pixels=pixels), MaskConfig(), keep_mask=keep_mask)
    group = zarr.open_group(path, mode="r")
    assert ("image" in group, "mask" in group) == (pixels != "none", keep_mask)
    for name, (array, chunks) in {n: (group[n], group[n].chunks) for n in ("image", "mask") if n in group}.items():
        assert chunks == (1, *CHUNKS), name
        assert all(size % chunk == 0 for size, chunk in zip(array.shape[1:], chunks[1:], strict=True))
    table.allocate(path, keys(1))
    writer = ChipWriter(path, 0)
    assert writer.band_rows == (None if pixels == "none" and not keep_mask else 46)
    image, mask, maps, cards = chip(0)
    writer.write_pixels(0, image[:46], mask[:46])
    writer.write_maps(maps, cards)
    np.testing.assert_array_equal(opened(path)["reduced"][0], maps.astype("f4"))


def test_long_headers_end_at_a_whole_card(path):
    table.allocate(path, keys(1))
    cards = np.arange(layout.HEADER_BYTES + 160, dtype=np.uint64).astype("u1")
    ChipWriter(path, 0).write_maps(chip(0)[2], cards)
    np.testing.assert_array_equal(opened(path)["header"][0], cards[: layout.HEADER_BYTES])
    assert layout.HEADER_BYTES % 80 == 0


def test_rows_follow_each_other_over_several_goes(path):
    names = keys(9)
    given_out = [*table.allocate(path, names[:2]), *table.allocate(path, []), *table.allocate(path, names[2:])]
    assert given_out == list(range(9))
    assert table.chip_rows(path) == {key: row for row, key in enumerate(names)}
    assert opened(path).sizes["chip"] == 9
    assert {array.shape[0] for name, array in zarr.open_group(path).arrays() if name != "channel"} == {9}


def test_growing_a_store_keeps_what_is_in_it(path):
    table.allocate(path, keys(1))
    image, mask, maps, cards = chip(3)
    write(path, 0, image, mask, maps, cards)
    table.write_results(path, [0], [ChipResult(keys(1)[0], "done", "", INFO)])
    before = opened(path).isel(chip=[0]).load()
    table.allocate(path, keys(5, start=1))
    xr.testing.assert_identical(opened(path).isel(chip=[0]).load(), before)


class Dead(BaseException):
    """The client was killed."""


def die_at(monkeypatch, step):
    """Kill `allocate` at its ``step``-th change of the store."""
    steps = iter(range(10_000))

    def dying(function):
        def call(*args, **kwargs):
            if next(steps) == step:
                raise Dead
            return function(*args, **kwargs)

        return call

    resize, fill = zarr.Array.resize, zarr.core.indexing.OIndex.__setitem__
    monkeypatch.setattr(zarr.Array, "resize", dying(resize))
    monkeypatch.setattr(zarr.core.indexing.OIndex, "__setitem__", dying(fill))


@pytest.mark.parametrize("step", [0, 1, 9, -5, -4, -3, -2, -1])
def test_a_death_while_rows_are_given_is_mended_by_the_next_run(path, monkeypatch, step):
    first = keys(2)
    table.allocate(path, first)
    # every array is resized, and three are filled
    changes = 3 + sum(name != "channel" for name in zarr.open_group(path).array_keys())
    with monkeypatch.context() as patch:
        die_at(patch, step % changes)
        with pytest.raises(Dead):
            table.allocate(path, keys(4, start=50))
    # nobody sees a chip that is not wholly there
    assert table.chip_rows(path) == {key: row for row, key in enumerate(first)}
    assert open_scalars(path).sizes["chip"] == 2
    if step:
        with pytest.raises(ConfigError, match="run it again"):
            open_survey(path)
    else:
        assert open_survey(path).sizes["chip"] == 2
    later = keys(3, start=70)
    assert table.allocate(path, later) == [2, 3, 4]
    assert table.chip_rows(path) == {key: row for row, key in enumerate([*first, *later])}
    found = opened(path)
    assert found.sizes["chip"] == 5
    assert found["status"].values.tolist() == ["pending"] * 5
    # and a survey that grows on shows no trace of the dead run
    more = keys(9, start=90)
    table.allocate(path, more)
    assert list(table.chip_rows(path)) == [*first, *later, *more]


def result(k, status="done", **changes):
    info = dataclasses.replace(INFO, ra=float(k), n_star=k, **changes) if status == "done" else None
    return ChipResult(keys(8)[k], status, "" if status == "done" else f"reason {k}", info)


def test_results_land_in_their_rows_whatever_their_order(path):
    rows = table.allocate(path, keys(6))
    order = [4, 0, 5, 2]
    table.write_results(path, [rows[k] for k in order], [result(k, "rejected" if k == 5 else "done") for k in order])
    found = open_scalars(path)
    assert found["status"].values.tolist() == ["done", "pending", "done", "pending", "done", "rejected"]
    assert set(found["status"].values) <= set(STATUSES)
    assert found["reason"].values.tolist() == ["", "", "", "", "", "reason 5"]
    np.testing.assert_array_equal(found["ra"], [0, np.nan, 2, np.nan, 4, np.nan])
    assert found["n_star"].values.tolist() == [0, -1, 2, -1, 4, -1]
    np.testing.assert_array_equal(found["corner_dec"].values[4], INFO.corner_dec)
    for field in dataclasses.fields(ChipInfo):
        if field.name not in ("ra", "n_star"):
            np.testing.assert_array_equal(found[field.name].values[2], getattr(INFO, field.name))
    table.write_results(path, [], [])


def test_a_chip_is_done_only_after_its_scalars_are_there(path, monkeypatch):
    table.allocate(path, keys(2))
    written, write_columns = [], table.write_columns

    def spy(group, rows, columns):
        for name in columns:
            written.append(name)
            if name == "status":
                done = open_scalars(path)
                assert done["n_star"].values.tolist() == [1, 0]
                np.testing.assert_array_equal(done["pixel_std"], [INFO.pixel_std] * 2)
        write_columns(group, rows, columns)

    monkeypatch.setattr(table, "write_columns", spy)
    table.write_results(path, [1, 0], [result(0), result(1)])
    assert written[-1] == "status"
    assert {field.name for field in dataclasses.fields(ChipInfo)} < set(written)


def test_a_rejected_chip_that_is_tried_again_loses_its_reason(path):
    table.allocate(path, keys(1))
    table.write_results(path, [0], [result(0, "rejected")])
    table.write_results(path, [0], [result(0)])
    found = open_scalars(path)
    assert (found["status"].values[0], found["reason"].values[0]) == ("done", "")


@pytest.mark.parametrize(
    ("ingest", "mask", "name"),
    [
        ({"frame": (96, 96), "chunks": (48, 48)}, {}, "ingest.frame"),
        ({"pixels": "none"}, {}, "ingest.pixels"),
        ({}, {"invalid": ("nonfinite", "not_observed")}, "mask.invalid"),
        ({}, {"flag_bits": {0: "bad"}}, "mask.flag_bits"),
    ],
)
def test_a_store_made_with_other_settings_is_refused(path, ingest, mask, name):
    store.check_same_format(path, SMALL, MaskConfig())
    with pytest.raises(ConfigError, match=name):
        store.check_same_format(path, IngestConfig(**{"frame": FRAME, "chunks": CHUNKS} | ingest), MaskConfig(**mask))


def test_what_is_no_store_is_refused(tmp_path):
    assert not store.exists(str(tmp_path / "none"))
    for call in (open_survey, open_scalars, table.chip_rows, predictions.read):
        with pytest.raises(ConfigError, match="no survey store"):
            call(str(tmp_path / "none"))
    (tmp_path / "file").write_text("x")
    foreign = zarr.create_group(str(tmp_path / "foreign.zarr"))
    foreign.create_array("temperature", shape=(3,), dtype=float)
    for name in ("file", "foreign.zarr", "foreign.zarr/temperature", "."):
        with pytest.raises(ConfigError, match="no survey store"):
            store.exists(str(tmp_path / name))


def test_store_that_was_never_finished_is_made_again(tmp_path, monkeypatch):
    path, made = str(tmp_path / "s.zarr"), []

    def dies(group, variable, rows=0, create=store.create_array):
        made.append(variable.name)
        if len(made) == 7:
            raise KeyboardInterrupt
        return create(group, variable, rows)

    monkeypatch.setattr(store, "create_array", dies)
    with pytest.raises(KeyboardInterrupt):
        store.create_survey(path, SMALL, MaskConfig())
    assert not store.exists(path)
    store.create_survey(path, SMALL, MaskConfig())
    assert store.exists(path)
    assert table.allocate(path, keys(2)) == [0, 1]


def test_what_is_no_store_cannot_be_opened(tmp_path):
    (tmp_path / "file").write_text("x")
    zarr.create_group(tmp_path / "other")
    with pytest.raises(ConfigError, match="expected 'csst_dask survey store'"):
        open_survey(tmp_path / "other")


def test_a_store_is_never_overwritten(path):
    table.allocate(path, keys(1))
    with pytest.raises((ConfigError, FileExistsError, ValueError)):
        create_survey(path, SMALL, MaskConfig())
    assert len(table.chip_rows(path)) == 1


def test_rows_and_store_stay_known_after_selection(path):
    table.allocate(path, keys(6))
    found = opened(path)
    assert found.attrs["store"] == path
    np.testing.assert_array_equal(found["chip"], np.arange(6))
    some = found.isel(chip=[4, 1])
    assert some["chip"].values.tolist() == [4, 1]
    assert some["obs_id"].values.tolist() == [keys(6)[4].obs_id, keys(6)[1].obs_id]
    assert some.sel(chip=1)["obs_id"].values == keys(6)[1].obs_id
    assert some.sel(chip=[1]).attrs["store"] == path
    chosen = found.isel(chip=(found["detector"] == 7).values)
    assert chosen["chip"].values.tolist() == [1, 5]
    assert chosen[["image", "status"]].attrs["store"] == path
    assert chosen["image"].data.chunksize == (1, *CHUNKS)


def test_inputs_without_a_chip_are_listed_once(path):
    table.write_files(path, [("a", "no image"), ("b", "slitless"), ("a", "gone")])
    table.write_files(path, [])
    table.write_files(path, [("c", "new"), ("b", "still slitless")])
    files = zarr.open_group(path)["files"]
    assert list(files["path"][:]) == ["a", "b", "c"]
    assert list(files["reason"][:])[1:] == ["still slitless", "new"]
    assert files["reason"][0] in ("no image", "gone")


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-4, 1e3), st.integers(0, 1000))
def test_quantised_pixels_stay_within_half_a_step(sigma, seed):
    step = quantisation_step(sigma)
    assert sigma / STEPS_PER_SIGMA / 2 < step <= sigma / STEPS_PER_SIGMA
    assert np.frexp(step)[0] == 0.5
    rng = np.random.default_rng(seed)
    image = (sigma * rng.normal(size=500) * 10 ** rng.uniform(0, 5, 500)).astype("f4")
    image[:3] = np.nan, np.inf, 0
    packed = image.copy()
    quantise(packed, step)
    good = np.isfinite(image)
    assert np.abs(packed[good].astype("f8") - image[good]).max() <= step / 2
    np.testing.assert_array_equal(packed[:3], image[:3])
    # whole multiples of a power of two: exact in any reader
    multiples = packed[good].astype("f8") / step
    np.testing.assert_array_equal(multiples, np.rint(multiples))
    again = packed.copy()
    quantise(again, step)
    np.testing.assert_array_equal(again, packed)


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan, np.inf])
def test_without_a_sky_sigma_pixels_stay_as_they_are(sigma):
    image = np.random.default_rng(0).normal(size=100).astype("f4")
    packed = image.copy()
    quantise(packed, quantisation_step(sigma))
    np.testing.assert_array_equal(packed, image)


def test_quantised_noise_takes_less_room(tmp_path):
    image = np.random.default_rng(0).normal(0.2, 0.05, FRAME).astype("f4")
    sizes = []
    for pixels in ("lossless", "quantised"):
        path = tmp_path / pixels
        create_survey(str(path), IngestConfig(frame=FRAME, chunks=CHUNKS, pixels=pixels), MaskConfig())
        table.allocate(str(path), keys(1))
        if pixels == "quantised":
            quantise(image, quantisation_step(0.05))
        write(str(path), 0, image, np.zeros(FRAME, "u1"), *chip(0)[2:])
        sizes.append(sum(p.stat().st_size for p in (path / "image" / "c").rglob("*") if p.is_file()))
        np.testing.assert_array_equal(opened(str(path))["image"][0], image)
    assert sizes[1] < 0.4 * sizes[0]


def predicted(k):
    return {
        "density_class": np.array([k], "i1"),
        "class_probability": np.eye(6, dtype="f4")[[k]],
        "log_bright": np.array([k / 10], "f4"),
        "obs_id": np.array([keys(6)[k].obs_id], object),
        "route": np.array(["standard"], object),
    }


def test_predictions_of_the_same_weights_are_kept_and_others_dropped(path):
    table.allocate(path, keys(3))
    identity = {"classifier": "abc", "regressor": "def"}
    assert predictions.prepare(path, 3, identity).tolist() == [-1, -1, -1]
    predictions.write(path, [2], predicted(2))
    table.allocate(path, keys(2, start=3))
    assert predictions.prepare(path, 5, identity).tolist() == [-1, -1, 2, -1, -1]
    assert predictions.prepare(path, 5, {"classifier": "abc", "regressor": "xyz"}).tolist() == [-1] * 5
    # the chips themselves are untouched
    assert len(table.chip_rows(path)) == 5


def test_predictions_stand_on_their_own(path):
    with pytest.raises(ConfigError, match="no predictions"):
        predictions.read(path)
    table.allocate(path, keys(3))
    predictions.prepare(path, 3, {"classifier": "abc"})
    predictions.write(path, [1], predicted(1))
    predictions.describe(path, {"note": "x"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = predictions.read(path).load()
        survey = open_survey(path)
    assert (found.attrs["store"], found.attrs["note"], found.attrs["classifier"]) == (path, "x", "abc")
    assert found["density_level"].values.tolist() == list(range(6))
    assert found["density_class"].values.tolist() == [-1, 1, -1]
    np.testing.assert_array_equal(found["log_bright"], np.float32([np.nan, 0.1, np.nan]))
    assert found["class_probability"].dims == ("chip", "density_level")
    assert found["obs_id"].values.tolist() == ["", keys(3)[1].obs_id, ""]
    assert found.isel(chip=[1])["chip"].values.tolist() == [1]
    flags = found["route_flags"].attrs
    assert len(flags["flag_masks"]) == len(flags["flag_meanings"].split())
    # and the survey opens without them
    assert "density_class" not in survey
