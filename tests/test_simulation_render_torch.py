"""The renderer on a torch device draws what the compiled one draws; its noise is another sample of the same law."""

import ast
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import csst_dask
from csst_dask.config import SimulationConfig
from csst_dask.instrument.flags import FLAG_GHOST, FLAG_TRAIL
from csst_dask.simulation import detector as ccd
from csst_dask.simulation import exposure as exposures
from csst_dask.simulation import renderer as compiled
from csst_dask.simulation.artefacts import Trail
from csst_dask.simulation.detector_torch import Bleeding, add_defects
from csst_dask.simulation.exposure import draw_scene
from csst_dask.simulation.galaxies_torch import group_galaxies
from csst_dask.simulation.noise import observe
from csst_dask.simulation.render import expand_glow
from csst_dask.simulation.render_torch import TorchChip, TorchRenderer
from csst_dask.simulation.shot import load_shots, make_exposure_psf, save_shots, take_shot
from csst_dask.simulation.stars_torch import add_glow, groups_of
from csst_dask.simulation.survey import plan_survey

torch.set_num_threads(1)
SHAPE = (512, 640)
G, I = 8, 7


@pytest.fixture(scope="module")
def exposure():
    """An exposure of a field of stars and galaxies, with every artefact."""
    plan = plan_survey(SimulationConfig(seed=3, exposures=2, detectors=(I, G), region="demo", star_counts=(300, 3e5)))
    return plan[1]


def expected(monkeypatch, exposure, detector, shape):
    """What the compiled renderer holds before sky and noise come on top, its flags, and how it adds them."""
    noise = {}
    monkeypatch.setattr(compiled, "observe", lambda frame, **how: noise.update(how))
    chip = compiled.Renderer(shape).render(exposure, detector)
    return chip.image + expand_glow(noise.pop("glow"), shape), chip.flags, noise


def use_scene(monkeypatch, scene):
    """Let both renderers see a scene."""
    monkeypatch.setattr(exposures, "draw_scene", lambda *_: scene)


def assert_same_light(found, image, flags, tolerance=1e-4, ends=0):
    """Every pixel to 1e-4 of itself or of an electron, but for some ``ends`` of bleeding trails."""
    error = np.abs(found.image.numpy() - image) / np.maximum(np.abs(image), 1)
    assert (error > tolerance).sum() <= ends
    assert error.max() < 50 * tolerance
    np.testing.assert_array_equal(found.flags.view(torch.uint16).numpy(), flags)


@pytest.mark.parametrize(("detector", "shape"), [(G, SHAPE), (I, SHAPE), (G, (187, 203)), (I, (640, 1000))])
def test_the_expected_image_of_a_field(monkeypatch, exposure, detector, shape):
    trail = Trail(*(c + 90.0 for c in take_shot(exposure, detector, shape).corner), 0.7, 3000.0, 2.0)
    exposure = replace(exposure, trails=(trail, replace(trail, y=trail.y + 9000)))
    image, flags, _ = expected(monkeypatch, exposure, detector, shape)
    found = TorchRenderer(shape).expose(exposure, detector)
    assert_same_light(found, image, flags, ends=2)
    for bit in (ccd.FLAG_BAD, ccd.FLAG_COSMIC_RAY, FLAG_TRAIL):
        assert (flags & bit).any()


def many_stars(scene, y, x, mag):
    """The scene with stars of its own kinds at other places."""
    stars = scene.stars.pick(np.arange(len(y)) % len(scene.stars))
    return replace(scene, stars=replace(stars, mag=mag), star_y=y, star_x=x)


def test_a_crowd_of_bright_stars_on_and_off_the_frame(monkeypatch, exposure):
    rng, n = np.random.default_rng(0), 6000
    places = rng.uniform(-48, 560, n), rng.uniform(-48, 688, n)
    scene = many_stars(draw_scene(exposure, G, SHAPE), *places, np.append(rng.uniform(15.5, 25, n - 3), [8, 10, 12]))
    use_scene(monkeypatch, scene)
    image, flags, _ = expected(monkeypatch, exposure, G, SHAPE)
    assert ((flags & ccd.FLAG_SATURATED) > 0).mean() > 0.01
    assert (flags & FLAG_GHOST).any()
    # charge is conserved over whole trails: their ends collect the rounding of all pixels that gave it
    assert_same_light(TorchRenderer(SHAPE).expose(exposure, G), image, flags, ends=30)


def test_large_bright_galaxies_on_and_off_the_frame(monkeypatch, exposure):
    scene, rng = draw_scene(exposure, I, SHAPE), np.random.default_rng(1)
    n = len(scene.galaxies)
    galaxies = replace(
        scene.galaxies, mag=rng.uniform(12, 26, n), radius=10 ** rng.uniform(-2, 1, n),
        bulge_radius=10 ** rng.uniform(-2, 0.7, n), bulge_fraction=rng.choice([0, 0.3, 1], n),
    )  # fmt: skip
    places = rng.uniform(-48, 560, n), rng.uniform(-48, 688, n)
    scene = replace(many_stars(scene, *np.empty((3, 0))), galaxies=galaxies, galaxy_y=places[0], galaxy_x=places[1])
    use_scene(monkeypatch, scene)
    exposure = replace(exposure, cosmic_rays=False, trails=(), ghosts=False, defects=False)
    image, flags, _ = expected(monkeypatch, exposure, I, SHAPE)
    found = TorchRenderer(SHAPE).expose(exposure, I)
    assert_same_light(found, image, flags, ends=3)
    reaches = group_galaxies(take_shot(exposure, I, SHAPE).galaxies, make_exposure_psf(exposure, I).mixture).stops
    assert reaches[-1] > reaches[-2]
    # the compiled exponential is too small by as much as that
    assert abs(found.image.sum(dtype=torch.float64) / image.sum(dtype=np.float64) - 1) < 3e-6


def test_the_size_of_batches_does_not_matter(exposure):
    shot = take_shot(exposure, G, SHAPE)
    images = []
    for batch in (30_000, 1 << 21):
        renderer = TorchRenderer((90, 70), batch=batch)
        images.append(renderer.paint(renderer.prepare(replace(shot, shape=(90, 70)))).image.clone())
    torch.testing.assert_close(*images, rtol=1e-5, atol=1e-4)


def test_groups_cover_everything_once():
    for total, size, batch in ((0, 5, 10), (7, 5, 10), (7, 50, 10)):
        parts = [k for s in groups_of(total, size, batch) for k in range(s.start, s.stop)]
        assert parts == list(range(total))
        assert all((s.stop - s.start) * size <= max(batch, size) for s in groups_of(total, size, batch))


@pytest.mark.parametrize("shape", [(64, 96), (37, 53), (10, 7)])
def test_the_glow_spreads_alike(shape):
    glow = np.random.default_rng(2).random((shape[0] // 16 + 2, shape[1] // 16 + 2), np.float32)
    frame = torch.ones(shape)
    add_glow(frame, torch.from_numpy(glow))
    np.testing.assert_allclose(frame.numpy(), 1 + expand_glow(glow, shape), rtol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_bleeding_equals_that_of_whole_frames(seed):
    rng, shape = np.random.default_rng(seed), (300, 120)
    image = (10 ** rng.uniform(0, 5.5, shape)).astype(np.float32) * (rng.random(shape) < 0.2)
    y, x = rng.uniform(0, 300, 60), rng.uniform(0, 120, 60)
    image[y.astype(int), x.astype(int)] = 10 ** rng.uniform(4, 7.5, 60)
    chosen = np.arange(60) % 7 > 0
    shot = SimpleNamespace(saturating=(y[chosen], x[chosen]), room=90_000.0)
    found, marks = torch.from_numpy(image.copy()), torch.zeros(shape, dtype=torch.int16)
    bleeding, flags = Bleeding(shape), np.zeros(shape, np.uint16)
    for _ in range(2):
        # again, since nothing may be left from the first time
        found.copy_(torch.from_numpy(image))
        bleeding.run(found, marks.zero_(), shot)
    ccd.bleed(image, flags, *shot.saturating, shot.room)
    np.testing.assert_array_equal(found.numpy(), image)
    np.testing.assert_array_equal(marks.numpy(), flags)
    assert flags.any()


def test_defects_equal_those_of_arrays_even_where_they_meet(exposure):
    model = ccd.DetectorModel(hot_pixels=40_000_000, dead_pixels=8_000_000)
    shot = replace(take_shot(exposure, G, (60, 50)), model=model)
    image = np.random.default_rng(3).random((60, 50), np.float32) * 100
    flags = np.zeros((60, 50), np.uint16)
    found, marks = torch.from_numpy(image.copy()), torch.zeros((60, 50), dtype=torch.int16)
    add_defects(found, marks, shot)
    rng = ccd.defect_rng(shot.seed, shot.detector)
    ccd.add_defects(image, flags, model, rng, shot.background, shot.exptime)
    np.testing.assert_allclose(found.numpy(), image, rtol=1e-6)
    np.testing.assert_array_equal(marks.numpy(), flags)


def test_the_noise_has_the_law_of_the_compiled_noise(monkeypatch, exposure):
    optics = replace(exposure.optics, gradient=(0.4, -0.3), read_noise=6.0)
    exposure = replace(exposure, optics=optics)
    _, _, how = expected(monkeypatch, exposure, G, SHAPE)
    shot = take_shot(exposure, G, SHAPE)
    light = np.where(np.arange(SHAPE[1]) < 320, 0, 2000).astype(np.float32) * np.ones(SHAPE, np.float32)
    light[:4] = 1e6
    plain = light.copy()
    chip = TorchChip(shot, torch.from_numpy(light.copy()), torch.zeros(SHAPE, dtype=torch.int16))
    found = TorchRenderer(SHAPE).observe(chip).image.numpy()
    observe(plain, **how)
    np.testing.assert_allclose(found[:4], plain[:4], rtol=3e-7)
    assert not np.array_equal(found[4:], plain[4:])
    for part in (np.s_[4:256, :320], np.s_[4:256, 320:], np.s_[256:, :320], np.s_[256:, 320:]):
        mine, other = found[part].ravel().astype(float), plain[part].ravel().astype(float)
        n = mine.size
        assert abs(mine.mean() - other.mean()) < 5 * np.sqrt(2 / n) * other.std()
        assert abs(mine.var() / other.var() - 1) < 5 * np.sqrt(4 / n)
        z = (mine - mine.mean()) / mine.std()
        assert abs((z**3).mean()) < 5 * np.sqrt(6 / n)
        assert abs((z**4).mean() - 3) < 5 * np.sqrt(24 / n) + 0.02


def test_noise_is_of_the_chip(exposure):
    renderer = TorchRenderer((120, 130))
    first = renderer.render(exposure, G).image.clone()
    torch.testing.assert_close(renderer.render(exposure, G).image, first, rtol=0, atol=0)
    frames = []
    for other in (replace(exposure, index=9), replace(exposure, seed=11)):
        chip = TorchChip(take_shot(other, G, (120, 130)), torch.zeros((120, 130)), first)
        frames.append(renderer.observe(chip).image)
    noise = torch.stack([(frame - frame.mean()).ravel() for frame in frames])
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 5 / np.sqrt(noise.shape[1])


def test_a_chip_on_the_host_is_the_compiled_chip_but_for_its_noise(exposure):
    found = TorchRenderer((96, 80)).render(exposure, I).to_host()
    other = compiled.Renderer((96, 80)).render(exposure, I)
    assert (found.n_star, found.n_bright, found.sky, found.fwhm) == (
        other.n_star, other.n_bright, other.sky, other.fwhm,
    )  # fmt: skip
    assert found.image.dtype == other.image.dtype
    np.testing.assert_array_equal(found.flags, other.flags)


def test_shots_survive_a_file(tmp_path, exposure):
    shape = (96, 80)
    shots = [take_shot(replace(exposure, trails=(Trail(1.0, 2.0, 0.3, 40.0, 2.0),)), d, shape) for d in (I, G)]
    save_shots(tmp_path / "shots.npz", shots)
    renderer = TorchRenderer(shape)
    for shot, read in zip(shots, load_shots(tmp_path / "shots.npz"), strict=True):
        assert replace(read, **dict.fromkeys(("psf", "y", "x", "flux", "galaxies"))) == replace(
            shot, **dict.fromkeys(("psf", "y", "x", "flux", "galaxies", "exposure", "scene"))
        )
        image = renderer.paint(renderer.prepare(shot)).image.clone()
        torch.testing.assert_close(renderer.paint(renderer.prepare(read)).image, image, rtol=0, atol=0)
        with pytest.raises(ValueError, match="no exposure"):
            renderer.paint(renderer.prepare(read)).to_host()


def test_a_shot_for_another_frame_is_refused(exposure):
    with pytest.raises(ValueError, match="this renderer draws \\(10, 20\\)"):
        TorchRenderer((10, 20)).prepare(take_shot(exposure, G, (64, 64)))


def imports_of(path: Path) -> set[str]:
    """Modules that a file imports when it is imported itself."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_rendering_and_reducing_need_numpy_numba_and_torch_alone():
    root = Path(csst_dask.__file__).parents[1]
    waiting = {"csst_dask.simulation.render_torch", "csst_dask.preprocess.measure_torch"}
    seen, outside = set(), set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for file in (root / name.replace(".", "/") / "__init__.py", (root / name.replace(".", "/")).with_suffix(".py")):
            if file.exists():
                found = imports_of(file) | {name.rpartition(".")[0] or name}
                waiting |= {other for other in found if other.startswith("csst_dask")} - seen
                outside |= {other.partition(".")[0] for other in found}
    assert outside - sys.stdlib_module_names == {"csst_dask", "numpy", "numba", "torch"}
