"""Files of the foreign benchmark: what a chip is delivered as, and the list of what was drawn on it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from astropy.io import fits
from foreign_image import DARK, GAIN, ForeignChip
from foreign_plan import Plan
from numpy.typing import NDArray

from csst_dask.instrument import BAND_TABLE, PIXEL_SCALE, detector_wcs
from csst_dask.io.filenames import survey_name
from csst_dask.outputs import replaced_file
from csst_dask.schema import STAR_LIMIT

VERSION = 1
CUTOUT = 192
"""Side of the piece of an image that is kept with the list, pixel."""
_FIRST = datetime(2030, 1, 1)


def chip_paths(plan: Plan, folder: Path) -> dict[str, Path]:
    """Where image, flag file and truth catalogue of a chip are written.

    Parameters
    ----------
    plan : Plan
    folder : Path

    Returns
    -------
    dict of str to Path
        ``img``, ``flg`` and ``truth``.
    """
    start = _FIRST + timedelta(minutes=10 * plan.index)
    times = [t.strftime("%Y%m%d%H%M%S") for t in (start, start + timedelta(seconds=plan.exptime))]
    return {
        part: folder / survey_name(plan.obs_id, plan.detector, times[0], times[1], part, VERSION)  # type: ignore[arg-type]
        for part in ("img", "flg", "truth")
    }


def list_path(plan: Plan, folder: Path) -> Path:
    """Where the list of a chip is."""
    return folder / f"{plan.name}.npz"


def write_chip(chip: ForeignChip, folder: Path) -> None:
    """Write catalogue, flag file and image of a chip; the image comes last, so that what has one is complete.

    The catalogue is whitespace-separated text. ``counted`` is 1 for stars that ``n_star`` counts, 0 for those beyond
    its limit and for galaxies; ``mag`` is the AB magnitude in the chip's band and ``mag_g`` that in g (0 for galaxies);
    the centre of the first pixel is at 1. Its first line gives the depth, to which every star is listed.

    Parameters
    ----------
    chip : ForeignChip
    folder : Path
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = chip_paths(chip.plan, folder)
    with replaced_file(paths["truth"]) as part, open(part, "w", encoding="ascii") as file:
        file.write(f"# depth: {chip.scene.depth:.6g} mag\n")
        file.write("# obj_ID ID_chip filter xImage yImage mag obj_type counted mag_g\n")
        file.writelines(_rows(chip))
    primary, header = _headers(chip)
    if chip.flags is not None:
        _write_fits(paths["flg"], chip.flags, primary, header, "flg")
    _write_fits(paths["img"], chip.image, primary, header, "img")


def _rows(chip: ForeignChip) -> Iterable[str]:
    scene, detector, band = chip.scene, chip.plan.detector, chip.plan.band
    stars = zip(
        *(a.tolist() for a in (scene.x + 0.5, scene.y + 0.5, scene.mag, scene.g < STAR_LIMIT, scene.g)), strict=True
    )
    for number, (x, y, mag, counted, g) in enumerate(stars):
        yield f"{number} {detector} {band} {x:.2f} {y:.2f} {mag:.5f} star {counted:d} {g:.5f}\n"
    galaxies = zip(*(a.tolist() for a in (scene.galaxy_x, scene.galaxy_y, scene.galaxy_mag)), strict=True)
    for number, (x, y, mag) in enumerate(galaxies, scene.mag.size):
        yield f"{number} {detector} {band} {x + 0.5:.2f} {y + 0.5:.2f} {mag:.5f} galaxy 0 0\n"


def _headers(chip: ForeignChip) -> tuple[fits.Header, fits.Header]:
    plan, primary, image = chip.plan, fits.Header(), fits.Header()
    start = _FIRST + timedelta(minutes=10 * plan.index)
    primary["FILETYPE"], primary["TELESCOP"], primary["INSTRUME"] = "WIDE", "CSST", "MSC"
    primary["FIELD"] = (f"foreign-{plan.set}-{plan.index:04d}", "one chip, one field")
    primary["OBSID"], primary["DETECTOR"] = plan.obs_id, f"{plan.detector:02d}"
    primary["DATE-OBS"] = start.isoformat(timespec="milliseconds")
    primary["EXPTIME"] = (plan.exptime, "[s]")
    primary["RA_PNT0"], primary["DEC_PNT0"] = (plan.ra, "[deg]"), (plan.dec, "[deg]")
    primary["POS_ANG0"] = (plan.theta, "[deg]")
    image["BUNIT"], image["CCDCHIP"], image["FILTER"] = "e-/s", plan.detector, plan.band
    image["PIXSCAL1"] = image["PIXSCAL2"] = (PIXEL_SCALE, "[arcsec]")
    image["STARLIM"] = (STAR_LIMIT, "[mag] n_star counts to here in g")
    image["GAIN1"] = (GAIN, "[e-/ADU]")
    image["RDNOISE1"] = (chip.read_noise, "[e-]")
    image["DARK"] = (DARK, "[e-/s/pixel] taken off")
    image["SKY_BKG"], image["SKY_RMS"] = (chip.sky, "[e-/s/pixel]"), (chip.noise, "[e-/s/pixel]")
    image["ZP"] = (BAND_TABLE[plan.band].zero_point, "[mag] AB, 1 e-/s")
    image["FWHM"] = (chip.fwhm, "[pixel]")
    wcs = detector_wcs(plan.detector, plan.ra, plan.dec, plan.theta).wcs
    for axis in (1, 2):
        image[f"CTYPE{axis}"], image[f"CUNIT{axis}"] = wcs.ctype[axis - 1], "deg"
        image[f"CRVAL{axis}"], image[f"CRPIX{axis}"] = wcs.crval[axis - 1], wcs.crpix[axis - 1]
        for other in (1, 2):
            image[f"CD{axis}_{other}"] = wcs.cd[axis - 1, other - 1]
    image["LONPOLE"], image["RADESYS"], image["EQUINOX"] = 180.0, "ICRS", 2000.0
    return primary, image


def _write_fits(path: Path, data: NDArray, primary: fits.Header, header: fits.Header, extname: str) -> None:
    second = fits.ImageHDU(data, header=header.copy(), name=extname)
    if extname == "flg":
        del second.header["BUNIT"]
    part = f"{path}.part"
    fits.HDUList([fits.PrimaryHDU(header=primary), second]).writeto(part, overwrite=True)
    os.replace(part, path)


def write_list(chip: ForeignChip, folder: Path) -> None:
    """Keep what was drawn on a chip, for limits that are computed from it without the pixels.

    An ``npz`` file for each chip: of every star drawn ``g`` and ``mag`` (float32, AB, in g and in the chip's band),
    ``x`` and ``y`` (float32, pixel, the frame's outer corner at 0); of every galaxy ``galaxy_mag``, ``galaxy_radius``
    (arcsec), ``galaxy_x``, ``galaxy_y``. Scalars: ``n_star``, ``n_bright``, ``depth`` (AB mag in the band to which
    every star is there), ``noise`` and ``sky`` (e-/s per pixel, in the middle of the frame), ``read_noise`` (e-),
    ``fwhm`` (pixel, with the pixel), ``sharpness`` (sum of the squares of the PSF, 1/pixel), ``exptime`` (s),
    ``zero_point`` (AB mag of 1 e-/s), ``band``, ``obs_id``, ``detector``, ``index``, ``flags``; ``laws``, JSON of
    everything else that was drawn. ``cutout`` is the middle of the image, e-/s.

    Parameters
    ----------
    chip : ForeignChip
    folder : Path
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan, scene = chip.plan, chip.scene
    ny, nx = chip.image.shape
    half = min(CUTOUT, ny, nx) // 2
    middle = chip.image[ny // 2 - half : ny // 2 + half, nx // 2 - half : nx // 2 + half]
    names = ("g", "mag", "x", "y", "galaxy_mag", "galaxy_radius", "galaxy_x", "galaxy_y")
    columns = {name: getattr(scene, name).astype(np.float32) for name in names}
    path = list_path(plan, folder)
    with replaced_file(path) as part, open(part, "wb") as file:
        np.savez_compressed(
            file, **columns, n_star=scene.n_star, n_bright=scene.n_bright, depth=scene.depth, noise=chip.noise,
            sky=chip.sky, read_noise=chip.read_noise, fwhm=chip.fwhm, sharpness=chip.sharpness,
            exptime=plan.exptime, zero_point=BAND_TABLE[plan.band].zero_point, band=plan.band, obs_id=plan.obs_id,
            detector=plan.detector, index=plan.index, flags=plan.flags, laws=json.dumps(chip.laws), cutout=middle,
        )  # fmt: skip


def draw_picture(lists: Iterable[Path], path: Path) -> None:
    """Draw the middles of chips side by side, by falling star count.

    Parameters
    ----------
    lists : iterable of Path
        Of `write_list`.
    path : Path
        PNG.
    """
    from matplotlib.figure import Figure

    chips = []
    for one in lists:
        with np.load(one) as kept:
            chips.append(
                {name: kept[name][()] for name in ("n_star", "band", "flags", "laws", "cutout", "sky", "noise")}
            )
    chips.sort(key=lambda chip: -int(chip["n_star"]))
    columns = min(10, max(1, round(len(chips) ** 0.5)))
    rows = -(-len(chips) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.05 * rows), layout="constrained")
    for place, axes in zip(range(rows * columns), np.ravel(figure.subplots(rows, columns)), strict=True):
        axes.set_axis_off()
        if place < len(chips):
            chip = chips[place]
            shown = np.arcsinh((chip["cutout"] - chip["sky"]) / chip["noise"] / 3)
            axes.imshow(shown, origin="lower", cmap="gray", vmin=-1, vmax=5, interpolation="nearest")
            axes.set_title(f"{chip['band']} {int(chip['n_star'])} {json.loads(str(chip['laws']))['psf']}", fontsize=7)
    figure.savefig(path, dpi=100)
