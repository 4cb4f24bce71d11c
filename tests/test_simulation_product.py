"""Every product of a chip reads back to the same pixels, the same astrometry and the same star counts."""

from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits

from csst_dask.errors import ChipRejected
from csst_dask.instrument import detector_wcs
from csst_dask.instrument.distortion import DISTORTION, sky_to_pixel
from csst_dask.io import TRUTH_COLUMNS, discover, read_detector
from csst_dask.io.truth import read_truth
from csst_dask.schema import BRIGHT_LIMIT, MAGNITUDES
from csst_dask.simulation.catalogue import Galaxies, Stars
from csst_dask.simulation.detector import DetectorModel
from csst_dask.simulation.product import chip_info, expected_files, write_chip
from csst_dask.simulation.truth_table import galaxy_mass, truth_columns

SHAPE = (92, 96)
N_STAR, N_GALAXY = 400, 150
DETECTOR, BAND = 25, "y"
COLUMNS = (*TRUTH_COLUMNS, "counted")
DEPTH = 25.25


def make_exposure(distortion=0.0, index=3):
    start = datetime(2027, 8, 10, 8, index)
    return SimpleNamespace(
        index=index, obs_id=f"1000000100000{index}", start=start, exptime=150.0, ra=120.5, dec=-30.25, theta=31.0,
        field="sim1-3", seed=1, mjd=61627.3, distortion=distortion, times=("20270810080000", "20270810080230"),
    )  # fmt: skip


def sky(exposure, x, y):
    wcs = detector_wcs(DETECTOR, exposure.ra, exposure.dec, exposure.theta, exposure.distortion)
    ra, dec = wcs.all_pix2world(x + 0.5, y + 0.5, 1)
    return np.mod(ra, 360), dec


def make_chip(distortion=0.0, n_star=N_STAR, n_galaxy=N_GALAXY, index=3):
    rng, exposure = np.random.default_rng(7), make_exposure(distortion, index)
    sy, gy = rng.uniform(0, SHAPE[0], n_star), rng.uniform(0, SHAPE[0], n_galaxy)
    sx, gx = rng.uniform(0, SHAPE[1], n_star), rng.uniform(0, SHAPE[1], n_galaxy)
    (star_ra, star_dec), (galaxy_ra, galaxy_dec) = sky(exposure, sx, sy), sky(exposure, gx, gy)
    mag = rng.uniform(18, 27, n_star)
    cell = np.uint64(987654321) << np.uint64(32)
    stars = Stars(
        cell + np.arange(n_star, dtype=np.uint64), star_ra, star_dec, mag, mag + 0.5, rng.uniform(8, 20, n_star),
        rng.uniform(0, 2, n_star), rng.uniform(-2, 15, n_star), rng.integers(0, 6, n_star).astype(np.uint8),
    )  # fmt: skip
    galaxies = Galaxies(
        cell + np.arange(n_galaxy, dtype=np.uint64), galaxy_ra, galaxy_dec, rng.uniform(19, 27, n_galaxy),
        rng.uniform(0.1, 2, n_galaxy), rng.uniform(0.1, 2, n_galaxy), rng.uniform(0, 1, n_galaxy),
        rng.uniform(0.2, 1, n_galaxy), rng.uniform(0, 180, n_galaxy), rng.uniform(0, 3, n_galaxy),
    )  # fmt: skip
    counted = mag < 26.0
    image = rng.normal(0.06, 0.05, SHAPE).astype(np.float32)
    image[40:44, 50:55] = 300
    image[10, 11], image[12, 13] = 590, -0.02
    flags = np.zeros(SHAPE, np.uint16)
    flags[10, 11], flags[12, 13] = 8, 1
    return SimpleNamespace(
        exposure=exposure, detector=DETECTOR, band=BAND, image=image, flags=flags, stars=stars, star_y=sy, star_x=sx,
        galaxies=galaxies, galaxy_y=gy, galaxy_x=gx, sky=0.06, fwhm=2.0, expected=None, counted=counted,
        n_star=int(counted.sum()), n_bright=int((mag < BRIGHT_LIMIT).sum()),
        n_brighter=(-1,) * 10, n_star_tile=((-1,) * 14,) * 14, n_bright_tile=((-1,) * 14,) * 14,
        scene=SimpleNamespace(depth=DEPTH),
    )  # fmt: skip


def table_of(path):
    with open(path) as file:
        assert file.readline() == "# depth: 25.25 mag\n"
        assert file.readline().lstrip("# ").split() == list(COLUMNS)
    return np.genfromtxt(path, names=COLUMNS, dtype=None, encoding="ascii")


@pytest.mark.parametrize("product", ["level1", "level0", "readout"])
@pytest.mark.parametrize("distortion", [0.0, DISTORTION])
def test_every_product_reads_back_to_the_same_chip(tmp_path, product, distortion):
    chip = make_chip(distortion)
    files = write_chip(chip, tmp_path, product)
    assert files == expected_files(tmp_path, chip.exposure, DETECTOR, product)
    assert sorted(map(str, (tmp_path / chip.exposure.obs_id).iterdir())) == sorted(files.paths())
    assert discover([tmp_path]) == ([files], [])
    counts = read_truth(files, BAND, SHAPE)
    assert (counts.n_star, counts.n_bright, counts.note) == (chip.n_star, chip.n_bright, "")
    assert counts.n_brighter == tuple((chip.stars.mag < m).sum() if m <= DEPTH else -1 for m in MAGNITUDES)
    gain = DetectorModel().gain
    with read_detector(files, SHAPE) as found:
        pixels, flags = found.image.read_rows(0, 92), found.flag.read_rows(0, 92)
        assert (found.band, found.exptime, found.key) == (BAND, 150.0, files.key)
        assert found.field == chip.exposure.field
    if product == "level1":
        np.testing.assert_array_equal(pixels, chip.image)
        np.testing.assert_array_equal(flags, chip.flags)
        return
    np.testing.assert_array_equal(flags, 8 * (chip.flags & 8 > 0))
    good = flags == 0
    # half a count, and for strips the scatter of their bias from 46 rows of overscan
    count = gain * 1.04 / 150
    bias = 0.5 if product == "readout" else 0.0
    assert np.abs(pixels - chip.image)[good].max() < (0.5 + bias) * count * 1.001
    assert np.abs(np.mean((pixels - chip.image)[good])) < 0.1 * count


@pytest.mark.parametrize("distortion", [0.0, DISTORTION])
def test_level_1_describes_the_distortion_and_level_0_does_not(tmp_path, distortion):
    chip = make_chip(distortion)
    calibrated = write_chip(chip, tmp_path / "a", "level1")
    raw = [write_chip(chip, tmp_path / product, product) for product in ("level0", "readout")]
    header = fits.getheader(calibrated.image, 1)
    types = {"RA---TPV", "DEC--TPV"} if distortion else {"RA---TAN", "DEC--TAN"}
    assert {header["CTYPE1"], header["CTYPE2"]} == types
    assert bool(header["PV*"]) == bool(distortion)
    truth = table_of(calibrated.truth)
    with read_detector(calibrated, SHAPE) as found:
        x, y = found.wcs.all_world2pix(truth["ra"], truth["dec"], 1)
        np.testing.assert_allclose((x, y), (truth["xImage"], truth["yImage"]), atol=1e-3)
        info, promised = found.info(), chip_info(chip)
        np.testing.assert_allclose((*info.corner_ra, info.ra), (*promised.corner_ra, promised.ra), atol=1e-9)
        np.testing.assert_allclose((*info.corner_dec, info.dec), (*promised.corner_dec, promised.dec), atol=1e-9)
    for files in raw:
        with read_detector(files, SHAPE) as found:
            assert list(found.wcs.wcs.ctype) == ["RA---TAN", "DEC--TAN"]
            x, y = found.wcs.all_world2pix(truth["ra"], truth["dec"], 1)
        shift = np.hypot(x - truth["xImage"], y - truth["yImage"])
        assert (shift.min() > 1) if distortion else (shift.max() < 1e-3)


def test_headers_of_raw_frames(tmp_path):
    chip = make_chip()
    plain, strips = (write_chip(chip, tmp_path / product, product).image for product in ("level0", "readout"))
    assert plain.endswith("_25_L0_V01.fits")
    for path in (plain, strips):
        header = fits.getheader(path, 1)
        assert (header["BUNIT"], header["FILTER"], header["BITPIX"]) == ("ADU", BAND, 16)
        assert header["DATASECT"] == "96x92"
        assert not {"SKY_BKG", "ZP", "STA_POSI"} & set(header)
    header = fits.getheader(plain, 1)
    assert (header["NCHAN"], header["BIAS"], header["GAIN1"], header["RDNOISE1"]) == (1, 500.0, 1.1, 5.0)
    header = fits.getheader(strips, 1)
    assert (header["NCHAN"], header["NCHAN1"], header["NCHAN2"], header["PSCAN1"], header["OSCAN2"]) == (
        16, 8, 2, 27, 84,
    )  # fmt: skip
    assert "BIAS" not in header
    assert len({header[f"GAIN{k}"] for k in range(1, 17)}) > 8


def test_writing_again_changes_nothing_and_exposures_have_strips_of_their_own(tmp_path):
    first, again = (write_chip(make_chip(), tmp_path / name, "readout").image for name in "ab")
    other = write_chip(make_chip(index=4), tmp_path, "readout").image
    np.testing.assert_array_equal(fits.getdata(first), fits.getdata(again))
    assert fits.getheader(first, 1)["GAIN1"] != fits.getheader(other, 1)["GAIN1"]


def test_a_level_1_image_takes_the_place_of_a_raw_one(tmp_path):
    chip = make_chip()
    raw, calibrated = write_chip(chip, tmp_path, "level0"), write_chip(chip, tmp_path, "level1")
    chips, left = discover([tmp_path])
    assert chips == [calibrated]
    assert [path for path, _ in left] == [raw.image]


def test_a_readout_file_cut_short_is_refused(tmp_path):
    files = write_chip(make_chip(), tmp_path, "readout")
    with open(files.image, "r+b") as file:
        file.truncate(100_000)
    with pytest.raises(ChipRejected, match="truncated"):
        read_detector(files, SHAPE)


@pytest.mark.parametrize(("n_star", "n_galaxy"), [(0, 0), (0, 5), (5, 0)])
def test_empty_frames_have_catalogues_too(tmp_path, n_star, n_galaxy):
    files = write_chip(make_chip(n_star=n_star, n_galaxy=n_galaxy), tmp_path)
    counts = read_truth(files, BAND, SHAPE)
    assert counts.n_star <= n_star
    assert (counts.n_star > 0) == (n_star > 0)
    assert np.atleast_1d(table_of(files.truth)).size == n_star + n_galaxy if n_star + n_galaxy else True


def test_objects_within_rounding_of_the_edge_and_the_limit_keep_their_side(tmp_path):
    chip = make_chip(n_star=4, n_galaxy=4)
    edge = np.array([0.0, 1e-7, SHAPE[0] - 1e-7, SHAPE[0] - 3e-5])
    mag = np.array([BRIGHT_LIMIT - 1e-9, BRIGHT_LIMIT, BRIGHT_LIMIT + 1e-9, np.nextafter(BRIGHT_LIMIT, 0)])
    chip.star_x, chip.star_y, chip.counted = edge, edge, np.ones(4, bool)
    object.__setattr__(chip.stars, "mag", mag)
    files = write_chip(chip, tmp_path)
    counts = read_truth(files, BAND, SHAPE)
    assert (counts.n_star, counts.n_bright) == (4, 2)


def test_the_catalogue_says_what_was_rendered(tmp_path):
    chip = make_chip(DISTORTION)
    columns = truth_columns(chip)
    assert set(columns) <= set(COLUMNS)
    truth = table_of(write_chip(chip, tmp_path).truth)
    assert truth["obj_type"].tolist() == ["star"] * N_STAR + ["galaxy"] * N_GALAXY
    stars, galaxies = truth[:N_STAR], truth[N_STAR:]
    exposure = chip.exposure
    y, x = sky_to_pixel(
        DETECTOR, exposure.ra, exposure.dec, exposure.theta, truth["ra"], truth["dec"], exposure.distortion
    )
    np.testing.assert_allclose((x + 0.5, y + 0.5), (truth["xImage"], truth["yImage"]), atol=1e-3)
    np.testing.assert_array_equal(truth["ra"], truth["ra_orig"])
    np.testing.assert_array_equal(truth["dec"], truth["dec_orig"])
    np.testing.assert_allclose(truth["mag"], np.concatenate([chip.stars.mag, chip.galaxies.mag]), atol=1.01e-5)
    assert stars["obj_ID"].tolist() == chip.stars.id.tolist()
    for name in ("kappa", "g1", "g2", "veldisp"):
        assert (truth[name] == 0).all()
    assert (truth["detA"] == 1).all()
    assert (truth["ID_chip"] == DETECTOR).all()
    np.testing.assert_allclose(stars["dm"], 5 * np.log10(100 / stars["parallax"]), atol=2e-2)
    assert ((stars["teff"] > 2000) & (stars["teff"] < 50_000)).all()
    assert ((stars["logg"] > -1) & (stars["logg"] < 6)).all()
    for name in ("teff", "logg", "feh", "pm_ra", "pm_dec", "RV", "parallax", "av", "dm"):
        assert (galaxies[name] == 0).all()
        assert np.ptp(stars[name]) > 0
    for name in ("z", "size", "e1", "e2", "galType", "bulgemass", "diskmass"):
        assert (stars[name] == 0).all()
        assert np.ptp(galaxies[name]) > 0
    q = chip.galaxies.axis_ratio
    np.testing.assert_allclose(np.hypot(galaxies["e1"], galaxies["e2"]), (1 - q) / (1 + q), atol=1e-5)
    turn = 0.5 * np.rad2deg(np.arctan2(galaxies["e2"], galaxies["e1"])) - chip.galaxies.position_angle
    np.testing.assert_allclose((turn + 90) % 180, 90, atol=0.01)
    np.testing.assert_allclose(galaxies["stellarmass"], galaxies["bulgemass"] + galaxies["diskmass"], atol=1.01)


def test_masses_follow_the_light():
    # the Milky Way's luminosity, 2e10 solar in r (M_r = -21.1), at z = 0.1: distance modulus 38.3 for this cosmology
    mass = galaxy_mass(np.array([-21.1 + 38.31]), np.array([0.1]), "r")
    assert mass[0] == pytest.approx(1.5 * 2e10, rel=0.15)
    fainter = galaxy_mass(np.array([20.0, 22.5]), np.array([0.5, 0.5]), "r")
    assert fainter[0] / fainter[1] == pytest.approx(10.0)
    assert np.isfinite(galaxy_mass(np.array([20.0]), np.array([0.0]), "NUV")).all()
