"""Are the bytes of a simulated chip the same whatever was rendered before it, in whichever thread?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from csst_dask.config import SimulationConfig
from csst_dask.simulation.check.finding import Finding, near
from csst_dask.simulation.exposure import Exposure
from csst_dask.simulation.renderer import Renderer
from csst_dask.simulation.survey import plan_survey

SHAPE = (512, 480)
Job = tuple[Exposure, int]
"""An exposure and one of its detectors."""
Digest = Callable[[Sequence[Job]], list[str]]
"""Renders jobs one after the other with one renderer; a digest of each."""


def render_digests(jobs: Sequence[Job]) -> list[str]:
    """SHA-256 of the pixels and flags of patches, rendered in turn into one pair of buffers."""
    renderer, digests = Renderer(SHAPE), []
    for exposure, detector in jobs:
        chip = renderer.render(exposure, detector)
        digests.append(hashlib.sha256(chip.image.tobytes() + chip.flags.tobytes()).hexdigest())
    return digests


def bytes_findings(jobs: Sequence[Job], digest: Digest = render_digests) -> list[Finding]:
    """Render jobs in order, in reverse, and divided among two threads that run at once.

    Parameters
    ----------
    jobs : sequence of (Exposure, int)
    digest : callable, optional
        The rendering.
    """
    order = digest(jobs)
    reverse = digest(jobs[::-1])[::-1]
    with ThreadPoolExecutor(2) as pool:
        odd, even = pool.map(digest, (jobs[1::2][::-1], jobs[::2]))
    threaded = [text for pair in zip(even, odd[::-1], strict=True) for text in pair]
    return [
        near("patches that the order changes", sum(a != b for a, b in zip(order, reverse, strict=True)), 0, 0),
        near("patches that two threads change", sum(a != b for a, b in zip(order, threaded, strict=True)), 0, 0),
        near("different patches", len(set(order)), len(jobs), 0, "no two chips are alike"),
    ]


def sample_jobs() -> list[Job]:
    """Patches in four bands of a sparse and a crowded exposure."""
    config = SimulationConfig(seed=5, exposures=2, region="demo", star_counts=(20_000, 300_000), detectors=(8, 9, 7, 6))
    return [(exposure, detector) for exposure in plan_survey(config) for detector in exposure.detectors]


def check_bytes(folder: Path | None = None) -> list[Finding]:
    """Eight patches, three times over; draws no picture."""
    return bytes_findings(sample_jobs())
