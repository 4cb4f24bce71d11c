"""The survey store, wherever it is: it spares what is not its own, and gives back what was written, or says so."""

import dataclasses
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from dying import Writes, dies, writing
from places import KINDS, Place, bucket, new_place, place

import csst_dask
from csst_dask.config import IngestConfig, MaskConfig
from csst_dask.errors import ConfigError, DamagedStore
from csst_dask.schema import (
    BLOCK_SHAPE,
    BLOCK_STATS,
    DONE,
    FAILED,
    MASK_MEANINGS,
    PENDING,
    REJECTED,
    ROUTE_CODES,
    STATUSES,
    SUPERSEDED,
    ChipInfo,
    ChipKey,
    ChipResult,
    Mask,
)
from csst_dask.store import SurveyStore, arrays, layout
from csst_dask.store.dataset import open_dataset
from csst_dask.store.writer import ChipWriter, task_arrays

__all__ = ["bucket", "place"]

FRAME, CHUNKS = (92, 96), (46, 48)
SMALL = IngestConfig(frame=FRAME, chunks=CHUNKS)
MASK = MaskConfig()
INFO = ChipInfo(
    "g", 150.0, 61000.5, 10.0, -20.0, (1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0), "north", 25.5,
    120, 17, 0.3, 0.1, 8800, 0.2, 0.01,
)  # fmt: skip
IDENTITY = {"classifier_sha256": "a", "regressor_sha256": "b"}


def write(where: Place, **settings) -> SurveyStore:
    return SurveyStore.write(where.url, SMALL.model_copy(update=settings), MASK)


def keys(n: int, start: int = 0, version: int = 1) -> list[ChipKey]:
    return [ChipKey(f"1010000{start + k:04d}", 6 + k % 4, version) for k in range(n)]


def chip(seed: int) -> dict[str, np.ndarray]:
    """Content of all variables of a chip that a task writes."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=FRAME).astype("f4")
    image[3, 4] = np.nan
    return {
        "image": image,
        "mask": rng.integers(0, 128, FRAME).astype("u1"),
        "block_stats": rng.normal(size=(len(BLOCK_STATS), *BLOCK_SHAPE)).astype("f4"),
        "header": rng.integers(33, 127, 800).astype("u1"),
    }


def write_chip(store: SurveyStore, row: int, content: dict[str, np.ndarray]) -> str:
    writer = ChipWriter(task_arrays(store.location, store.rows), row)
    for y in range(0, FRAME[0], writer.band_rows or FRAME[0]):
        rows = slice(y, y + (writer.band_rows or FRAME[0]))
        writer.write_pixels(y, content["image"][rows], content["mask"][rows])
    return writer.write_measured({"block_stats": content["block_stats"]}, content["header"])


def result(k: int, status: str = "done", reason: str = "") -> ChipResult:
    return ChipResult(status, reason, dataclasses.replace(INFO, ra=float(k), n_star=k) if status == "done" else None)


def predicted(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Values of everything that is predicted, none of them a fill value."""
    rng = np.random.default_rng(seed)
    return {v.name: (1 + 4 * rng.random((n, *v.shape))).astype(v.dtype) for v in layout.PREDICTED}


@pytest.fixture(scope="module", params=KINDS)
def filled(request, tmp_path_factory) -> Iterator[Place]:
    """Four chips, all variables of which hold something; the last one's newer version came, and one was rejected."""
    place = new_place(request, tmp_path_factory.mktemp("filled"))
    with write(place) as store:
        rows = store.allocate([*keys(3), keys(4)[3], keys(4, version=2)[3]])
        for row in rows:
            write_chip(store, row, chip(row))
        for name in ("peaks", "tile_peaks", "saturated", "sky", "noise"):
            array = store.arrays[name]
            array[:] = 1 + np.arange(array.size, dtype=np.uint64).reshape(array.shape).astype(array.dtype) % 7
        store.begin()
        store.record(rows, [result(0), result(1), result(2, "rejected", "no sky"), result(3), result(4)])
        store.take_up([], {})
        store.predictions.prepare(IDENTITY)
        store.predictions.write([0, 1, 3, 4], predicted(4))
        store.supersede()
        store.files.write({"/a/b.fits": "a folder", "/a/ç.fits": "no key"})
        every = {"attempts": 1, "predict_attempts": 2}
        for name, value in every.items():
            store.set_attempts(name, rows, np.full(len(rows), value))
        for name in ("n_brighter", "n_star_tile", "n_bright_tile"):
            store.arrays[name][:] = 5
        for name in ("source", "source_id", "truth_id", "reason"):
            store.arrays[name][:] = np.array([f"{name} {row}" for row in rows], store.arrays[name].dtype)
    yield place
    place.remove()


# (a) nothing that is not ours is touched


@pytest.mark.parametrize("foreign", ["raw/a.fits", "notes.txt", "lease-agreement.pdf", "lease-0.json", ".hidden"])
def test_a_place_with_other_files_is_refused_and_untouched(place, foreign):
    place.put(foreign, b"not ours")
    before = place.objects()
    assert before == {foreign: b"not ours"}
    for opens in (write, lambda where: SurveyStore.reserve(where.url, SMALL, MASK)):
        with pytest.raises(ConfigError, match="is no survey store"):
            opens(place)
    with pytest.raises(ConfigError, match="no survey store"):
        SurveyStore.read(place.url)
    assert place.objects() == before


@pytest.mark.parametrize("kind", ["group", "array"])
def test_what_is_of_zarr_and_not_ours_is_refused_and_untouched(place, kind):
    options = {"zarr_format": 3, "attributes": {"title": "temperatures"}}
    if kind == "group":
        zarr.create_group(place.bare, **options).create_array("temperature", shape=(3,), dtype=float)[:] = 1.0
    else:
        zarr.create_array(place.bare, shape=(3,), dtype=float, **options)[:] = 1.0
    before = place.objects()
    assert any("/c/" in f"/{name}" for name in before)
    with pytest.raises(ConfigError, match=f"is a Zarr {kind} and no survey store"):
        write(place)
    with pytest.raises(ConfigError, match="expected 'csst_dask survey store' version 2"):
        SurveyStore.read(place.url)
    assert place.objects() == before


def test_a_store_of_the_former_layout_is_refused_with_the_words_what_to_do(place):
    zarr.create_group(place.bare, zarr_format=3, attributes={"format": layout.FORMAT, "format_version": 1})
    before = place.objects()
    for opens in (write, lambda where: SurveyStore.read(where.url), lambda where: SurveyStore.write(where.url)):
        with pytest.raises(
            ConfigError, match=r"layout version 1, expected 2; ingest the images again into another place"
        ):
            opens(place)
    assert place.objects() == before


def test_an_existing_store_is_opened_and_never_made_again(filled):
    before = {name: content for name, content in filled.objects().items() if "/c/" in name}
    with write(filled) as store:
        assert store.rows == 5
    after = filled.objects()
    assert before
    assert {name: after[name] for name in before} == before


def made(where: Place) -> dict[str, bytes]:
    """All objects, whatever the name of the place."""
    return {name: content.replace(where.bare.encode(), b"") for name, content in where.objects().items()}


def test_a_store_whose_making_ended_at_any_write_is_finished_by_the_next(place, monkeypatch):
    if not place.url.startswith("s3"):  # where requests in turn take long
        monkeypatch.setattr(arrays, "REQUESTS", 1)
    with writing(Writes()) as writes, write(place.below("undisturbed")):
        pass
    whole = made(place.below("undisturbed"))
    assert writes.made > len(whole) > 60
    place.below("undisturbed").remove()
    step = {"memory": 4, "s3": 60}.get(place.url.partition("://")[0], 30)
    for last in [*range(0, writes.made - 1, step), writes.made - 1]:
        one = place.below(f"{last}")
        assert dies(last, lambda one=one: write(one).close()), last
        if last < writes.made - 4:
            with pytest.raises(ConfigError, match="no survey store"):
                SurveyStore.read(one.url)
        write(one).close()
        assert made(one) == whole, last
        one.remove()


def test_an_unfinished_store_of_other_settings_is_not_made_of_both(place, monkeypatch):
    monkeypatch.setattr(arrays, "REQUESTS", 1)
    assert dies(20, lambda: write(place))
    before = place.objects()
    for settings in ({"pixels": "none"}, {"frame": (46, 48)}):
        with pytest.raises(ConfigError, match="unfinished"):
            write(place, **settings)
        assert {name: content for name, content in place.objects().items() if "lease" not in name} == before
    write(place).close()


def test_no_source_lets_zarr_empty_a_folder():
    sources = sorted(Path(csst_dask.__file__).parent.rglob("*.py"))
    assert len(sources) > 150
    assert [str(path) for path in sources if re.search(r"overwrite\s*=\s*True", path.read_text())] == []


# (b) what is written comes back


@pytest.mark.parametrize("shard", [False, True])
def test_chips_come_back_as_they_were_written_and_spare_their_neighbours(place, shard):
    with write(place, shard=shard) as store:
        store.allocate(keys(3))
        content = chip(1)
        assert write_chip(store, 1, content) == ""
    found = SurveyStore.read(place.url)
    for name, values in content.items():
        np.testing.assert_array_equal(found.read_chips(name, [1])[0][..., : values.shape[-1]], values, err_msg=name)
        fill = found.arrays[name].metadata.fill_value
        others = found.read_chips(name, [0, 2])
        assert np.isnan(others).all() if np.isnan(fill) else (others == fill).all(), name
    assert (found.read_chips("header", [1])[0, 800:] == 32).all()
    images = [name for name in place.chunks("image") if name.startswith("image/c/1/")]
    assert len(images) == (1 if shard else 4)


def test_a_store_that_grows_keeps_what_is_in_it(place):
    first, more = keys(2), keys(3, start=2)
    with write(place) as store:
        assert store.allocate(first) == [0, 1]
        write_chip(store, 0, chip(0))
        store.record([0], [result(0)])
        store.predictions.prepare(IDENTITY)
        store.predictions.write([0], predicted(1))
    before = {name: SurveyStore.read(place.url).column(name) for name in ("obs_id", "ra", "status", "n_star")}
    with write(place) as store:
        assert store.allocate(more[:1]) == [2]
        assert store.allocate([]) == []
        assert store.allocate(more[1:]) == [3, 4]
    found = SurveyStore.read(place.url)
    assert list(found.row_of) == [(key.obs_id, key.detector, key.version) for key in (*first, *more)]
    for name, values in before.items():
        np.testing.assert_array_equal(found.column(name)[:2], values, err_msg=name)
    np.testing.assert_array_equal(found.read_chips("image", [0])[0], chip(0)["image"])
    assert found.ledger["status"].tolist() == [DONE, PENDING, PENDING, PENDING, PENDING]
    assert found.predictions.state.tolist() == [layout.WHOLE, 0, 0, 0, 0]


def test_results_land_in_their_rows_and_what_is_not_done_has_none(place):
    with write(place) as store:
        store.allocate(keys(6))
        order = [4, 0, 5, 2]
        store.record(order, [result(k, "rejected" if k == 5 else "done", f"note {k}") for k in order])
        store.record([], [])
    with write(place) as store:
        store.record([4, 1], [result(4, "failed", "disk"), result(1, "failed", "disk")])
        store.record([1], [result(1, "failed", "again")])
    found = SurveyStore.read(place.url)
    assert found.ledger["status"].tolist() == [DONE, FAILED, DONE, PENDING, FAILED, REJECTED]
    assert found.column("reason").tolist() == ["note 0", "again", "note 2", "", "disk", "note 5"]
    assert found.ledger["attempts"].tolist() == [0, 2, 0, 0, 1, 0]
    np.testing.assert_array_equal(found.column("ra"), [0, np.nan, 2, np.nan, np.nan, np.nan])
    assert found.column("n_star").tolist() == [0, -1, 2, -1, -1, -1]
    for field in dataclasses.fields(ChipInfo):
        if field.name not in ("ra", "n_star"):
            np.testing.assert_array_equal(found.column(field.name)[2], getattr(INFO, field.name), err_msg=field.name)
    np.testing.assert_array_equal(found.scalars()["status"], np.array(STATUSES)[found.ledger["status"]])


def test_chips_that_are_taken_up_are_as_new(place):
    with write(place) as store:
        store.allocate(keys(3))
        store.record([0, 1, 2], [result(0), result(1, "failed", "disk"), result(2, "rejected", "torn")])
        store.set_attempts("predict_attempts", [0], [2])
        store.predictions.prepare(IDENTITY)
        store.predictions.write([0], predicted(1))
        names = {name: [f"{name} {k}" for k in range(3)] for name in ("source", "source_id", "truth_id")}
        store.take_up([0, 1, 2], names)
    found = SurveyStore.read(place.url)
    assert found.ledger["status"].tolist() == [PENDING] * 3
    assert found.column("reason").tolist() == [""] * 3
    assert found.ledger["attempts"].tolist() == found.ledger["predict_attempts"].tolist() == [0] * 3
    assert found.predictions.state.tolist() == [layout.NONE] * 3
    for name, values in names.items():
        assert found.column(name).tolist() == values


def test_the_newest_version_that_is_done_counts_and_none_is_lost(place):
    versions = [keys(1, version=v)[0] for v in (1, 2, 3)]
    with write(place) as store:
        store.allocate([*versions, *keys(1, start=7)])
        store.record([0, 1, 3], [result(0, reason="odd"), result(1), result(3)])
        store.predictions.prepare(IDENTITY)
        store.predictions.write([0, 1, 3], predicted(3))
        assert store.supersede() == 1
        assert store.supersede() == 0
        assert store.ledger["status"].tolist() == [SUPERSEDED, DONE, PENDING, DONE]
        assert store.column("reason")[0] == "superseded by a newer version; odd"
        assert store.predictions.state.tolist() == [0, 1, 0, 1]
        store.record([2], [result(2)])
        store.supersede()
        assert store.ledger["status"].tolist() == [SUPERSEDED, SUPERSEDED, DONE, DONE]
        # one after the other is rejected: the next older one is done again
        for row, newest in ((2, 1), (1, 0)):
            store.record([row], [result(row, "rejected", "torn")])
            store.supersede()
            assert store.ledger["status"][newest] == DONE
            assert store.ledger["status"][:newest].tolist() == [SUPERSEDED] * newest
    found = SurveyStore.read(place.url)
    assert found.ledger["status"].tolist() == [DONE, REJECTED, REJECTED, DONE]
    assert found.column("reason").tolist() == ["odd", "torn", "torn", ""]


def test_predictions_come_back_and_those_of_other_networks_are_dropped(place):
    values = predicted(2)
    with write(place) as store:
        store.allocate(keys(3))
        store.record([0, 1, 2], [result(0), result(1), result(2)])
        assert store.predictions.prepare(IDENTITY).tolist() == [False] * 3
        store.predictions.write([2, 0], values)
        store.allocate(keys(1, start=3))
    with write(place) as store:
        assert store.predictions.prepare(IDENTITY).tolist() == [True, False, True, False]
        store.predictions.set_attrs({"note": "x"})
    found = SurveyStore.read(place.url).predictions
    assert {name: found.attrs[name] for name in ("note", *IDENTITY)} == {"note": "x"} | IDENTITY
    for variable in layout.PREDICTED:
        np.testing.assert_array_equal(found.column(variable.name, [2, 0]), values[variable.name])
        np.testing.assert_array_equal(
            found.column(variable.name, [1]), np.full((1, *variable.shape), variable.fill, variable.dtype)
        )
    np.testing.assert_array_equal(found.column("ra"), [0, np.nan, 2, np.nan])
    with write(place) as store:
        assert store.predictions.prepare({**IDENTITY, "regressor_sha256": "c"}).tolist() == [False] * 4
    found = SurveyStore.read(place.url)
    assert found.predictions.state.tolist() == [layout.NONE] * 4
    assert np.isnan(found.predictions.column("ra")).all()
    assert np.isnan(found.predictions.column("bright_count")).all()
    assert found.predictions.column("obs_id").tolist() == found.column("obs_id").tolist()
    assert found.ledger["status"].tolist() == [DONE, DONE, DONE, PENDING]


def test_inputs_without_a_chip_are_listed_once_and_dropped_when_they_give_one(place):
    with write(place) as store:
        store.files.write({"a": "no image", "b": "slitless", "d": "torn"})
        store.files.write({})
        store.files.write({"c": "new", "b": "still slitless"}, accounted=["a", "elsewhere"])
    expected = {"b": "still slitless", "c": "new", "d": "torn"}
    assert SurveyStore.read(place.url).files.read() == expected
    found = xr.open_zarr(place.url, group="files").load()
    assert dict(zip(found["path"].values.tolist(), found["reason"].values.tolist(), strict=True)) == expected


@pytest.mark.parametrize("pixels", ["lossless", "quantised", "none"])
@pytest.mark.parametrize("keep_mask", [True, False])
def test_arrays_follow_the_settings_and_chunks_divide_the_frame(tmp_path, pixels, keep_mask):
    path = str(tmp_path / "s.zarr")
    settings = SMALL.model_copy(update={"pixels": pixels})
    with SurveyStore.write(path, settings, MASK, keep_mask=keep_mask) as store:
        store.allocate(keys(1))
        write_chip(store, 0, chip(0))
    found = SurveyStore.read(path)
    assert ("image" in found.arrays, "mask" in found.arrays) == (pixels != "none", keep_mask)
    for name in {"image", "mask"} & found.arrays.keys():
        assert found.arrays[name].chunks == (1, *CHUNKS)
        np.testing.assert_array_equal(found.read_chips(name, [0])[0], chip(0)[name])
    np.testing.assert_array_equal(found.read_chips("block_stats", [0])[0], chip(0)["block_stats"])


@pytest.mark.parametrize(
    ("ingest", "mask", "name"),
    [
        ({"frame": (96, 96), "chunks": (48, 48)}, {}, "ingest.frame"),
        ({"pixels": "none"}, {}, "ingest.pixels"),
        ({}, {"invalid": ("nonfinite", "not_observed")}, "mask.invalid"),
        ({}, {"flag_bits": {0: "bad"}}, "mask.flag_bits"),
    ],
)
def test_a_store_made_with_other_settings_is_refused(tmp_path, ingest, mask, name):
    write(Place(str(tmp_path / "s.zarr"))).close()
    other = IngestConfig(**{"frame": FRAME, "chunks": CHUNKS} | ingest), MaskConfig(**mask)
    for opens in (SurveyStore.write, SurveyStore.reserve):
        with pytest.raises(ConfigError, match=name):
            opens(str(tmp_path / "s.zarr"), *other)
    write(Place(str(tmp_path / "s.zarr"))).close()


def test_long_headers_end_at_a_whole_card_and_long_text_at_a_whole_character(tmp_path):
    cards = np.arange(layout.HEADER_BYTES + 160, dtype=np.uint64).astype("u1")
    assert layout.HEADER_BYTES % 80 == 0
    with write(Place(str(tmp_path / "s.zarr"))) as store:
        store.allocate(keys(2))
        assert "first 1152 are kept" in write_chip(store, 0, {**chip(0), "header": cards})
        store.record([0, 1], [result(0, reason="星" * 500), result(1, reason="星" * 341)])
    found = SurveyStore.read(str(tmp_path / "s.zarr"))
    np.testing.assert_array_equal(found.read_chips("header", [0])[0], cards[: layout.HEADER_BYTES])
    short, whole = found.column("reason").tolist()
    assert whole == "星" * 341
    assert set(short.removesuffix("...")) == {"星"}
    assert short.endswith("...")


# (c) plain xarray opens it


@pytest.fixture
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("strict")
def test_plain_xarray_opens_it_without_a_warning_in_the_order_of_the_layout(filled):
    chips, predictions = xr.open_zarr(filled.url), xr.open_zarr(filled.url, group="predictions")
    names = [v.name for v in layout.pixel_variables(FRAME, CHUNKS, "lossless", False, True)]
    expected = [*names, *(v.name for v in layout.CHIP_VARIABLES)]
    assert list(chips.data_vars) == [name for name in expected if name not in layout.COORDINATES]
    expected = [v.name for v in layout.PREDICTION_VARIABLES]
    assert list(predictions.data_vars) == [n for n in expected if n not in layout.COORDINATES and n != "chip"]
    assert set(layout.COORDINATES) <= set(chips.coords)
    assert set(layout.COORDINATES) - {"header"} <= set(predictions.coords)
    tree = xr.open_datatree(filled.url, engine="zarr")
    assert set(tree.children) == {"predictions", "files"}
    xr.testing.assert_identical(tree.to_dataset().load(), chips.load())
    below = tree["predictions"].to_dataset()
    for name in predictions.variables:
        xr.testing.assert_identical(below[name].variable.load(), predictions[name].variable.load())


@pytest.mark.usefixtures("strict")
def test_flags_are_bytes_with_their_meanings_and_text_is_fixed_width(filled):
    for group in (None, "predictions", "files"):
        found = xr.open_zarr(filled.url, group=group)
        kinds = {name: array.dtype for name, array in zarr.open_group(filled.url, path=group or "", mode="r").arrays()}
        assert {dtype.kind for dtype in kinds.values()} <= set("iufbUS"), kinds
        assert all(found[name].attrs.get("long_name") for name in found.variables if name != "chip" or group)
    chips, predictions = xr.open_zarr(filled.url), xr.open_zarr(filled.url, group="predictions")
    for flags, names in (
        (chips["status"], STATUSES),
        (predictions["route"], ROUTE_CODES),
        (predictions["predicted"], layout.PREDICTED_STATES),
    ):
        assert flags.dtype == np.uint8
        assert list(flags.attrs["flag_values"]) == list(range(len(names)))
        assert tuple(flags.attrs["flag_meanings"].split()) == tuple(names)
    bits = chips["mask"].attrs
    assert [int(bit) for bit in bits["flag_masks"]] == [int(Mask[name.upper()]) for name in MASK_MEANINGS]
    assert tuple(bits["flag_meanings"].split()) == MASK_MEANINGS
    assert chips.attrs["Conventions"].startswith("CF-")
    assert (chips["ra"].attrs["units"], chips["dec"].attrs["units"]) == ("degrees_east", "degrees_north")
    assert chips["status"].values.tolist() == [DONE, DONE, REJECTED, SUPERSEDED, DONE]


def test_what_xarray_shows_is_what_the_store_shows(filled):
    store, chips = SurveyStore.read(filled.url), xr.open_zarr(filled.url).load()
    for name in store.arrays:
        if "chip" in chips[name].dims:
            np.testing.assert_array_equal(chips[name].values, arrays.decode(store.arrays[name][:]), err_msg=name)
    ours = open_dataset(store)
    assert ours["status"].values.tolist() == [STATUSES[code] for code in chips["status"].values]
    assert ours.attrs["store"] == store.location
    assert ours.isel(chip=[4, 1])["chip"].values.tolist() == [4, 1]
    found = open_dataset(store, predictions=True).load()
    assert found["predicted"].values.tolist() == [True, True, False, False, True]
    routes = xr.open_zarr(filled.url, group="predictions")["route"].values
    assert found["route"].values.tolist() == [ROUTE_CODES[code] for code in routes]


@pytest.mark.usefixtures("strict")
def test_loaded_datasets_can_be_selected_grouped_and_drawn(filled):
    import matplotlib.pyplot as plt

    chips = xr.open_zarr(filled.url).load()
    done = chips.where(chips["status"] == DONE, drop=True)
    assert done.sizes["chip"] == 3
    assert done["obs_id"].values.tolist() == chips["obs_id"].values[[0, 1, 4]].tolist()
    assert chips.set_xindex("detector").sel(detector=7)["n_star"].item() == 1
    assert chips.sel(stat="mean")["block_stats"].dims == ("chip", "iy", "ix")
    assert chips["n_star"].groupby("band").max()["band"].values.tolist() == ["", "g"]
    chips["block_stats"].sel(stat="mean").isel(chip=0).plot()
    chips["n_star"].plot()
    plt.close("all")
    found = xr.open_zarr(filled.url, group="predictions").load()
    some = found.where(found["predicted"] == layout.WHOLE, drop=True)
    assert some.sizes["chip"] == 3
    assert found["bright_count"].groupby(found["route"]).count().sizes["route"] == len(
        set(found["route"].values.tolist())
    )
    found["bright_count"].plot()
    plt.close("all")


# (d) nothing that was changed is read without notice


def every_array(url: str) -> dict[str, zarr.Array]:
    root = zarr.open_group(url, mode="r", use_consolidated=False)
    groups = {"": root, "predictions/": root["predictions"], "files/": root["files"]}
    return {prefix + name: array for prefix, group in groups.items() for name, array in group.arrays()}


def test_every_array_has_a_checksum_and_block_stats_a_shard_a_chip(filled):
    found = every_array(filled.url)
    assert len(found) > 70
    for name, array in found.items():
        assert [codec.to_dict()["name"] for codec in array.compressors][-1] == "crc32c", name
    stats = found["block_stats"]
    assert stats.shards == (1, len(BLOCK_STATS), *BLOCK_SHAPE)
    assert stats.chunks == (1, 1, *BLOCK_SHAPE)
    assert len(filled.chunks("block_stats")) == stats.shape[0]


def test_a_byte_that_changed_in_any_chunk_of_any_array_is_found(filled):
    store, arrays_, objects = SurveyStore.read(filled.url), every_array(filled.url), filled.objects()
    rng, seen = np.random.default_rng(0), set()
    chunks = {name: name.rpartition("/c") for name in objects if not name.endswith("zarr.json")}
    few = "s3" in filled.url  # where requests take long
    for name in list(chunks)[:: 7 if few else 1]:
        (array, _, chunk), content = chunks[name], objects[name]
        seen.add(array)
        at = int(rng.integers(len(content)))
        filled.put(name, content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :])
        with pytest.raises((ValueError, RuntimeError), match=r"."):
            arrays_[array][:]
        row = int(chunk.split("/")[1]) if chunk else 0
        if array in store.arrays and arrays_[array].chunks[0] == 1:
            with pytest.raises(DamagedStore, match=re.escape(store.name(row))):
                store.read_chips(array, range(store.rows))
        elif array in store.arrays and arrays_[array].metadata.dimension_names[0] == "chip":
            with pytest.raises(DamagedStore, match=f"{array}.* is damaged .*verify --repair"):
                store.column(array)
        filled.put(name, content)
        assert arrays_[array][:].shape == arrays_[array].shape
    assert seen == arrays_.keys() or (few and len(seen) > 8)


# (e) predictions are as many as chips


def assert_same_length(url: str, rows: int) -> None:
    for name, array in every_array(url).items():
        if array.metadata.dimension_names[0] == "chip":
            assert array.shape[0] == rows, name
    sizes = {xr.open_zarr(url, group=group).sizes["chip"] for group in (None, "predictions")}
    assert sizes == {rows}


def test_predictions_have_as_many_rows_as_the_store(place):
    write(place).close()
    assert_same_length(place.url, 0)
    with write(place) as store:
        store.allocate(keys(2))
        assert_same_length_of(store, 2)
        store.predictions.prepare(IDENTITY)
        store.allocate(keys(3, start=2))
        assert_same_length_of(store, 5)
    assert_same_length(place.url, 5)


def assert_same_length_of(store: SurveyStore, rows: int) -> None:
    for name, array in {**store.arrays, **store.predictions.arrays}.items():
        if array.metadata.dimension_names[0] == "chip":
            assert array.shape[0] == rows == store.rows, name


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_death_while_rows_are_given_leaves_no_trace(place, monkeypatch):
    monkeypatch.setattr(arrays, "REQUESTS", 1)
    first, lost = keys(2), keys(4, start=50)

    def grow(new: list[ChipKey]) -> None:
        with SurveyStore.write(place.url, SMALL, MASK) as store:
            store.allocate(new)

    def triples(new: list[ChipKey]) -> list[tuple[str, int, int]]:
        return [(key.obs_id, key.detector, key.version) for key in new]

    grow(first)
    with writing(Writes()) as writes:
        grow(lost)
    expected = triples([*first, *lost])
    assert writes.made > 60
    for last in range(0, writes.made, 3):
        new = keys(4, start=100 + 10 * last)
        assert dies(last, grow, new), last
        found = SurveyStore.read(place.url)
        if found.rows > len(expected):  # the last write of all but the metadata was made
            expected += triples(new)
        assert list(found.row_of) == expected
        more = keys(3, start=5000 + last) if last % 2 else []
        grow(more)
        expected += triples(more)
        found = SurveyStore.read(place.url)
        assert list(found.row_of) == expected
        assert set(found.ledger["status"].tolist()) == {PENDING}
        assert_same_length(place.url, len(expected))
