"""The fidelity checks pass on the simulator, and each of them fails on a simulator that is wrong."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from csst_dask.errors import ConfigError
from csst_dask.instrument.focal_plane import BAND_TABLE
from csst_dask.simulation.check import (
    bleed_check,
    bytes_check,
    counts_check,
    depth_check,
    galaxy_check,
    noise_check,
    psf_check,
    report,
)
from csst_dask.simulation.check.finding import Finding, load_package, near
from csst_dask.simulation.check.published import PUBLISHED, positions
from csst_dask.simulation.psf import STAMP_RADII, make_psf

G = BAND_TABLE["g"]


def failed(findings):
    return [finding.name for finding in findings if not finding.passed]


def renormalised(psf):
    """Stamps that sum to one, as if no light fell outside of them."""
    stamps = psf.stamps.copy()
    centre = STAMP_RADII[-1]
    inner = slice(centre - STAMP_RADII[0], centre + STAMP_RADII[0] + 1)
    return replace(psf, stamps=stamps / stamps[:, :, inner, inner].sum((2, 3), keepdims=True))


def bahcall_soneira(l, b, band, limits):
    """Stars per square degree brighter than V (1980, ApJS 44, 73, eq. B1), as if every band were V."""
    m, l, b = np.asarray(limits, float), np.deg2rad(l), max(np.deg2rad(abs(b)), 0.05)
    bright = np.clip(m, 12, 20)
    mu, gamma = 0.0075 * (bright - 12) + 0.03, 0.36 - 0.04 * (bright - 12)
    disc = 925 * 10 ** (0.035 * (m - 15.75)) / (1 + 10 ** (-0.132 * (m - 15.75))) ** 3
    halo = 1050 * 10 ** (0.087 * (m - 17.5)) / (1 + 10 ** (-0.18 * (m - 17.5))) ** 2.5
    slant = np.sin(b) * (1 - mu / np.tan(b) * np.cos(l))
    away = 1 - np.cos(b) * np.cos(l)
    return disc / slant ** (3 - 5 * gamma) + halo / away ** (1.45 - 0.2 * np.cos(b) * np.cos(l))


class TestPsf:
    def test_stars_agree_with_galsim(self):
        findings = psf_check.star_findings(make_psf(G.wavelength, 0.1225), G.wavelength, 0.1225, "g", places=12)
        core = [f for f in findings if "centroid" in f.name or "within" in f.name]
        assert len(core) == 2 + len(STAMP_RADII)
        assert failed(core) == []
        assert failed(f for f in findings if "wings" in f.name) == []

    def test_renormalised_stamps_are_found_out(self):
        psf = renormalised(make_psf(G.wavelength, 0.1225))
        wrong = failed(psf_check.star_findings(psf, G.wavelength, 0.1225, "g", places=12))
        assert any("flux within 4 px" in name for name in wrong)

    def test_a_shift_of_a_tenth_of_a_pixel_is_found_out(self):
        psf = make_psf(G.wavelength, 0.1225)
        shifted = replace(psf, stamps=np.roll(psf.stamps, 2, axis=1))
        assert "g: centroid, px" in failed(psf_check.star_findings(shifted, G.wavelength, 0.1225, "g", places=12))


class TestGalaxies:
    def test_galaxies_agree_with_galsim(self):
        assert failed(galaxy_check.check_galaxies()) == []

    def test_missing_light_is_found_out(self):
        wrong = failed(galaxy_check.check_galaxies(draw=lambda shape, psf: 0.95 * galaxy_check.draw_ours(shape, psf)))
        assert len(wrong) == len(galaxy_check.SHAPES)
        assert all("flux" in name for name in wrong)

    def test_wrong_size_and_orientation_are_found_out(self):
        def draw(shape, psf):
            return galaxy_check.draw_ours(replace(shape, radius=1.15 * shape.radius, angle=-shape.angle), psf)

        wrong = failed(galaxy_check.check_galaxies(draw=draw))
        assert {"inclined disc: ellipticity", "inclined disc: half-light radius"} <= set(wrong)
        assert "disc: ellipticity" not in wrong


class TestNoise:
    def test_noise_of_the_simulator(self):
        assert failed(noise_check.check_noise()) == []

    def test_wrong_gain_is_found_out(self):
        wrong = failed(noise_check.check_noise(draw=lambda *a: 1.1 * noise_check.observe_flat(*a)))
        assert {"variance against mean", "slope of variance on mean"} <= set(wrong)

    def test_wrong_read_noise_is_found_out(self):
        rng = np.random.default_rng(1)

        def draw(level, exposure):
            image = noise_check.observe_flat(level, exposure)
            return image + rng.normal(0, 1.5, image.shape)

        wrong = failed(noise_check.variance_findings(*noise_check.mean_variance(draw)))
        assert {"variance against mean", "read noise from the intercept, e-"} <= set(wrong)

    def test_smeared_and_skewed_noise_are_found_out(self):
        first, second = (noise_check.observe_flat(30.0, k) for k in (1, 2))
        smeared = first + 0.02 * np.roll(first, 1, axis=1)
        assert failed(noise_check.shape_findings(smeared, second)) == ["correlation of pixels"]
        assert "correlation of pixels" in failed(noise_check.shape_findings(first, first))
        assert "skewness" in failed(noise_check.shape_findings(first + 0.01 * (first - 30) ** 2, second))


class TestBleed:
    def test_charge_is_conserved(self):
        assert failed(bleed_check.check_bleed()) == []

    def test_lost_and_misplaced_charge_are_found_out(self):
        before, _, _ = bleed_check.saturated_field(bleed_check.FIELD)
        flags = np.where(before >= 9e4, 8, 0).astype(np.uint16)
        capped = np.minimum(before, np.float32(9e4))
        wrong = failed(bleed_check.bleed_findings(before, capped, flags, 0.0, 9e4))
        assert [name.split(",")[0] for name in wrong] == [
            "charge after bleeding",
            "charge that changes its column",
        ]
        assert len(failed(bleed_check.bleed_findings(before, np.roll(before, 3, axis=1), flags, 0.0, 9e4))) == 3


class TestDepth:
    @pytest.mark.parametrize("band", ["u", "i"])
    def test_depth_is_the_published_one(self, band):
        assert failed(depth_check.check_depth(bands=(band,))) == []

    def test_half_the_exposure_time_is_found_out(self):
        short = depth_check.depth(BAND_TABLE["i"], exptime=75.0)
        assert failed(depth_check.depth_findings({"i": short})) == ["5 sigma depth in i, AB mag"]


class TestCounts:
    def test_published_figures_follow_from_the_formula_that_they_cite(self):
        rows = [row for row in PUBLISHED if row.source.startswith("Bahcall & Soneira")]
        assert len(rows) >= 9
        for row in rows:
            assert bahcall_soneira(row.l, row.b, "V", [row.limit])[0] == pytest.approx(row.n_per_deg2, rel=1e-3)

    def test_gaia_figures_follow_from_the_counts_that_they_cite(self):
        area = np.pi * np.array([5.0, 0.5]) ** 2
        density = {row.place: row.n_per_deg2 for row in PUBLISHED}
        found = [density["l 260, b -60"], density["l 330, b -4"]]
        np.testing.assert_allclose(found, np.array([250_092, 456_142]) / area, rtol=1e-3)

    def test_areas_lie_where_they_should(self):
        from astropy.coordinates import SkyCoord

        l, b = positions(next(row for row in PUBLISHED if row.place == "stripe"))
        sky = SkyCoord(l, b, unit="deg", frame="galactic").icrs
        assert np.abs(sky.dec.deg).max() < 1e-3
        assert ((np.abs(b) > 49) & (np.abs(b) < 64)).all()
        _, b = positions(next(row for row in PUBLISHED if row.place == "all sky"))
        assert np.sin(np.deg2rad(b)).mean() == pytest.approx(0, abs=1e-9)
        assert (np.abs(b) < 30).mean() == pytest.approx(0.5, abs=0.01)

    def test_the_model_agrees_with_the_literature_and_a_wrong_one_does_not(self):
        directions = [row for row in PUBLISHED if row.band == "V"]
        assert failed(counts_check.published_findings(bahcall_soneira, directions)) == []
        doubled = counts_check.published_findings(lambda *a: 2 * bahcall_soneira(*a), directions)
        assert len(failed(doubled)) == len(directions)

    def test_most_counts_of_the_galaxy_model_are_the_published_ones(self):
        directions = [row for row in PUBLISHED if np.isfinite(row.l)]
        findings = counts_check.published_findings(published=directions)
        assert len(failed(findings)) <= len(findings) // 4, failed(findings)

    def test_regions_pass_inside_the_range_of_the_paper_alone(self):
        low, high = counts_check.REGIONS["galactic_center"].n_star
        inside = counts_check.region_findings({"galactic_center": np.geomspace(low, high, 9)})
        beyond = counts_check.region_findings({"galactic_center": np.geomspace(2 * high, 4 * high, 9)})
        assert (failed(inside), len(failed(beyond))) == ([], 1)


class TestBytes:
    def test_order_and_threads_do_not_matter(self):
        assert failed(bytes_check.check_bytes()) == []

    def test_a_state_that_is_carried_from_chip_to_chip_is_found_out(self):
        jobs = bytes_check.sample_jobs()

        def digest(some):
            return [f"{exposure.index} {detector} {number}" for number, (exposure, detector) in enumerate(some)]

        assert len(failed(bytes_check.bytes_findings(jobs, digest))) == 2
        assert failed(bytes_check.bytes_findings(jobs, lambda some: ["same"] * len(some))) == ["different patches"]


class TestReport:
    def test_report_shows_every_finding_and_its_pictures(self, tmp_path):
        heard = []
        sections = [s for s in report.SECTIONS if s.title == "Saturation"]
        findings = report.run_checks(tmp_path / "new", heard.append, sections)
        text = (tmp_path / "new" / "fidelity.md").read_text()
        assert heard == ["Saturation", "Gallery"]
        assert all(finding.name in text for finding in findings)
        for name in ("bleed.png", "gallery.png"):
            assert f"({name})" in text
            assert (tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG")

    def test_report_names_what_failed(self):
        findings = [near("good | bad", 1.0, 1.0, 0.1), Finding("wrong", np.nan, 0.0, 1.0, False, "why")]
        text = report.write_report([(report.SECTIONS[0], findings)])
        assert "1 of 2 comparisons pass" in text
        assert "* wrong: nan (why)" in text
        assert "| pass | good \\| bad | 1 | 1 | 0.1 |" in text
        assert "| **FAIL** | wrong |" in text

    def test_a_number_that_is_not_one_never_passes(self):
        assert not near("n", np.nan, 0.0, 1e9).passed

    def test_a_missing_package_names_the_extra(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "galsim", None)
        with pytest.raises(ConfigError, match=r"csst_dask\[check\]"):
            report.run_checks(tmp_path / "never")
        assert not (tmp_path / "never").exists()
        with pytest.raises(ConfigError, match="galsim"):
            load_package("galsim")

    def test_importing_the_report_needs_neither_galsim_nor_sep(self):
        code = "import sys; sys.modules['galsim'] = sys.modules['sep'] = None; import csst_dask.simulation.check.report"
        subprocess.run([sys.executable, "-c", code], check=True)
