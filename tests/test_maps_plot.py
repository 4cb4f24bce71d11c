from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from csst_dask.errors import ConfigError
from csst_dask.instrument.focal_plane import unit_vectors
from csst_dask.maps.chips import MapChips
from csst_dask.maps.dataset import to_dataset
from csst_dask.maps.density import ChipForMap, accumulate, chip_sums, empty_sums
from csst_dask.maps.grid import HealpixGrid
from csst_dask.maps.panel import patches, tangent_plane
from csst_dask.maps.plot import REVIEW, plot_map


def a_map(places, nside=512, bands=("g",), crowded=False, side=0.2, review=None):
    grid = HealpixGrid(nside)
    sums = []
    for k, (ra, dec) in enumerate(places):
        x = side / 2 / np.cos(np.radians(dec)) * np.array([-1, 1, 1, -1])
        n = np.nan if crowded and k == 0 else 100.0 * (k + 1)
        corners = (ra + x) % 360, dec + side / 2 * np.array([-1, -1, 1, 1])
        for band in bands:
            chip = ChipForMap(band, *corners, np.ones((8, 8), np.float32), n, 0.9 * n, 1.1 * n, 3, crowded and k == 0)
            chip = replace(chip, review=k == review)
            sums.append(chip_sums(chip, grid))
    n = len(sums)
    return to_dataset(accumulate(sums), grid, {}, MapChips([f"{k:011d}" for k in range(n)], [7] * n, [0] * n))


SIX = [(10, 41), (83, -69), (180, 30), (190, 32), (266, -29), (359.99, 0)]


def test_separate_patches_stay_separate():
    ds = a_map(SIX)
    grid = HealpixGrid(512)
    found = patches(ds["cell_ids"].values, grid)
    assert len(found) == 6
    assert np.array_equal(np.sort(np.concatenate([p.cells for p in found])), ds["cell_ids"].values)
    for patch in found:
        offset = [np.degrees(np.arccos(unit_vectors(*place) @ unit_vectors(patch.ra, patch.dec))) for place in SIX]
        assert min(offset) < 0.1
        assert patch.radius < 0.4


def test_tangent_plane_has_east_and_north():
    x, y = tangent_plane(unit_vectors([10.1, 10.0], [20.0, 20.1]), 10.0, 20.0).T
    assert x[0] == pytest.approx(0.1 * np.cos(np.radians(20)), rel=1e-3)
    assert y[1] == pytest.approx(0.1, rel=1e-3)
    assert abs(x[1]) < 1e-12
    assert np.isnan(tangent_plane(unit_vectors(190.0, -20.0), 10.0, 20.0)).all()


def test_east_is_to_the_left_and_every_patch_has_its_row():
    figure = plot_map(a_map(SIX))
    square = [ax for ax in figure.axes if ax.get_aspect() == 1 and ax.collections and ax.name == "rectilinear"]
    assert len(square) == 6 * 3
    assert all(ax.get_xlim()[0] > ax.get_xlim()[1] and ax.get_ylim()[0] < ax.get_ylim()[1] for ax in square)
    drawn = [sum(len(c.get_paths()) for c in ax.collections) for ax in square[:6]]
    assert sum(drawn) == a_map(SIX).sizes["cells"]


def test_the_picture_is_small_and_has_no_metadata(tmp_path):
    path = tmp_path / "new" / "map.png"
    figure = plot_map(a_map(SIX[:3], bands=("NUV", "r"), crowded=True), path)
    assert isinstance(figure, Figure)
    assert path.stat().st_size < 1_000_000
    with Image.open(path) as image:
        assert set(image.info) <= {"dpi"}
        pixels = np.asarray(image.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert not matplotlib._pylab_helpers.Gcf.get_all_fig_managers()


def test_the_same_map_gives_the_same_file(tmp_path):
    for name in "ab":
        plot_map(a_map(SIX[:1]), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_truth_is_drawn_beside_on_the_same_scale():
    ds, truth = a_map(SIX[:2]), a_map(SIX[:2], nside=1024)
    titles = [ax.get_title() for ax in plot_map(ds, truth=truth).axes if "deg" in ax.get_title()]
    assert len(titles) == 2
    assert "true" in titles[1]


def test_a_scattered_survey_is_drawn_on_the_whole_sky():
    places = [(30 * k + 5, 8 * k - 50) for k in range(12)]
    figure = plot_map(a_map(places, nside=128))
    assert [ax.name for ax in figure.axes].count("mollweide") == 3


def test_a_pole_can_be_drawn(tmp_path):
    plot_map(a_map([(20, 89.8), (200, 89.7)]), tmp_path / "pole.png")
    assert (tmp_path / "pole.png").stat().st_size > 0


def test_zero_stars_can_be_drawn(tmp_path):
    ds = a_map([(20, 10)])
    for name in ("bright_sum", "bright_err_sum", "bright_star_density", "bright_star_density_error"):
        ds[name] = ds[name] * 0
    plot_map(ds, tmp_path / "none.png")
    assert (tmp_path / "none.png").stat().st_size > 0


def test_an_empty_map_is_refused():
    with pytest.raises(ConfigError, match="no observed cell"):
        plot_map(to_dataset(empty_sums(64), HealpixGrid(64), {}, MapChips([], [], [])))


def test_a_nearly_empty_field_does_not_take_the_colours_of_the_others():
    ds = a_map(SIX[:2])
    density = np.where(np.arange(ds.sizes["cells"]) % 2, 1e4, 1e-3)
    density[0] = 0
    ds["bright_star_density"][0], ds["bright_star_density_error"][0] = density, np.where(density > 1, 500.0, 1.0)
    figure = plot_map(ds)
    assert "less than 1 star in a deg²" in "".join(text.get_text() for text in figure.texts)
    assert "less than 1 star" not in "".join(text.get_text() for text in plot_map(a_map(SIX[:2])).texts)
    bars = {ax.get_title().split(" [")[0]: ax.get_xlim() for ax in figure.axes if "[" in ax.get_title()}
    assert bars["error of the density"] == (0, 5)
    assert bars["stars with mag < 23.5"] == pytest.approx((1, 1e4))
    arrows = [len(ax.patches) for ax in figure.axes if "[" in ax.get_title()]
    assert arrows == [1, 0], "an arrow where a scale ends before the values do"
    ds["bright_star_density"][0] = np.where(density > 1, 1e4, 2.0)
    ds["bright_star_density_error"][0] = np.where(density > 1, 500.0, 9.0)
    figure = plot_map(ds)
    bars = {
        ax.get_title().split(" [")[0]: (ax.get_xlim(), len(ax.patches)) for ax in figure.axes if "[" in ax.get_title()
    }
    assert bars["error of the density"] == ((0, 100), 1)
    plain = plot_map(a_map(SIX[:2]))
    assert not any(ax.patches for ax in plain.axes if "[" in ax.get_title())


def test_cells_that_only_chips_under_review_saw_have_a_hatch_and_a_legend(tmp_path):
    for nside, side, name in ((512, 0.2, "rectilinear"), (64, 1.5, "mollweide")):
        places = SIX if name == "rectilinear" else [(30 * k + 5, 8 * k - 50) for k in range(12)]
        ds = a_map(places, nside=nside, side=side)
        assert not plot_map(ds).legends
        other = a_map(places, nside=nside, side=side, crowded=True, review=1)
        figure = plot_map(other, tmp_path / "map.png")
        [legend] = figure.legends
        words = [text.get_text() for text in legend.get_texts()]
        assert ["crowded" in text for text in words] == [True, False]
        assert ["review" in text for text in words] == [False, True]
        hatches = {patch.get_hatch() for patch in legend.get_patches()}
        assert len(hatches) == 2
        panels = [ax for ax in figure.axes if ax.name == name and ax.collections]
        drawn = {h for ax in panels for c in ax.collections for h in getattr(c, "hatches", [c.get_hatch()]) if h}
        assert drawn == hatches
        with Image.open(tmp_path / "map.png") as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
        colour = (np.array(to_rgb(REVIEW["edgecolor"])) * 255).round().astype(int)
        assert (np.abs(pixels - colour).max(axis=1) < 30).any(), "it is on the picture"
