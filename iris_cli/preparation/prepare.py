"""One native volume to one working image: statistics of the whole, then slab by slab.

`iris preprocess`, `iris encode-task` and `iris predict` all come through here, so a reference, a
query and a training case of the same scan are the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.preparation.profiles import fit_normalisation
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import Volume
from iris_cli.volume.resampling import iter_image_slabs


@dataclass(frozen=True)
class PreparedImage:
    """A normalised image on its working grid.

    array: (z, y, x) floating. fill: smallest normalised value of the whole native volume, the value
    of everything outside. nonfinite: voxels of the source that were NaN or infinite. notes: what
    should be said about the voxels.
    """

    array: npt.NDArray[Any]
    grid: Grid
    fill: float
    nonfinite: int
    statistics: dict[str, float]
    notes: tuple[str, ...] = ()


def prepare_image(
    volume: Volume,
    modality: str,
    spacing_mm: float,
    *,
    dtype: npt.DTypeLike = np.float32,
) -> PreparedImage:
    """Normalise `volume` by its modality (`ct`, `other`) and bring it to `spacing_mm` (isotropic).

    Neither the normalised native volume nor its float32 form on the working grid ever exists as a
    whole: beyond `volume` and the result, memory is a few slabs. dtype: of the result, float32 or
    float16 (what the store holds).
    raises DataRefused where more than 1 % of the voxels are not finite.
    """
    fitted = fit_normalisation(volume.array, modality, file=volume.path)
    working = volume.grid.working(spacing_mm)
    array = np.empty(working.shape_zyx, dtype)
    for part, values in iter_image_slabs(fitted.planes, volume.grid, working):
        array[part] = values
    return PreparedImage(
        array=array,
        grid=working,
        fill=fitted.fill,
        nonfinite=fitted.nonfinite,
        statistics=fitted.statistics,
        notes=_notes(fitted.nonfinite),
    )


def _notes(nonfinite: int) -> tuple[str, ...]:
    if not nonfinite:
        return ()
    return (f"{nonfinite} voxels were not finite and were set to the smallest",)
