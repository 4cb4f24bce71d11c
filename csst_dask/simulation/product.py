"""A rendered chip as the survey would deliver it: calibrated or raw image, companions, and the truth catalogue."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from csst_dask.instrument.focal_plane import (
    BAND_TABLE,
    PIXEL_SCALE,
    detector_wcs,
    frame_center,
    frame_corners,
    tpv_terms,
)
from csst_dask.io.filenames import survey_name
from csst_dask.io.readout import CHANNELS, OVERSCAN, OVERSCAN_ROWS, PRESCAN
from csst_dask.io.truth import write_truth
from csst_dask.schema import STAR_LIMIT, ChipFiles, ChipInfo, ChipKey
from csst_dask.simulation.detector import DetectorModel, inverse_variance
from csst_dask.simulation.exposure import Chip, Exposure
from csst_dask.simulation.raw import Channels, equal_channels, to_adu, to_readout
from csst_dask.simulation.truth_table import truth_columns

VERSION = 1

Product = Literal["level1", "level0", "readout"]
"""Calibrated image with weight and flags; raw counts on the assembled frame; raw counts in 16 read-out strips."""


def chip_key(exposure: Exposure, detector: int) -> ChipKey:
    """Identity of a simulated chip."""
    return ChipKey(exposure.obs_id, detector, VERSION)


def _primary_header(chip: Chip) -> fits.Header:
    exposure, primary = chip.exposure, fits.Header()
    primary["FILETYPE"] = ("WIDE", "observation type")
    primary["TELESCOP"] = "CSST"
    primary["INSTRUME"] = "MSC"
    primary["OBJECT"] = exposure.field
    primary["FIELD"] = (exposure.field, "sky field, for splitting data sets")
    primary["OBSID"] = exposure.obs_id
    primary["DATE-OBS"] = exposure.start.isoformat(timespec="milliseconds")
    primary["EXPSTART"] = (exposure.mjd, "[d] MJD")
    primary["EXPTIME"] = (exposure.exptime, "[s]")
    for word in ("RA_OBJ", "RA_PNT0", "RA_PNT1"):
        primary[word] = (exposure.ra, "[deg]")
    for word in ("DEC_OBJ", "DEC_PNT0", "DEC_PNT1"):
        primary[word] = (exposure.dec, "[deg]")
    primary["POS_ANG0"] = primary["POS_ANG1"] = (exposure.theta, "[deg]")
    primary["DETECTOR"] = f"{chip.detector:02d}"
    return primary


def _image_header(chip: Chip, unit: str) -> fits.Header:
    image = fits.Header()
    image["BUNIT"] = unit
    image["CCDCHIP"] = chip.detector
    image["FILTER"] = chip.band
    image["PIXSCAL1"] = image["PIXSCAL2"] = (PIXEL_SCALE, "[arcsec]")
    image["STARLIM"] = (STAR_LIMIT, "[mag] n_star counts to this g")
    return image


def make_headers(chip: Chip, model: DetectorModel | None = None) -> tuple[fits.Header, fits.Header]:
    """Primary and image header of a level-1 image; its astrometry describes the distortion by a TPV projection.

    Returns
    -------
    primary, image : astropy.io.fits.Header
    """
    model, exposure = model or DetectorModel(), chip.exposure
    image = _image_header(chip, "e-/s")
    image["GAIN1"] = (model.gain, "[e-/ADU]")
    image["RDNOISE1"] = (model.read_noise, "[e-]")
    image["SKY_BKG"] = (chip.sky, "[e-/s/pixel]")
    sigma = np.sqrt((chip.sky + model.dark) * exposure.exptime + model.read_noise**2) / exposure.exptime
    image["SKY_RMS"] = (float(sigma), "[e-/s/pixel]")
    image["SATURATE"] = (model.full_well / exposure.exptime, "[e-/s]")
    image["ZP"] = (BAND_TABLE[chip.band].zero_point, "[mag] AB, 1 e-/s")
    image["FWHM"] = (chip.fwhm, "[pixel]")
    for step in ("INST", "BIAS", "DARK", "FLAT", "SAT", "DIST", "POSI"):
        image[f"STA_{step}"] = (0, "0 = done")
    image.update(_wcs_header(chip, exposure.distortion))
    return _primary_header(chip), image


def make_raw_headers(
    chip: Chip, channels: Channels, model: DetectorModel | None = None, *, strips: bool = False
) -> tuple[fits.Header, fits.Header]:
    """Primary and image header of a level-0 image.

    The astrometry is that of the assembled frame in both layouts, a tangent plane without distortion.

    Parameters
    ----------
    chip : Chip
    channels : Channels
    model : DetectorModel, optional
    strips : bool
        Describe a read-out frame of 16 strips rather than an assembled frame.

    Returns
    -------
    primary, image : astropy.io.fits.Header
    """
    model, (ny, nx) = model or DetectorModel(), chip.image.shape
    image = _image_header(chip, "ADU")
    image["CAMERA"], image["DETNAME"] = "MS", "CCD"
    image["PIXSIZE1"] = image["PIXSIZE2"] = (10.0, "[um]")
    image["DATASECT"] = (f"{nx}x{ny}", "[pixel] that saw light")
    image["DETSIZE"] = (f"{nx}x{ny}", "[pixel]")
    image["NCHAN"] = (CHANNELS if strips else 1, "read-out channels")
    if strips:
        # all strips put together with their margins
        image["DETSIZE"] = f"{nx + 8 * (PRESCAN + OVERSCAN)}x{ny + 2 * OVERSCAN_ROWS}"
        image["NCHAN1"], image["NCHAN2"] = 8, 2
        image["PSCAN1"], image["PSCAN2"] = PRESCAN, 0
        image["OSCAN1"], image["OSCAN2"] = OVERSCAN, OVERSCAN_ROWS
    else:
        image["BIAS"] = (float(channels.bias[0]), "[ADU] included in the counts")
    for number in range(1, CHANNELS + 1 if strips else 2):
        image[f"GAIN{number}"] = (float(channels.gain[number - 1]), "[e-/ADU]")
    image["RDNOISE1"] = (model.read_noise, "[e-]")
    image["DARK"] = (model.dark, "[e-/s/pixel] included in the counts")
    image.update(_wcs_header(chip, 0.0))
    return _primary_header(chip), image


def _wcs(chip: Chip, distortion: float) -> WCS:
    exposure = chip.exposure
    return detector_wcs(chip.detector, exposure.ra, exposure.dec, exposure.theta, distortion)


def _wcs_header(chip: Chip, distortion: float) -> fits.Header:
    """CD matrix cards, as the survey writes them (astropy would write PC and CDELT)."""
    wcs, header = _wcs(chip, 0.0).wcs, fits.Header()
    projection = "TPV" if distortion else "TAN"
    for axis, word in ((1, "RA---"), (2, "DEC--")):
        header[f"CTYPE{axis}"] = word + projection
        header[f"CUNIT{axis}"] = "deg"
        header[f"CRVAL{axis}"] = wcs.crval[axis - 1]
        header[f"CRPIX{axis}"] = wcs.crpix[axis - 1]
        for other in (1, 2):
            header[f"CD{axis}_{other}"] = wcs.cd[axis - 1, other - 1]
    if distortion:
        for axis, term, value in tpv_terms(distortion):
            header[f"PV{axis}_{term}"] = value
    header["LONPOLE"] = 180.0
    header["RADESYS"] = "ICRS"
    header["EQUINOX"] = 2000.0
    return header


def chip_info(chip: Chip) -> ChipInfo:
    """What the store records about a chip before its pixels are measured."""
    wcs, shape = _wcs(chip, chip.exposure.distortion), chip.image.shape
    ra, dec = frame_center(wcs, (shape[0], shape[1]))
    corner_ra, corner_dec = frame_corners(wcs, (shape[0], shape[1]))
    return ChipInfo(
        band=chip.band,
        exptime=chip.exposure.exptime,
        zero_point=BAND_TABLE[chip.band].zero_point,
        mjd=chip.exposure.mjd,
        ra=ra,
        dec=dec,
        corner_ra=tuple(map(float, corner_ra)),  # type: ignore[arg-type]
        corner_dec=tuple(map(float, corner_dec)),  # type: ignore[arg-type]
        field=chip.exposure.field,
        n_star=chip.n_star,
        n_bright=chip.n_bright,
        n_brighter=chip.n_brighter,
        n_star_tile=chip.n_star_tile,
        n_bright_tile=chip.n_bright_tile,
    )


def expected_files(folder: Path, exposure: Exposure, detector: int, product: Product = "level1") -> ChipFiles:
    """Paths that `write_chip` gives the products of a chip; raw images have no weight and flag files."""
    start, end = exposure.times

    def path(part: str) -> str:
        name = survey_name(exposure.obs_id, detector, start, end, part, VERSION)  # type: ignore[arg-type]
        return str(Path(folder) / exposure.obs_id / name)

    key, truth = chip_key(exposure, detector), path("truth")
    if product == "level1":
        return ChipFiles(key, path("img"), path("wht"), path("flg"), truth, level=1)
    return ChipFiles(key, path("raw"), truth=truth, level=0)


def write_chip(chip: Chip, folder: Path, product: Product = "level1", model: DetectorModel | None = None) -> ChipFiles:
    """Write the images and the truth catalogue of a chip.

    Each file appears whole under its name or not at all; the image comes last, so that a chip whose image exists is
    complete.

    Parameters
    ----------
    chip : Chip
    folder : Path
        Receives a sub-folder for the exposure.
    product : {"level1", "level0", "readout"}
    model : DetectorModel, optional
        That the chip was rendered with.

    Returns
    -------
    ChipFiles

    Raises
    ------
    ValueError
        If the frame cannot be cut into 2 x 8 strips for a read-out frame.
    """
    model = model or DetectorModel()
    files = expected_files(folder, chip.exposure, chip.detector, product)
    Path(files.image).parent.mkdir(parents=True, exist_ok=True)
    if product == "level1":
        _write_calibrated(chip, files, model)
    else:
        _write_raw(chip, files, model, strips=product == "readout")
    return files


def _write_calibrated(chip: Chip, files: ChipFiles, model: DetectorModel) -> None:
    primary, header = make_headers(chip, model)
    write_truth(str(files.truth), truth_columns(chip), chip.scene.depth)
    _write_fits(str(files.flag), chip.flags, primary, header, "flg")
    weight = inverse_variance(chip.image, chip.flags, model, chip.exposure.exptime)
    _write_fits(str(files.weight), weight, primary, header, "wht")
    _write_fits(files.image, chip.image, primary, header, "img")


def _write_raw(chip: Chip, files: ChipFiles, model: DetectorModel, strips: bool) -> None:
    exposure = chip.exposure
    if strips:
        words = [exposure.seed, exposure.index, chip.detector]
        key = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
        counts, channels = to_readout(chip.image, chip.flags, model, exposure.exptime, key)
    else:
        channels = equal_channels(model)
        counts = to_adu(chip.image, chip.flags, model, exposure.exptime, channels)
    write_truth(str(files.truth), truth_columns(chip), chip.scene.depth)
    _write_fits(files.image, counts, *make_raw_headers(chip, channels, model, strips=strips), "SCI")


def _write_fits(path: str, data: np.ndarray, primary: fits.Header, header: fits.Header, extname: str) -> None:
    first = fits.PrimaryHDU(header=primary)
    first.header["FILENAME"] = os.path.basename(path).removesuffix(".fits")
    second = fits.ImageHDU(data, header=header, name=extname)
    if extname == "flg":
        del second.header["BUNIT"]
    part = f"{path}.part"
    with open(part, "wb") as stream:
        fits.HDUList([first, second]).writeto(stream)
    os.replace(part, path)
