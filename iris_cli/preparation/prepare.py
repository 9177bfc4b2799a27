"""One native volume to one working image: normalise whole, then resample.

`iris preprocess`, `iris encode-task` and `iris predict` all come through here, so a reference, a
query and a training case of the same scan are the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iris_cli.preparation.profiles import normalise
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import Volume
from iris_cli.volume.resampling import resample_image


@dataclass(frozen=True)
class PreparedImage:
    """A normalised image on its working grid.

    array: (z, y, x) float32. fill: smallest normalised value of the whole native volume, the value
    of everything outside. nonfinite: voxels of the source that were NaN or infinite.
    """

    array: npt.NDArray[np.float32]
    grid: Grid
    fill: float
    nonfinite: int
    statistics: dict[str, float]


def prepare_image(volume: Volume, modality: str, spacing_mm: float) -> PreparedImage:
    """Normalise `volume` by its modality (`ct`, `other`) and bring it to `spacing_mm` (isotropic).

    raises DataRefused where more than 1 % of the voxels are not finite.
    """
    normalised = normalise(volume.array, modality, file=volume.path)
    working = volume.grid.working(spacing_mm)
    array = resample_image(normalised.array, volume.grid, working)
    return PreparedImage(
        array=array,
        grid=working,
        fill=normalised.fill,
        nonfinite=normalised.nonfinite,
        statistics=normalised.statistics,
    )
