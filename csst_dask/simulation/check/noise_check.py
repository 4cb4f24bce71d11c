"""The noise of simulated frames: its variance against the mean, its shape, and its independence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csst_dask.simulation.check.figure import ACCENT, INK, QUIET, new_figure, save_figure
from csst_dask.simulation.check.finding import Finding, below, near
from csst_dask.simulation.detector import DetectorModel
from csst_dask.simulation.noise import observe

SIZE = 1024
EXPTIME = 150.0
LEVELS = (0.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 6e4, 8.5e4)
"""Electrons in a pixel; the last is as near to the full well as the noise leaves unclipped."""

Observe = Callable[[float, int], NDArray[np.float64]]
"""From a level in electrons and the number of an exposure to an image in electrons."""


def observe_flat(level: float, exposure: int) -> NDArray[np.float64]:
    """An exposure of an even light source by the simulator.

    Parameters
    ----------
    level : float
        Electrons per pixel.
    exposure : int
        Equal numbers give equal noise.

    Returns
    -------
    (`SIZE`, `SIZE`) float64 array
        Electrons, dark current subtracted.
    """
    model, frame = DetectorModel(), np.full((SIZE, SIZE), level, np.float32)
    key = np.random.SeedSequence(exposure).generate_state(2)
    observe(
        frame,
        sky=0.0,
        gradient=(0.0, 0.0),
        dark=model.dark * EXPTIME,
        read_noise=model.read_noise,
        exptime=EXPTIME,
        full_well=model.full_well,
        key=(int(key[0]), int(key[1])),
    )
    return frame.astype(np.float64) * EXPTIME


def expected_variance(level: NDArray[np.float64]) -> NDArray[np.float64]:
    """Poisson variance of light and dark current, plus read noise; electron2."""
    model = DetectorModel()
    return level + model.dark * EXPTIME + model.read_noise**2


def mean_variance(draw: Observe = observe_flat) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of an exposure and half the variance of the difference of two, at each of `LEVELS`.

    The difference removes whatever two exposures share, as in the measurement of a real detector.

    Returns
    -------
    mean, variance : (n,) float64 array
        electron, electron2.
    """
    pairs = [(draw(level, 2 * k + 1), draw(level, 2 * k + 2)) for k, level in enumerate(LEVELS)]
    mean = np.array([0.5 * (a.mean() + b.mean()) for a, b in pairs])
    return mean, np.array([0.5 * (a - b).var() for a, b in pairs])


def variance_findings(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> list[Finding]:
    """The photon transfer curve against the law, and the gain and the read noise that a fit to it gives."""
    level = np.array(LEVELS)
    law = expected_variance(level)
    error = np.sqrt(2) / SIZE
    worst = float(np.abs(variance / law - 1).max())
    bias = float((np.abs(mean - level) / np.sqrt(law)).max())
    slope, intercept = np.polyfit(level, variance, 1, w=1 / law)
    model = DetectorModel()
    read = float(np.sqrt(max(intercept - model.dark * EXPTIME, 0)))
    text = (
        f"largest relative difference from 0 to {level[-1]:.0f} e-; one standard deviation of a sample is {error:.4f}"
    )
    return [
        below("variance against mean", worst, 0.01, text),
        below("mean level, in standard deviations of a pixel", bias, 0.005, "bias of the noise"),
        near("slope of variance on mean", float(slope), 1.0, 0.01, "1 if values are in electrons"),
        near("read noise from the intercept, e-", read, model.read_noise, 0.05, "electron"),
    ]


def shape_findings(first: NDArray[np.float64], second: NDArray[np.float64]) -> list[Finding]:
    """Is the noise of two exposures of one flat Gaussian, and independent from pixel to pixel and between them?

    Parameters
    ----------
    first, second : (ny, nx) float64 array
    """
    z = (first - first.mean()) / first.std()
    other = (second - second.mean()) / second.std()
    half = z.shape[1] // 2
    shifted = {
        "next column": (z[:, 1:], z[:, :-1]),
        "next row": (z[1:], z[:-1]),
        "diagonal": (z[1:, 1:], z[:-1, :-1]),
        "half a row apart": (z[:, :half], z[:, half : 2 * half]),
        "another exposure": (z, other),
    }
    linear = {name: float((a * b).mean()) for name, (a, b) in shifted.items()}
    squares = {name: float(((a**2 - 1) * (b**2 - 1)).mean() / 2) for name, (a, b) in shifted.items()}
    limit = 5 / np.sqrt(half * z.shape[0])
    worst, twisted = max(linear, key=lambda k: abs(linear[k])), max(squares, key=lambda k: abs(squares[k]))
    beyond = float((np.abs(z) > 3).mean())
    return [
        below("skewness", float((z**3).mean()), 0.02, f"{z.size} pixels"),
        below("excess kurtosis", float((z**4).mean() - 3), 0.04),
        near("pixels beyond 3 sigma, %", 100 * beyond, 0.26998, 0.03, "2 (1 - Phi(3))"),
        below("correlation of pixels", linear[worst], limit, f"largest of {len(shifted)}: {worst}"),
        below("correlation of squares", squares[twisted], limit, f"largest of {len(shifted)}: {twisted}"),
    ]


def _draw(path: Path, mean: NDArray, variance: NDArray, image: NDArray) -> None:
    figure, axes = new_figure(1, 2, (8.6, 3.4))
    level, curve = np.array(LEVELS), np.geomspace(1, 1e5, 100)
    left, right = axes[0]
    left.loglog(curve, expected_variance(curve), color=QUIET, lw=3, alpha=0.7, label="level + dark + read noise²")
    left.loglog(np.maximum(mean, 1), variance, "o", color=ACCENT, ms=4, label="simulated frames")
    left.set(xlabel="mean, e-  (0 drawn at 1)", ylabel="variance, e-²")
    left.legend(fontsize=8, frameon=False)
    worst = np.abs(variance / expected_variance(level) - 1).max()
    left.set_title(f"Mean and variance; largest difference {100 * worst:.2f} %", fontsize=9, loc="left")
    z = (image - image.mean()) / image.std()
    right.hist(z.ravel(), np.linspace(-5, 5, 101), density=True, color=QUIET, label="simulated frame")
    axis = np.linspace(-5, 5, 201)
    right.semilogy(axis, np.exp(-0.5 * axis**2) / np.sqrt(2 * np.pi), color=INK, lw=1, label="Gaussian")
    right.set(xlabel="deviation, sigma", ylabel="density", ylim=(1e-6, 1))
    right.legend(fontsize=8, frameon=False)
    right.set_title("Distribution of pixels at 30 e-", fontsize=9, loc="left")
    save_figure(figure, path)


def check_noise(folder: Path | None = None, draw: Observe = observe_flat) -> list[Finding]:
    """Noise of flat exposures; with a folder, also ``noise.png`` in it.

    Parameters
    ----------
    folder : Path, optional
    draw : callable, optional
        Makes the exposures.
    """
    mean, variance = mean_variance(draw)
    first, second = draw(30.0, 101), draw(30.0, 102)
    if folder is not None:
        _draw(folder / "noise.png", mean, variance, first)
    return variance_findings(mean, variance) + shape_findings(first, second)
