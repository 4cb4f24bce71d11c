"""From paths to chips: find files, read their names, and put together what belongs to one chip."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator

from astropy.io import fits

from csst_dask.errors import ChipRejected, ConfigError
from csst_dask.io.filenames import FITS_ENDINGS, FileName, Kind, parse_name
from csst_dask.io.headers import key_parts
from csst_dask.io.pixels import open_pixels
from csst_dask.schema import ChipFiles, ChipKey

_SUFFIX_KINDS: dict[str, Kind] = {"img": "image", "wht": "weight", "flg": "flag"}
_Left = list[tuple[str, str]]


class _Found:
    """A file that belongs to a chip."""

    __slots__ = ("exposure", "folder", "key", "name", "path")

    def __init__(self, path: str, name: FileName):
        self.path, self.name = path, name
        self.folder = os.path.dirname(path)
        self.key = ChipKey(name.obs_id, name.detector, name.version)
        self.exposure = name.obs_id, name.detector


def discover(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[ChipFiles], list[tuple[str, str]]]:
    """Find the chips among files and folders.

    Parameters
    ----------
    paths : iterable of paths
        Files, or folders that are searched recursively; no folder is entered twice, so links cannot loop.

    Returns
    -------
    chips : list of ChipFiles
        One per key, sorted by key. Weight and flag files go with the image of the same key, truth catalogues
        with exposure and detector whatever their version and level. An image of level 1 takes the place of
        one of level 0.
    left : list of (path, reason)
        Inputs that gave no chip, sorted by path. Files of another sort inside a folder are not listed.

    Raises
    ------
    ConfigError
        If a path does not exist.
    """
    left: _Left = []
    kinds: dict[str, list[_Found]] = defaultdict(list)
    for path, named in sorted(_files(paths, left).items()):
        found = _identify(path, named, left)
        if found is not None:
            kinds[found.name.kind].append(found)
    images = _choose_images(kinds["image"], left)
    flags, weights = (_by_key(kinds[kind], images, left) for kind in ("flag", "weight"))
    truths = _by_exposure(kinds["truth"], images, left)
    chips = [
        _chip(key, image, weights.get(key), flags.get(key), truths.get(image.exposure))
        for key, image in sorted(images.items())
    ]
    return chips, sorted(left)


def _chip(key: ChipKey, image: _Found, weight: str | None, flag: str | None, truth: _Found | None) -> ChipFiles:
    """The files of a chip, and what their names say beyond the key, so that names are read once."""
    if truth is None:
        return ChipFiles(key, image.path, weight, flag, level=image.name.level)
    name = truth.name
    return ChipFiles(key, image.path, weight, flag, truth.path, image.name.level, name.filter, name.excerpt)


def _files(paths: Iterable[str | os.PathLike[str]], left: _Left) -> dict[str, bool]:
    """All files by path, and whether each was named explicitly."""
    files: dict[str, bool] = {}
    seen: set[str] = set()
    for given in paths:
        path = os.path.abspath(given)  # workers may run in other folders
        if os.path.isdir(path) and not _promises_fits(path):
            for file in _walk(path, seen, left):
                files.setdefault(file, False)
        elif os.path.isdir(path):
            left.append((path, "a folder named like a FITS file; rename it to have it searched"))
        elif os.path.exists(path):
            files[path] = True
        elif os.path.islink(path):
            left.append((path, "a broken link"))
        else:
            raise ConfigError(f"{path} does not exist; expected a FITS file or a folder: correct the inputs")
    return files


def _walk(folder: str, seen: set[str], left: _Left) -> Iterator[str]:
    pending = [folder]
    while pending:
        folder = pending.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except PermissionError:
            left.append((folder, "a folder that may not be read"))
            continue
        folders = []
        for entry in ordered:
            if _is_folder(entry):
                if _promises_fits(entry.name):
                    left.append((entry.path, "a folder named like a FITS file; rename it to have it searched"))
                else:
                    folders.append(entry.path)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                if _looks_wanted(entry.name):
                    left.append((entry.path, "a broken link"))
            elif entry.is_file():
                yield entry.path
        pending.extend(reversed(folders))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Like ``entry.is_dir()``, but a link that leads in a circle is no folder rather than an error."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _promises_fits(path: str) -> bool:
    return path.lower().endswith(FITS_ENDINGS)


def _looks_wanted(path: str) -> bool:
    return _promises_fits(path) or parse_name(path) is not None


def _identify(path: str, named: bool, left: _Left) -> _Found | None:
    """What a file is; None, and a line in `left` where that matters, if it can serve no chip."""
    name = parse_name(path)
    if name is None and _promises_fits(path):
        try:
            name = _name_from_header(path)
        except (ChipRejected, OSError) as error:
            left.append((path, str(error)))
            return None
        if name is None:
            left.append((path, "no key: neither the name nor OBSID and DETECTOR cards give exposure and detector"))
    elif name is None:
        if named:
            left.append((path, "neither a FITS file nor a truth catalogue of the survey camera by its name"))
    elif name.kind not in ("image", "weight", "flag", "truth"):
        if named:
            left.append((path, f"a file of kind {name.kind} is not used"))
        return None
    elif name.instrument != "MSC":
        left.append((path, f"instrument {name.instrument}, expected MSC"))
        return None
    return None if name is None else _Found(path, name)


def _name_from_header(path: str) -> FileName | None:
    with open_pixels(path) as source:
        parts = key_parts(source.header, source.primary)
        kind = _kind_of(path, source.header)
    return None if parts is None else FileName(obs_id=parts[0], detector=parts[1], kind=kind)


def _kind_of(path: str, header: fits.Header) -> Kind:
    """Kind of a file with a name of its own: by ``_wht`` or ``_flg`` in the name, else by EXTNAME."""
    stem = os.path.basename(path).lower().split(".")[0]
    for word in (stem.rsplit("_", 1)[-1], str(header.get("EXTNAME", "")).strip().lower()):
        if word in _SUFFIX_KINDS:
            return _SUFFIX_KINDS[word]
    return "image"


def _choose_images(images: list[_Found], left: _Left) -> dict[ChipKey, _Found]:
    """One image per key; the first by path, but level 1 before level 0."""
    reduced = {found.exposure: found for found in reversed(images) if found.name.level != 0}
    chosen: dict[ChipKey, _Found] = {}
    for found in images:
        if found.name.level == 0 and found.exposure in reduced:
            left.append((found.path, f"level 0 of a chip that is here reduced: {reduced[found.exposure].path}"))
        elif found.key in chosen:
            left.append((found.path, f"duplicate of {chosen[found.key].path}"))
        else:
            chosen[found.key] = found
    return chosen


def _by_key(files: list[_Found], images: dict[ChipKey, _Found], left: _Left) -> dict[ChipKey, str]:
    """Weight or flag files by key, those beside their image first."""
    chosen: dict[ChipKey, str] = {}
    for found in sorted(files, key=lambda found: (_far(found, images.get(found.key)), found.path)):
        if found.key not in images:
            left.append((found.path, f"a {found.name.kind} file without an image of {found.key}"))
        elif found.key in chosen:
            left.append((found.path, f"duplicate of {chosen[found.key]}"))
        else:
            chosen[found.key] = found.path
    return chosen


def _by_exposure(truths: list[_Found], images: dict[ChipKey, _Found], left: _Left) -> dict[tuple[str, int], _Found]:
    """Truth catalogues by exposure and detector: whole before excerpt, beside the image before elsewhere."""
    numbers: dict[tuple[str, int], _Found] = {}
    for image in images.values():
        numbers.setdefault(image.exposure, image)
    candidates: dict[tuple[str, int], list[_Found]] = defaultdict(list)
    for found in truths:
        exposure = _exposure_of(found, numbers)
        if exposure is None:
            label = f"{found.name.obs_id}-{found.name.detector:02d}"
            left.append((found.path, f"a truth catalogue without an image of {label}"))
        else:
            candidates[exposure].append(found)
    chosen = {}
    for exposure, group in candidates.items():
        group.sort(key=lambda found: (found.name.excerpt, _far(found, numbers[exposure]), found.path))
        chosen[exposure] = group[0]
        left.extend((found.path, f"duplicate of {group[0].path}") for found in group[1:])
    return chosen


def _exposure_of(found: _Found, numbers: dict[tuple[str, int], _Found]) -> tuple[str, int] | None:
    """The exposure that a truth catalogue belongs to, by its own number or by that of the C5.1 era."""
    return next((pair for pair in found.name.exposures() if pair in numbers), None)


def _far(found: _Found, image: _Found | None) -> bool:
    return image is None or found.folder != image.folder
