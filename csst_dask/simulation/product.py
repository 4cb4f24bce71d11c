"""A rendered chip as the survey would deliver it: L1 image, weight and flag files, and the truth catalogue."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from csst_dask.instrument.bands import BAND_TABLE
from csst_dask.instrument.focal_plane import detector_wcs, frame_center, frame_corners
from csst_dask.io.filenames import survey_name
from csst_dask.io.truth import write_truth
from csst_dask.schema import STAR_LIMIT, ChipFiles, ChipInfo, ChipKey
from csst_dask.simulation.detector import DetectorModel, inverse_variance
from csst_dask.simulation.exposure import Chip, Exposure

VERSION = 1


def chip_key(exposure: Exposure, detector: int) -> ChipKey:
    """Identity of a simulated chip."""
    return ChipKey(exposure.obs_id, detector, VERSION)


def make_headers(chip: Chip, model: DetectorModel | None = None) -> tuple[fits.Header, fits.Header]:
    """Primary and image header of a level-1 image.

    Returns
    -------
    primary, image : astropy.io.fits.Header
    """
    model, exposure = model or DetectorModel(), chip.exposure
    primary = fits.Header()
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
    image = fits.Header()
    image["BUNIT"] = "e-/s"
    image["CCDCHIP"] = chip.detector
    image["FILTER"] = chip.band
    image["PIXSCAL1"] = image["PIXSCAL2"] = (0.074, "[arcsec]")
    image["GAIN1"] = (model.gain, "[e-/ADU]")
    image["RDNOISE1"] = (model.read_noise, "[e-]")
    image["SKY_BKG"] = (chip.sky, "[e-/s/pixel]")
    sigma = np.sqrt((chip.sky + model.dark) * exposure.exptime + model.read_noise**2) / exposure.exptime
    image["SKY_RMS"] = (float(sigma), "[e-/s/pixel]")
    image["SATURATE"] = (model.full_well / exposure.exptime, "[e-/s]")
    image["ZP"] = (BAND_TABLE[chip.band].zero_point, "[mag] AB, 1 e-/s")
    image["FWHM"] = (chip.fwhm, "[pixel]")
    image["STARLIM"] = (STAR_LIMIT, "[mag] catalogue limit in g")
    for step in ("INST", "BIAS", "DARK", "FLAT", "SAT", "DIST", "POSI"):
        image[f"STA_{step}"] = (0, "0 = done")
    image.update(_wcs_header(chip))
    return primary, image


def _wcs(chip: Chip) -> WCS:
    exposure = chip.exposure
    return detector_wcs(chip.detector, exposure.ra, exposure.dec, exposure.theta)


def _wcs_header(chip: Chip) -> fits.Header:
    """CD matrix cards, as the survey writes them (astropy would write PC and CDELT)."""
    wcs, header = _wcs(chip).wcs, fits.Header()
    for axis in (1, 2):
        header[f"CTYPE{axis}"] = wcs.ctype[axis - 1]
        header[f"CUNIT{axis}"] = "deg"
        header[f"CRVAL{axis}"] = wcs.crval[axis - 1]
        header[f"CRPIX{axis}"] = wcs.crpix[axis - 1]
        for other in (1, 2):
            header[f"CD{axis}_{other}"] = wcs.cd[axis - 1, other - 1]
    header["RADESYS"] = "ICRS"
    header["EQUINOX"] = 2000.0
    return header


def chip_info(chip: Chip) -> ChipInfo:
    """What the store records about a chip before its pixels are reduced."""
    wcs, shape = _wcs(chip), chip.image.shape
    ra, dec = frame_center(wcs, (shape[0], shape[1]))
    corner_ra, corner_dec = frame_corners(wcs, (shape[0], shape[1]))
    return ChipInfo(
        band=chip.band,
        exptime=chip.exposure.exptime,
        mjd=chip.exposure.mjd,
        ra=ra,
        dec=dec,
        corner_ra=tuple(map(float, corner_ra)),  # type: ignore[arg-type]
        corner_dec=tuple(map(float, corner_dec)),  # type: ignore[arg-type]
        field=chip.exposure.field,
        n_star=chip.n_star,
        n_bright=chip.n_bright,
    )


def expected_files(folder: Path, exposure: Exposure, detector: int) -> ChipFiles:
    """Paths that `write_chip` gives the products of a chip."""
    start, end = exposure.times

    def path(product: str) -> str:
        name = survey_name(exposure.obs_id, detector, start, end, product, VERSION)  # type: ignore[arg-type]
        return str(folder / exposure.obs_id / name)

    return ChipFiles(chip_key(exposure, detector), path("img"), path("wht"), path("flg"), path("truth"))


def write_chip(chip: Chip, folder: Path) -> ChipFiles:
    """Write the level-1 triplet and the truth catalogue of a chip.

    Each file appears whole under its name or not at all; the image comes last, so that a chip whose image exists is
    complete.

    Parameters
    ----------
    chip : Chip
    folder : Path
        Receives a sub-folder for the exposure.

    Returns
    -------
    ChipFiles
    """
    files = expected_files(folder, chip.exposure, chip.detector)
    Path(files.image).parent.mkdir(parents=True, exist_ok=True)
    primary, header = make_headers(chip)
    _write_catalogue(chip, str(files.truth))
    _write_fits(str(files.flag), chip.flags, primary, header, "flg")
    weight = inverse_variance(chip.image, chip.flags, DetectorModel(), chip.exposure.exptime)
    _write_fits(str(files.weight), weight, primary, header, "wht")
    _write_fits(files.image, chip.image, primary, header, "img")
    return files


def _write_fits(path: str, data: np.ndarray, primary: fits.Header, header: fits.Header, extname: str) -> None:
    first = fits.PrimaryHDU(header=primary)
    first.header["FILENAME"] = os.path.basename(path).removesuffix(".fits")
    second = fits.ImageHDU(data, header=header, name=extname)
    if extname == "flg":
        del second.header["BUNIT"]
    part = f"{path}.part"
    fits.HDUList([first, second]).writeto(part, overwrite=True)
    os.replace(part, path)


def _rounded_down(values: np.ndarray, digits: int) -> np.ndarray:
    """Fewer digits; never across the frame's edge or the bright limit, as rounding to nearest could."""
    return np.round(np.floor(values * 10**digits) / 10**digits, digits)


def _write_catalogue(chip: Chip, path: str) -> None:
    ra, dec = _wcs(chip).all_pix2world(chip.x + 0.5, chip.y + 0.5, 1) if chip.n_star else (np.empty(0), np.empty(0))
    write_truth(
        path,
        {
            "obj_ID": np.arange(1, chip.n_star + 1),
            "ID_chip": chip.detector,
            "filter": chip.band,
            "xImage": _rounded_down(chip.x + 0.5, 4),
            "yImage": _rounded_down(chip.y + 0.5, 4),
            "ra": np.round(ra, 8),
            "dec": np.round(dec, 8),
            "ra_orig": np.round(ra, 8),
            "dec_orig": np.round(dec, 8),
            "mag": _rounded_down(chip.mag, 5),
            "obj_type": "star",
        },
    )
