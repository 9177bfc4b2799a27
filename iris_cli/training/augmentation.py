"""The part of an episode that is made on the training device: warp, low resolution, random curves.

Nothing is drawn here that a worker has not drawn before from the episode's own generator, so that
a look renders to the same voxels wherever it is rendered, up to the rounding of the device; on one
CPU bit for bit, in a worker or for a whole batch. Images are rendered one by one: the regions that
they need differ in size by a factor of 64 (docs/decisions/0005), and one image of a patch keeps a
device busy. Nothing here waits for the device.

    raw = sampler.raw_episode(g)                 # worker: reading, intensities, all random numbers
    episode = raw.render(torch.device("cuda"))   # training device: this module, flags included
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional

from iris_cli.training.looks import Look
from iris_cli.training.settings import IntensitySettings
from iris_cli.training.views import positions, sample_image, sample_masks, smooth_curve

CURVE_POINTS = 256
# Control points of a random curve; with four it is one cubic.
CURVE_CONTROLS = (5, 10)
# Share of simulated low resolutions that blur one axis alone, as thick slices do.
ONE_AXIS = 0.5
# A voxel nearer to the fill than this, in units of the normalised image, is empty.
EMPTY = 1e-3
# Every so many voxels are looked at to find the range of intensities.
SAMPLE_EVERY = 17


@dataclass(frozen=True)
class Curve:
    """A curve of intensity: `heights` (n,) float32 at equal distances from `low` to `high`."""

    low: float
    high: float
    heights: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rendered:
    """One image of an episode on the patch.

    image: (P, P, P) float32. masks: (K, P, P, P) bool. counted: (P, P, P) bool, carries loss.
    filled: (P, P, P) bool, neither beyond the scan nor empty as what lies there.
    """

    image: torch.Tensor
    masks: torch.Tensor
    counted: torch.Tensor
    filled: torch.Tensor


def render_look(look: Look, patch: int, curve: Curve | None, device: torch.device) -> Rendered:
    """Warp a look's image and masks to the patch, then change the image as was drawn for it."""
    where = positions(look.view, patch, device)
    image = sample_image(look.image, look.image_frame, where, look.fill)
    filled = (image - look.fill).abs() > EMPTY
    if look.zoom is not None:
        image = lower_resolution(image, look.zoom)
    if curve is not None:
        image = apply_curve(image, curve)
    table = torch.from_numpy(look.table).to(device, non_blocking=True)
    masks = sample_masks(look.labels, look.label_frame, where, table)
    return Rendered(image, masks[:-1], ~masks[-1], filled)


def lower_resolution(image: torch.Tensor, zoom: Sequence[float]) -> torch.Tensor:
    """An image (z, y, x) as a scanner with coarser voxels would see it, on its old grid.

    zoom: (z, y, x) voxels per voxel of the image, at most 1: means over them, then linear.
    """
    size = [max(2, round(n * z)) for n, z in zip(image.shape, zoom, strict=True)]
    coarse = functional.interpolate(image[None, None], size, mode="area")
    fine = functional.interpolate(coarse, tuple(image.shape), mode="trilinear")
    return fine[0, 0]


def apply_curve(image: torch.Tensor, curve: Curve) -> torch.Tensor:
    """Every voxel through the curve; beyond its ends the curve is flat."""
    last = len(curve.heights) - 1
    heights = torch.from_numpy(curve.heights).to(image.device, non_blocking=True)
    place = ((image - curve.low) * (last / (curve.high - curve.low))).clamp(0, last)
    lower = place.floor().clamp(max=last - 1)
    index = lower.long()
    return torch.lerp(heights[index], heights[index + 1], place - lower)


def draw_curve(images: Sequence[npt.NDArray[np.float32]], rng: np.random.Generator) -> Curve | None:
    """A random cubic spline for all images of an episode, monotone in one of two cases.

    It spans their joint range (0.5 to 99.5 percentile) and keeps their joint mean and standard
    deviation; a monotone one rises or falls. None where the images are constant.
    """
    sample = np.concatenate([image.reshape(-1)[::SAMPLE_EVERY] for image in images])
    low, high = (float(v) for v in np.percentile(sample, [0.5, 99.5]))
    if high - low < 1e-3:
        return None
    controls = rng.standard_normal(int(rng.integers(*CURVE_CONTROLS)))
    if rng.random() < 0.5:
        # A B-spline of monotone control points is monotone.
        controls = np.cumsum(np.abs(controls)) * rng.choice([-1.0, 1.0])
    heights = smooth_curve(controls.astype(np.float32), CURVE_POINTS)
    new = np.interp(sample, np.linspace(low, high, CURVE_POINTS), heights)
    gain = sample.std() / max(float(new.std()), 1e-3)
    scaled = (heights - new.mean()) * gain + sample.mean()
    return Curve(low, high, scaled.astype(np.float32))


def draw_zoom(
    rng: np.random.Generator, settings: IntensitySettings, *, strong: bool
) -> tuple[float, float, float] | None:
    """The low resolution of one image, or None; one axis alone in half of the cases."""
    if rng.random() >= settings.low_resolution_probability * (2 if strong else 1):
        return None
    z, y, x = (float(v) for v in rng.uniform(*settings.low_resolution, 3))
    if rng.random() >= ONE_AXIS:
        return z, y, x
    axis = int(rng.integers(3))
    return (z if axis == 0 else 1.0, y if axis == 1 else 1.0, x if axis == 2 else 1.0)
