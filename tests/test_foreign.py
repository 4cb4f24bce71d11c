"""The foreign benchmark: its plan, its pixels, and that nothing of the simulator has a part in it."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import foreign  # noqa: E402
import foreign_files  # noqa: E402
import foreign_image  # noqa: E402
from foreign_plan import MOST_STARS, SETS, plan_chip  # noqa: E402
from foreign_psf import CORE, make_psf  # noqa: E402
from foreign_sky import PHASES, Scene, draw_scene  # noqa: E402

from csst_dask.schema import BANDS, CLASS_BORDERS, FRAME_SHAPE, MAGNITUDES, N_CLASSES, STAR_LIMIT, density_class  # noqa: E402
from csst_dask.survey import Survey  # noqa: E402

SHAPE = (368, 384)
SHARE = SHAPE[0] * SHAPE[1] / (FRAME_SHAPE[0] * FRAME_SHAPE[1])


def crowded(name="twin", index=0, stars=300, **changes):
    """A plan of so many stars on the small frame."""
    return dataclasses.replace(plan_chip(name, index), n_star=round(stars / SHARE), **changes)


def bare(plan, monkeypatch):
    """A chip without galaxies."""
    monkeypatch.setattr(foreign_image, "add_galaxies", lambda *args: None)
    return foreign_image.render(plan, SHAPE)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    plan = crowded("benchmark", 5, flags="imperfect")
    for folder in ("a", "b"):
        foreign_image.render(plan_chip("benchmark", 6), SHAPE)  # what is rendered before makes no difference
        foreign_files.write_chip(foreign_image.render(plan, SHAPE), tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 3
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_nothing_of_the_simulator_is_imported():
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import foreign\n"
        "plan = foreign.plan_chip('twin', 0)\n"
        f"foreign.render(plan, {SHAPE})\n"
        "print([name for name in sys.modules if name.startswith('csst_dask.simulation')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_plan_holds_all_bands_and_classes_and_half_of_the_flags_are_perfect():
    for name in SETS:
        plans = [plan_chip(name, index) for index in range(foreign.CHIPS)]
        classes = density_class([plan.n_star for plan in plans])
        assert set(classes.tolist()) == set(range(N_CLASSES))
        assert {plan.band for plan in plans} == set(BANDS)
        assert sum(plan.flags == "perfect" for plan in plans) == foreign.CHIPS // 2
        for band in BANDS:
            flags = [plan.flags for plan in plans if plan.band == band]
            assert {"perfect", "imperfect", "none"} == set(flags)
            assert 0.3 < np.mean([flag == "perfect" for flag in flags]) < 0.7
            n_star = np.array([plan.n_star for plan in plans if plan.band == band])
            assert n_star.min() == 0
            assert n_star.max() > 3e4
        assert len({plan.name for plan in plans}) == len(plans)


def test_no_class_edge_is_favoured():
    """As many chips within 0.1 dex of the edges as so wide a part of the range holds."""
    for name in SETS:
        level = np.log10(1 + np.array([plan_chip(name, index).n_star for index in range(3000)]))
        level = level[level > 0]
        near = np.min(np.abs(level[:, None] - np.array(CLASS_BORDERS[1:])), axis=1) < 0.1
        expected = 0.2 * len(CLASS_BORDERS[1:]) / (np.log10(MOST_STARS + 1) - np.log10(1.5))
        assert near.mean() == pytest.approx(expected, rel=0.05)


def test_the_two_sets_differ():
    for index in range(20):
        one, other = (plan_chip(name, index) for name in ("benchmark", "twin"))
        assert one.obs_id != other.obs_id
        assert one.n_star != other.n_star or one.n_star == 0
    a, b = (dataclasses.asdict(SETS[name]) for name in ("benchmark", "twin"))
    assert all(a[key] != b[key] for key in a)


def test_the_light_of_stars_is_conserved():
    plan = crowded(index=5)
    rng, psf = np.random.default_rng(0), make_psf(plan)
    for mag in (14.0, 25.0):
        n = 40
        y, x = (np.floor(rng.uniform(500, 520, (2, n)) * PHASES) + 0.5) / PHASES
        none = np.empty(0)
        scene = Scene(np.full(n, mag), np.full(n, mag), y, x, 26.0, none, none, none, none)
        image = np.zeros((1104, 1024), np.float32)
        smooth = foreign_image.add_stars(image, scene, psf, plan)
        total = image.sum(dtype=float) + smooth.sum() * foreign_image.BIN**2
        assert total == pytest.approx(foreign_image.flux(scene.mag, plan).sum(), rel=1e-3)


def test_stars_stand_where_the_catalogue_has_them():
    """The middle of a star's light is its place, for every sub-pixel place."""
    psf = make_psf(crowded(index=0))
    middle = psf.cores[4] / psf.cores[4].sum(axis=(-2, -1), keepdims=True)
    pixel = np.arange(CORE) + 0.5 - CORE // 2
    expected = (np.arange(PHASES) + 0.5) / PHASES
    shift = (middle.sum(-1) * pixel).sum(-1) - expected[:, None]
    assert np.ptp(shift) < 0.01  # the PSF's own middle may lie elsewhere
    shift = (middle.sum(-2) * pixel).sum(-1) - expected[None]
    assert np.ptp(shift) < 0.01


@pytest.mark.parametrize("index", [0, 2, 6])
def test_noise_of_an_empty_chip(index, monkeypatch):
    """Poisson noise of sky and dark current, and read noise; between neighbours, since the sky is not even."""
    chip = bare(dataclasses.replace(plan_chip("benchmark", index), n_star=0, flags="perfect"), monkeypatch)
    expected = np.sqrt((chip.sky + foreign_image.DARK) * chip.plan.exptime + chip.read_noise**2)
    assert chip.noise * chip.plan.exptime == pytest.approx(expected, rel=0.01)
    good = chip.flags == 0
    step = np.diff(np.where(good, chip.image, np.nan), axis=1)[150:220, 100:280]
    step = step[np.isfinite(step)]
    step = step[np.abs(step) < 5 * np.nanstd(step)]
    assert step.std() / np.sqrt(2) == pytest.approx(chip.noise, rel=0.03)
    assert np.median(chip.image[150:220, 100:280]) == pytest.approx(chip.sky, abs=0.1 * chip.noise + 0.05 * chip.sky)


def test_what_perfect_flags_leave_and_imperfect_ones_miss(monkeypatch):
    ranges = dataclasses.replace(SETS["twin"], cosmic_rays=(3e4, 3e4), missed=(0.4, 0.4), hot_pixels=(1e5, 1e5))
    monkeypatch.setitem(SETS, "twin", ranges)
    left = {}
    for flags in ("perfect", "imperfect"):
        chip = bare(dataclasses.replace(plan_chip("twin", 2), n_star=0, flags=flags), monkeypatch)
        outlier = chip.image > chip.sky + 8 * chip.noise
        left[flags] = (outlier & (chip.flags == 0)).sum() / outlier.sum()
    assert left["perfect"] == 0
    assert 0.2 < left["imperfect"] < 0.6
    assert foreign_image.render(dataclasses.replace(plan_chip("twin", 2), flags="none"), SHAPE).flags is None


def test_stars_are_drawn_to_the_depth_and_counted_by_g():
    beyond = set()
    for index in range(28):
        plan = crowded(index=index, stars=2000)
        scene = draw_scene(plan, SHAPE)
        assert scene.n_star == 2000
        assert ((scene.g < STAR_LIMIT) | (scene.mag < scene.depth)).all()
        assert ((scene.y >= 0) & (scene.y < SHAPE[0]) & (scene.x >= 0) & (scene.x < SHAPE[1])).all()
        beyond |= {plan.band} if (scene.g >= STAR_LIMIT).any() else set()
    assert beyond >= {"g", "r", "i", "z"}


def test_a_store_counts_as_the_catalogue_does_and_is_filled_once(client, tmp_path, monkeypatch):
    store, plans = tmp_path / "s.zarr", [crowded(index=i, stars=n) for i, n in ((0, 40), (5, 300))]
    foreign.fill_store(plans[:1], store, SHAPE, client)
    foreign.fill_store(plans, store, SHAPE, client)
    monkeypatch.setattr(foreign, "render", lambda *args: pytest.fail("a chip that is there is rendered again"))
    foreign.fill_store(plans, store, SHAPE, client)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s-lists", "s.zarr"]
    chips = Survey(store).chips.load()
    assert chips.sizes["chip"] == 2
    for row, plan in enumerate(plans):
        with np.load(foreign_files.list_path(plan, tmp_path / "s-lists")) as kept:
            assert (kept["mag"] < 23.5).sum() == kept["n_bright"] == chips["n_bright"].values[row]
            assert (kept["g"] < STAR_LIMIT).sum() == kept["n_star"]
            assert kept["n_star"] == chips["n_star"].values[row]
            brighter = [(kept["mag"] < m).sum() if m <= kept["depth"] else -1 for m in MAGNITUDES]
            assert chips["n_brighter"].values[row].tolist() == brighter
            assert chips["exptime"].values[row] == kept["exptime"]
            assert chips["sky_level"].values[row] == pytest.approx(float(kept["sky"]), rel=0.5)
        assert chips["band"].values[row] == plan.band


def test_files_are_written_once_and_drawn(tmp_path, monkeypatch):
    plans = [crowded(index=i, stars=30) for i in (0, 1)]
    foreign.write_files(plans, tmp_path, SHAPE)
    monkeypatch.setattr(foreign, "render", lambda *args: pytest.fail("a chip that is there is rendered again"))
    foreign.write_files(plans, tmp_path, SHAPE)
    foreign_files.draw_picture(sorted((tmp_path / "lists").iterdir()), tmp_path / "sky.png")
    assert (tmp_path / "sky.png").read_bytes().startswith(b"\x89PNG")
