"""Profile `mass-1`: voxels as the published code prepares them for the weights it was made for.

Everything here reproduces that code with its weaknesses (docs/models.md lists them); `iris-1` is
the recipe to prefer for weights that are free to choose. Order of the steps:

    query       resample to a grid that keeps the first voxel, cut the box around the body,
                normalise what is left
    reference   resample likewise, cut one window around a class, normalise it with its padding

    ct          clip to [-991, 500] HU
    pet, mr     clip to the 2nd and 98th percentiles
    all         subtract the mean, divide by the standard deviation

Orientation needs no step: indices of a canonical volume grow to superior, anterior and right, as
that code turns every image. Values that are not finite stay as they are, and one NaN makes all of
a query NaN, in which nothing is found.
source: NETWORK.md section 7. scipy's binary operations stand with their defaults there as here.
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from iris_cli.errors import DataRefused
from iris_cli.preparation.prepare import PreparedImage
from iris_cli.volume.grid import Grid
from iris_cli.volume.itk_resampling import first_voxel_grid, resample_linear
from iris_cli.volume.reading import Volume

Floats = npt.NDArray[np.float32]
Box = tuple[slice, slice, slice]
Guess = Literal["ct", "pet", "mr"]

PROFILE = "mass-1"
AUTO: Final = "auto"
"""Modality of a task whose crops and queries are each guessed from their own voxels."""

PADDING = 0.0
"""Around a query: its mean. Around the crop of a reference, which is not normalised yet: 0 HU."""

CT_RANGE_HU = (-991.0, 500.0)
CLIP_PERCENTILES = (2.0, 98.0)
SMALLEST_DEVIATION = 1e-6

GUESS_PERCENTILES = (0.5, 99.5)
CT_LOW_HU, CT_HIGH_HU = -200.0, 300.0
PET_LOW, PET_HIGH = 0.0, 5.0

BODY_HU = -500.0
BODY_SHARE, BODY_PERCENTILE, BODY_FLOOR = 1e-3, 99.0, 1e-6
CLOSINGS = 2
MARGIN_ZYX = (16, 32, 32)


def prepare_query(volume: Volume, modality: str, spacing_mm: float) -> PreparedImage:
    """Resample, cut to the body and normalise a query.

    modality: `ct`, `other` (MR and PET are alike), or `auto`, which guesses it from the voxels on
    the working grid. returns: its grid is that of the box around the body.
    raises DataRefused for a volume without a finite value.
    """
    array, grid = resample(volume, spacing_mm)
    try:
        used = guess_modality(array) if modality == AUTO else modality
        box = body_box(array, used)
        values, statistics = normalise(array[box], used)
    except DataRefused as error:
        raise DataRefused(error.problem, file=volume.path, fix=error.fix) from None
    nonfinite = int(volume.array.size - np.count_nonzero(np.isfinite(volume.array)))
    notes = [f"modality guessed from the voxels: {used}"] if modality == AUTO else []
    if nonfinite:
        notes.append(f"{nonfinite} voxels are not finite and stay so in profile {PROFILE}")
    if np.isnan(values).any():
        notes.append("one NaN makes the whole image NaN: nothing can be found in it")
    return PreparedImage(
        array=values,
        grid=grid.crop([part.start for part in box], values.shape),
        fill=PADDING,
        nonfinite=nonfinite,
        statistics=statistics,
        notes=tuple(notes),
    )


def resample(volume: Volume, spacing_mm: float) -> tuple[Floats, Grid]:
    """The raw values of a canonical volume on the isotropic grid that keeps its first voxel."""
    grid = first_voxel_grid(volume.grid, spacing_mm)
    return resample_linear(volume.array, volume.grid, grid), grid


def guess_modality(array: npt.NDArray[Any]) -> Guess:
    """What the finite values look like: ct with air and bone, pet from 0 up, else mr."""
    low, high = np.percentile(_finite(array), GUESS_PERCENTILES)
    if low < CT_LOW_HU and high > CT_HIGH_HU:
        return "ct"
    return "pet" if low >= PET_LOW and high > PET_HIGH else "mr"


def normalise(array: npt.NDArray[Any], modality: str) -> tuple[Floats, dict[str, float]]:
    """Clip, subtract the mean, divide by the (population) standard deviation; and the numbers."""
    bounds = CT_RANGE_HU if modality == "ct" else np.percentile(_finite(array), CLIP_PERCENTILES)
    low, high = (float(bound) for bound in bounds)
    clipped = np.clip(array.astype(np.float32), low, high)
    mean, deviation = (float(clipped.mean(dtype=np.float64)), float(clipped.std(dtype=np.float64)))
    clipped -= np.float32(mean)
    if deviation > SMALLEST_DEVIATION:
        clipped /= np.float32(deviation)
    found = {"low": low, "high": high, "mean": mean, "deviation": deviation}
    return clipped, {name: value for name, value in found.items() if math.isfinite(value)}


def body_box(array: npt.NDArray[Any], modality: str) -> Box:
    """The box around the largest part that is not air, with a margin; all where there is none.

    array: (Z, Y, X), not normalised. One part is kept, so arms beside the trunk may be cut off.
    """
    from scipy import ndimage

    parts, _ = ndimage.label(
        ndimage.binary_fill_holes(
            ndimage.binary_closing(_not_air(array, modality), iterations=CLOSINGS)
        )
    )
    sizes = np.bincount(parts.ravel())[1:]
    if not len(sizes):
        z, y, x = (slice(0, length) for length in array.shape)
        return z, y, x
    found = ndimage.find_objects(parts)[int(sizes.argmax())]
    z, y, x = (
        slice(max(0, part.start - margin), min(length, part.stop + margin))
        for part, margin, length in zip(found, MARGIN_ZYX, array.shape, strict=True)
    )
    return z, y, x


def _not_air(array: npt.NDArray[Any], modality: str) -> npt.NDArray[np.bool_]:
    if modality == "ct":
        return np.asarray(array > BODY_HU)
    size = np.abs(array)
    strong = float(np.percentile(_finite(size), BODY_PERCENTILE))
    return np.asarray(size > max(BODY_SHARE * strong, BODY_FLOOR))


def _finite(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    finite: npt.NDArray[Any] = array[np.isfinite(array)]
    if not finite.size:
        raise DataRefused("no voxel holds a finite number", fix="repair the image")
    return finite
