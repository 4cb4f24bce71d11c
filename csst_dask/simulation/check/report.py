"""The fidelity report: every check, its numbers and its pictures, in one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from csst_dask.simulation.check.bleed_check import check_bleed
from csst_dask.simulation.check.bytes_check import check_bytes
from csst_dask.simulation.check.counts_check import check_counts
from csst_dask.simulation.check.depth_check import check_depth
from csst_dask.simulation.check.finding import Finding, load_package
from csst_dask.simulation.check.galaxy_check import check_galaxies
from csst_dask.simulation.check.gallery import draw_gallery
from csst_dask.simulation.check.noise_check import check_noise
from csst_dask.simulation.check.psf_check import check_psf


@dataclass(frozen=True)
class Section:
    """A chapter of the report."""

    title: str
    check: Callable[[Path | None], list[Finding]]
    pictures: tuple[str, ...]
    text: str


SECTIONS = (
    Section("Stars", check_psf, ("psf.png",),
            "Stars at random sub-pixel places, drawn with each stamp size, against GalSim with the same profile."),
    Section("Galaxies", check_galaxies, ("galaxies.png",),
            "Sersic profiles behind the same seeing, against GalSim. The simulator adds up Gaussians."),
    Section("Noise", check_noise, ("noise.png",),
            "Pairs of flat exposures from no light to the full well, as in the photon transfer curve of a detector."),
    Section("Saturation", check_bleed, ("bleed.png",),
            "Charge above the full well runs along columns; it is neither made nor lost."),
    Section("Depth", check_depth, ("depth.png",),
            "Aperture photometry with SEP on the mean of the wide survey's exposures, against the published limits: "
            "the depth is the magnitude at which fluxes in 0.15 arcsec scatter by a fifth of their mean."),
    Section("Star counts", check_counts, ("counts.png", "regions.png"),
            "The Galaxy model against the literature (the ratio may reach 1 + tolerance, either way) and against the "
            "ranges of stars per detector in Table 1 of Lai et al. (2026)."),
    Section("Reproducibility", check_bytes, (),
            "The pixels of a chip do not depend on what was rendered before, nor on the thread."),
)  # fmt: skip
"""In the order of the report."""

Progress = Callable[[str], None]


def run_checks(folder: Path, progress: Progress | None = None, sections: Sequence[Section] = SECTIONS) -> list[Finding]:
    """Run every check and write ``fidelity.md`` and its pictures.

    Parameters
    ----------
    folder : Path
        Made if need be; files in it are overwritten.
    progress : callable, optional
        Told the title of each section before it runs.
    sections : sequence of Section, optional
        Fewer of them.

    Returns
    -------
    list of Finding

    Raises
    ------
    ConfigError
        If GalSim or SEP is not installed; before any check runs.
    """
    for name in ("galsim", "sep"):
        load_package(name)
    folder.mkdir(parents=True, exist_ok=True)
    found: list[tuple[Section, list[Finding]]] = []
    for section in sections:
        if progress is not None:
            progress(section.title)
        found.append((section, section.check(folder)))
    if progress is not None:
        progress("Gallery")
    draw_gallery(folder / "gallery.png")
    (folder / "fidelity.md").write_text(write_report(found), encoding="utf-8")
    return [finding for _, findings in found for finding in findings]


def write_report(found: Sequence[tuple[Section, list[Finding]]]) -> str:
    """The report as Markdown."""
    every = [finding for _, findings in found for finding in findings]
    failed = [finding for finding in every if not finding.passed]
    lines = ["# Fidelity of the simulator", "", f"{len(every) - len(failed)} of {len(every)} comparisons pass."]
    if failed:
        lines += ["", "These do not:", ""]
        lines += [f"* {finding.name}: {_number(finding.measured)} ({finding.text})" for finding in failed]
    for section, findings in found:
        lines += ["", f"## {section.title}", "", section.text, ""]
        lines += [f"![{section.title}]({name})\n" for name in section.pictures]
        lines += _table(findings)
    lines += [
        "",
        "## Gallery",
        "",
        "Pieces of simulated chips, each on its own stretch.",
        "",
        "![Gallery](gallery.png)",
    ]
    return "\n".join(lines) + "\n"


def _table(findings: Sequence[Finding]) -> list[str]:
    rows = ["| | comparison | measured | expected | tolerance | |", "|---|---|---:|---:|---:|---|"]
    for f in findings:
        numbers = " | ".join(_number(value) for value in (f.measured, f.expected, f.tolerance))
        name, text = (value.replace("|", "\\|") for value in (f.name, f.text))
        rows.append(f"| {'pass' if f.passed else '**FAIL**'} | {name} | {numbers} | {text} |")
    return rows


def _number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return f"{value:.5g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:.2e}"
