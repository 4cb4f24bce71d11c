import sys
import time

import numpy as np
import pytest

from csst_dask.errors import ConfigError
from csst_dask.evaluation.calibration import apply_calibration, fit_calibration
from csst_dask.evaluation.classical import COUNTS, count_sources
from csst_dask.instrument.focal_plane import BAND_TABLE
from csst_dask.schema import BANDS, Mask, density_class

SKY, NOISE, EXPTIME = 0.16, 0.045, 150.0
BRIGHT_FLUX = 10 ** (0.4 * (BAND_TABLE["g"].zero_point - 23.5))


def moffat(radius, fwhm=1.9, beta=3.5):
    """Light per square pixel of a round source of light one."""
    alpha = fwhm / 2 / np.sqrt(2 ** (1 / beta) - 1)
    return (beta - 1) / (np.pi * alpha**2) * (1 + (radius / alpha) ** 2) ** -beta


def frame(x, y, flux, shape=(500, 480), fwhm=1.9, seed=0):
    """Sources on a noisy sky, each pixel integrated over 5 x 5 points."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape)
    for cx, cy, light, width in zip(x, y, flux, np.broadcast_to(fwhm, np.shape(x)), strict=True):
        half = int(5 * width) + 3
        x0, y0 = round(cx) - half, round(cy) - half
        points = (np.arange(5 * (2 * half + 1)) + 0.5) / 5 - 0.5
        radius = np.hypot(points + x0 - cx, (points + y0 - cy)[:, None])
        stamp = light * moffat(radius, width).reshape(2 * half + 1, 5, 2 * half + 1, 5).mean(axis=(1, 3))
        rows, columns = (slice(max(0, at), max(0, at + 2 * half + 1)) for at in (y0, x0))
        inside = image[rows, columns]
        inside += stamp[max(0, -y0) :, max(0, -x0) :][: inside.shape[0], : inside.shape[1]]
    variance = NOISE**2 + image / EXPTIME
    return (SKY + image + np.sqrt(variance) * rng.normal(size=shape)).astype(np.float32)


def scattered(n, shape=(500, 480), seed=3, gap=20):
    """Places that lie apart."""
    rng = np.random.default_rng(seed)
    cells = np.stack(np.meshgrid(np.arange(15, shape[1] - 15, gap), np.arange(15, shape[0] - 15, gap)), -1).reshape(
        -1, 2
    )
    chosen = cells[rng.choice(len(cells), n, replace=False)] + rng.uniform(-3, 3, (n, 2))
    return chosen[:, 0], chosen[:, 1], rng


def good(shape=(500, 480)):
    return np.zeros(shape, np.uint8)


@pytest.fixture(scope="module")
def stars():
    x, y, rng = scattered(300)
    flux = 10 ** rng.uniform(1.2, 2.5, 300)
    return x, y, flux, frame(x, y, flux)


def test_stars_of_an_uncrowded_frame_are_all_found(stars):
    _, _, flux, image = stars
    found = count_sources(image, good(), EXPTIME, "g")
    assert found["stars_20"] == pytest.approx(300, rel=0.03)
    assert found["sources_20"] == pytest.approx(300, rel=0.03)
    assert found["bright"] == pytest.approx(np.sum(0.9 * flux > BRIGHT_FLUX), rel=0.05)
    assert set(found) == {*COUNTS, "ratio"}
    assert all(type(value) is float for value in found.values())


def test_flips_change_nothing_to_speak_of(stars):
    image = stars[3]
    straight = count_sources(image, good(), EXPTIME, "g")
    for turned in (image[::-1], image[:, ::-1], image.T):
        found = count_sources(turned, good(turned.shape), EXPTIME, "g")
        for name in ("stars_20", "stars_50", "sources_20", "bright"):
            assert found[name] == pytest.approx(straight[name], rel=0.02, abs=1)


def test_tiles_count_nothing_twice_and_lose_nothing(stars, monkeypatch):
    whole = count_sources(stars[3], good(), EXPTIME, "g")
    monkeypatch.setattr("csst_dask.evaluation.classical.TILE", 130)
    tiled = count_sources(stars[3], good(), EXPTIME, "g")
    for name in ("stars_20", "sources_20", "stars_50"):
        assert tiled[name] == pytest.approx(whole[name], rel=0.02)


def test_what_is_masked_is_not_counted(stars):
    x, _, _, image = stars
    mask = good()
    mask[:, :240] = Mask.BAD
    found = count_sources(image, mask, EXPTIME, "g")
    assert found["stars_20"] == pytest.approx(np.sum(x > 240), rel=0.04)
    ghost = count_sources(image, np.full_like(mask, Mask.GHOST), EXPTIME, "g")
    assert ghost == count_sources(image, good(), EXPTIME, "g")
    torn = image.copy()
    torn[:, :240] = np.nan
    assert count_sources(torn, good(), EXPTIME, "g")["stars_20"] == found["stars_20"]


def test_galaxies_are_sources_but_not_stars():
    x, y, rng = scattered(300)
    galaxy = np.arange(300) % 2 == 0
    image = frame(x, y, 10 ** rng.uniform(1.8, 2.6, 300), fwhm=np.where(galaxy, 5.0, 1.9))
    found = count_sources(image, good(), EXPTIME, "g")
    assert found["stars_20"] == pytest.approx(150, rel=0.05)
    assert found["sources_20"] == pytest.approx(300, rel=0.05)


def test_a_saturated_star_is_one_star():
    image = frame([240.3, 100.2], [250.1, 90.4], [1e5, 100.0])
    mask = good()
    mask[image > 300] = Mask.SATURATED
    mask[200:300, 240] = Mask.SATURATED
    image[mask > 0] = 300
    found = count_sources(image, mask, EXPTIME, "g")
    assert found["saturated"] == 1
    assert found["stars_5"] == 2
    assert found["sources_10"] == 2
    assert found["bright"] == 2


@pytest.mark.parametrize("shape", [(64, 64), (300, 40)])
def test_empty_frames_have_no_star(shape):
    none = dict.fromkeys(COUNTS, 0.0)
    for image in (np.zeros(shape, np.float32), np.full(shape, np.nan, np.float32)):
        found = count_sources(image, good(shape), EXPTIME, "g")
        assert {name: found[name] for name in COUNTS} == none
    found = count_sources(frame([], [], [], shape), good(shape), EXPTIME, "g")
    assert found["sources_10"] == found["stars_10"] == found["bright"] == found["saturated"] == 0
    hidden = np.full(shape, Mask.NOT_OBSERVED, np.uint8)
    assert count_sources(np.ones(shape, np.float32), hidden, EXPTIME, "g")["sources_5"] == 0


def test_a_frame_of_touching_stars_takes_bounded_time_and_counts_many():
    rng = np.random.default_rng(0)
    shape = (600, 600)
    light = np.zeros(shape)
    np.add.at(light, tuple(rng.integers(0, 600, (2, 12000))), 10 ** rng.exponential(0.5, 12000))
    grid = np.hypot(*np.mgrid[-15:16, -15:16])
    kernel = np.zeros(shape)
    kernel[:31, :31] = moffat(grid)
    image = np.fft.irfft2(np.fft.rfft2(light) * np.fft.rfft2(kernel), shape) + SKY
    image = (image + NOISE * rng.normal(size=shape)).astype(np.float32)
    start = time.process_time()
    found = count_sources(image, good(shape), EXPTIME, "g")
    assert time.process_time() - start < 10
    assert found["sources_5"] > 3000


def fields(n=140, seed=0):
    """Counts as extraction might give them: incomplete by band, and with galaxies among them."""
    rng = np.random.default_rng(seed)
    band = np.array(BANDS)[rng.integers(0, 7, n)]
    density = rng.uniform(1, 5, n)
    seen = np.array([0.1 + 0.1 * BANDS.index(name) for name in band])
    share = np.array([0.8, 0.6, 0.4, 0.2, 0.05])
    stars = 10 ** density[:, None] * seen[:, None] * share
    counts = [
        {f"stars_{limit}": s for limit, s in zip((5, 10, 20, 50, 200), row, strict=True)}
        | {f"sources_{limit}": s + 500 for limit, s in zip((5, 10, 20, 50, 200), row, strict=True)}
        | {"bright": row[3], "saturated": row[4]}
        for row in rng.poisson(stars).astype(float)
    ]
    return counts, band, np.rint(10**density), np.rint(0.3 * 10**density)


def test_calibration_makes_up_for_what_is_not_seen():
    counts, band, n_star, n_bright = fields()
    calibration = fit_calibration(counts[:100], band[:100], n_star[:100], n_bright[:100])
    found = apply_calibration(calibration, counts[100:], band[100:])
    assert np.abs(found["log_star"] - np.log10(1 + n_star[100:])).mean() < 0.06
    assert np.abs(found["log_bright"] - np.log10(1 + n_bright[100:])).mean() < 0.06
    assert np.mean(found["density_class"] == density_class(n_star[100:])) > 0.9


def test_calibration_answers_frames_one_by_one():
    counts, band, n_star, n_bright = fields(60)
    calibration = fit_calibration(counts, band, n_star, n_bright)
    order = np.random.default_rng(1).permutation(60)
    straight = apply_calibration(calibration, counts, band)
    turned = apply_calibration(calibration, [counts[i] for i in order], band[order])
    for name, values in straight.items():
        np.testing.assert_allclose(turned[name], values[order], atol=1e-5)
    refitted = fit_calibration([counts[i] for i in order], band[order], n_star[order], n_bright[order])
    np.testing.assert_allclose(apply_calibration(refitted, counts, band)["log_star"], straight["log_star"], atol=1e-5)


def test_noise_teaches_the_mean():
    counts, band, *_ = fields(60)
    rng = np.random.default_rng(5)
    truth = rng.integers(90, 111, 60)
    found = apply_calibration(fit_calibration(counts, band, truth, truth), counts, band)
    assert np.abs(found["log_star"] - np.log10(1 + truth).mean()).max() < 0.05


def test_what_cannot_be_is_named(monkeypatch):
    image = np.zeros((32, 32), np.float32)
    with pytest.raises(ValueError, match="alike"):
        count_sources(image, good((16, 16)), EXPTIME, "g")
    with pytest.raises(ConfigError, match="unknown band"):
        count_sources(image, good((32, 32)), EXPTIME, "w")
    with pytest.raises(ConfigError, match="exposure time"):
        count_sources(image, good((32, 32)), float("nan"), "g")
    counts, band, n_star, n_bright = fields(20)
    with pytest.raises(ConfigError, match="at least 10"):
        fit_calibration(counts[:5], band[:5], n_star[:5], n_bright[:5])
    with pytest.raises(ValueError, match="known"):
        fit_calibration(counts, band, n_star, n_bright - 1e6)
    with pytest.raises(ValueError, match="missing counts: stars_10"):
        apply_calibration(fit_calibration(counts, band, n_star, n_bright), [{"stars_5": 1.0}], ["g"])
    monkeypatch.setitem(sys.modules, "sep", None)
    with pytest.raises(ConfigError, match=r"csst_dask\[evaluate\]"):
        count_sources(image, good((32, 32)), EXPTIME, "g")
