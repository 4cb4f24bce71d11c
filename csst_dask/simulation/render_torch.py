"""The renderer on a torch device: the same scenes and the same light as `csst_dask.simulation.renderer`.

Pixels of the expected image differ from the compiled renderer's by less than 1e-4 of max(pixel, 1 electron): by the
rounding of sums, and by its fast exponential. The last pixel of a bleeding trail is an exception, since it collects
the rounding of all the charge that ran there. The noise has the same distribution but is another sample: its numbers
come from the generator of the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import local
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csst_dask.schema import FRAME_SHAPE
from csst_dask.simulation.detector import DetectorModel
from csst_dask.simulation.detector_torch import Bleeding, add_defects
from csst_dask.simulation.galaxies_torch import GalaxyPainter, GaussianGroups, group_galaxies
from csst_dask.simulation.patches import Patch, Plate, Specks
from csst_dask.simulation.render import padded_stamps
from csst_dask.simulation.shot import Shot, take_shot
from csst_dask.simulation.stars_torch import StarGroups, add_glow, group_stars, paint_stars

if TYPE_CHECKING:
    from csst_dask.simulation.exposure import Chip, Exposure

BATCH = {"cuda": 1 << 25, "cpu": 1 << 19}
"""Pixels that are drawn at a time, by the kind of device."""
_NOISE_ROWS = 512


@dataclass(frozen=True)
class Prepared:
    """A shot sorted for the device, still in the host's memory."""

    shot: Shot
    stars: StarGroups
    stamps: list[NDArray[np.float32]]
    gaussians: GaussianGroups
    patches: list[Patch]
    specks: Specks


@dataclass
class TorchChip:
    """A chip on a device."""

    shot: Shot
    image: Tensor
    """(ny, nx) float32: expected electrons without the background, or e-/s once it was observed."""
    flags: Tensor
    """(ny, nx) int16 with the CSST flag bits; ``flags.view(torch.uint16)`` is what a ``flg`` file holds."""

    def to_host(self) -> Chip:
        """The chip with NumPy arrays of its own.

        Raises
        ------
        ValueError
            If the shot comes from a file, which does not keep the exposure and the scene.
        """
        from csst_dask.simulation.exposure import Chip

        shot = self.shot
        if shot.exposure is None or shot.scene is None:
            raise ValueError("the shot has no exposure or no scene; use take_shot, since files do not keep them")
        image, flags = self.image.cpu().numpy().copy(), self.flags.cpu().numpy().view(np.uint16).copy()
        return Chip(shot.exposure, shot.detector, image, flags, shot.scene, shot.sky, shot.psf.core)


class TorchRenderer:
    """Renders chips on one device into one pair of tensors, which the next chip overwrites.

    Parameters
    ----------
    shape : (int, int)
        Frame, pixel.
    device : str or torch.device
    batch : int, optional
        Pixels to draw at a time; some 30 bytes each are taken for a while.
    compiled : bool
        See `csst_dask.simulation.galaxies_torch.GalaxyPainter`.

    Notes
    -----
    `prepare` works on the host alone and may run in other threads, ahead of `paint`, which waits for the device only
    where stars saturate: charge bleeds on the host, in the pixels that it may reach.
    """

    def __init__(
        self,
        shape: tuple[int, int] = FRAME_SHAPE,
        device: str | torch.device = "cpu",
        *,
        batch: int | None = None,
        compiled: bool = False,
    ):
        self.shape, self.device = shape, torch.device(device)
        self.batch = batch or BATCH.get(self.device.type, BATCH["cuda"])
        self.image = torch.empty(shape, dtype=torch.float32, device=self.device)
        self.flags = torch.empty(shape, dtype=torch.int16, device=self.device)
        self._galaxies = GalaxyPainter(self.batch, compiled)
        self._threads = local()
        self._bleeding = Bleeding(shape)

    def expose(self, exposure: Exposure, detector: int, model: DetectorModel | None = None) -> TorchChip:
        """Expected electrons of one detector of an exposure: stars, galaxies and artefacts; no background, no noise.

        Parameters
        ----------
        exposure : Exposure
        detector : int
        model : DetectorModel, optional

        Returns
        -------
        TorchChip
            Its tensors are valid until the next call.
        """
        return self.paint(self.prepare(take_shot(exposure, detector, self.shape, model)))

    def render(self, exposure: Exposure, detector: int, model: DetectorModel | None = None) -> TorchChip:
        """Render one detector of an exposure, with noise; parameters and result as for `expose`, in e-/s."""
        return self.observe(self.expose(exposure, detector, model))

    def prepare(self, shot: Shot) -> Prepared:
        """Sort a shot for the device.

        Parameters
        ----------
        shot : Shot

        Returns
        -------
        Prepared

        Raises
        ------
        ValueError
            If the shot is for another frame.
        """
        if shot.shape != tuple(self.shape):
            raise ValueError(f"a shot of a {shot.shape} frame; this renderer draws {self.shape}: make another one")
        if shot.wide is not None:
            raise ValueError("physics: wide is drawn by csst_dask.simulation.renderer alone")
        if not hasattr(self._threads, "plate"):
            self._threads.plate = Plate(shot.shape)
        stamps = padded_stamps(shot.psf)
        return Prepared(
            shot,
            group_stars(shot.y, shot.x, shot.flux, shot.psf, stamps),
            stamps,
            group_galaxies(shot.galaxies, shot.psf.mixture),
            *self._threads.plate.draw(shot),
        )

    def paint(self, ready: Prepared, mark: Callable[[str], Any] = lambda stage: None) -> TorchChip:
        """Draw a shot.

        Parameters
        ----------
        ready : Prepared
        mark : callable, optional
            Told the name of each stage when its work has been handed to the device.

        Returns
        -------
        TorchChip
            As from `expose`.
        """
        shot = ready.shot
        self.image.zero_()
        self.flags.zero_()
        stamps = [self._send(s)[..., : s.shape[2]].contiguous() for s in ready.stamps]
        stars, gaussians = self._send(ready.stars.stars), self._send(ready.gaussians.rows)
        mark("transfer")
        glow = paint_stars(self.image, stars, ready.stars, stamps, self._send(shot.psf.wings), self.batch)
        mark("stars")
        self._galaxies.paint(self.image, gaussians, ready.gaussians)
        mark("galaxies")
        self._add_artefacts(ready.patches, ready.specks)
        mark("artefacts")
        self._bleeding.run(self.image, self.flags, shot)
        mark("bleeding")
        if shot.defects:
            add_defects(self.image, self.flags, shot)
        mark("defects")
        add_glow(self.image, glow)
        mark("glow")
        return TorchChip(shot, self.image, self.flags)

    def observe(self, chip: TorchChip) -> TorchChip:
        """Add sky, dark current and noise to a chip as `csst_dask.simulation.noise.observe` does, in place.

        The noise of a chip depends on its exposure and detector, and on the kind of device; it is not the noise of
        the compiled renderer.

        Parameters
        ----------
        chip : TorchChip
            From `expose` or `paint`.

        Returns
        -------
        TorchChip
            The same, in e-/s.
        """
        shot, (ny, nx) = chip.shot, chip.image.shape
        words = np.random.SeedSequence(shot.random(2)).generate_state(2)
        generator = torch.Generator(self.device).manual_seed(int(words[0]) | int(words[1]) << 32)
        level, dark, floor = shot.sky * shot.exptime, shot.model.dark * shot.exptime, shot.model.read_noise**2
        slope_y, slope_x = (
            level * slope * ((torch.arange(n, device=self.device, dtype=torch.float64) + 0.5) / n - 0.5)
            for slope, n in zip(shot.gradient, (ny, nx), strict=True)
        )
        flat, slant = (level + slope_y + dark).float()[:, None], slope_x.float()
        for y in range(0, ny, _NOISE_ROWS):
            part = chip.image[y : y + _NOISE_ROWS]
            part.add_(slant).add_(flat[y : y + _NOISE_ROWS])
            normal = torch.randn(part.shape, generator=generator, device=self.device)
            part.addcmul_(part.clamp_min(0).add_(floor).sqrt_(), normal)
            part.clamp_max_(shot.model.full_well).sub_(dark).div_(shot.exptime)
        return chip

    def _send(self, array: NDArray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _add_artefacts(self, patches: list[Patch], specks: Specks) -> None:
        for patch in patches:
            place = np.s_[patch.y : patch.y + patch.light.shape[0], patch.x : patch.x + patch.light.shape[1]]
            self.image[place] += self._send(patch.light)
            self.flags[place] |= self._send(patch.flags.view(np.int16))
        if len(specks.index):
            index = self._send(specks.index).long()
            self.image.view(-1)[index] += self._send(specks.light)
            self.flags.view(-1)[index] |= self._send(specks.flags.view(np.int16))
