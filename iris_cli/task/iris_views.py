"""Profile `iris-1` looks at references: whole volumes prepared, then crops that cover the classes.

source: CONTRACT.md, References to tokens. A class of very few voxels is a soft mask; classes that
fit one crop share it; the tokens of several crops count by the voxels that each shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iris_cli.dataset.classes import Modality
from iris_cli.network.precision import Precision
from iris_cli.preparation.prepare import PreparedImage, prepare_image
from iris_cli.preparation.profiles import guess_modality, replace_nonfinite
from iris_cli.task.crops import FILL_MAX, Crop, CropPlan, choose_crops_of_points, class_points, cut
from iris_cli.task.spacing import ReferenceSize, SpacingChoice, spacing_of_references
from iris_cli.task.views import (
    Array,
    ClassViews,
    LabelledReference,
    ReferenceViews,
    TaskModality,
    Values,
    View,
)
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import Volume
from iris_cli.volume.resampling import resample_labels, resample_mask

# Fewer voxels than this on the working grid are used as a soft mask.
SOFT_BELOW = 8

Patch = tuple[int, int, int]


class IrisRecipe:
    """`ReferenceRecipe` of profile `iris-1`."""

    strict = True

    def modality(self, image: Volume, declared: Modality | None) -> TaskModality:
        """As declared, else guessed from the whole volume; DataRefused where that is not finite."""
        guess = guess_modality(replace_nonfinite(image.array, file=image.path)[0])
        return declared or guess

    def spacing(self, s0: float, patch: int, references: Sequence[ReferenceSize]) -> SpacingChoice:
        """The rule of `task.spacing`."""
        return spacing_of_references(s0, patch, references)

    def precision(self, wanted: Precision, device: str) -> Precision:
        """As wanted."""
        return wanted

    def views(
        self, reference: LabelledReference, spacing_mm: float, patch: Patch
    ) -> ReferenceViews:
        """Crops that cover the classes."""
        prepared = prepare_image(reference.image, reference.modality, spacing_mm)
        masks = _masks(reference.labels, reference.values, prepared.grid)
        plan = choose_crops_of_points(masks.points, prepared.grid.shape_zyx, patch)
        return ReferenceViews(
            views=_iter_views(prepared, masks, plan, patch),
            classes={name: _class_views(plan, masks, name) for name in reference.values},
            warnings=(
                *_soft_warnings(reference.number, masks, spacing_mm),
                *_fill_warnings(reference.number, plan, patch),
            ),
        )


@dataclass(frozen=True)
class _Masks:
    """The classes of a reference on its working grid.

    labels: (Z, Y, X), the resampled label map. points: voxels (n, 3) of each class, of the soft
    mask where there is one. counts: voxels by arg-max resampling. soft: (Z, Y, X) in [0, 1].
    """

    labels: Array
    values: Values
    points: Mapping[str, npt.NDArray[np.int64]]
    counts: Mapping[str, int]
    soft: Mapping[str, npt.NDArray[np.float32]]

    def cut(self, names: Sequence[str], crop: Crop, patch: Patch) -> Array:
        """(K, Z, Y, X) masks of some classes in a crop: bool, or float32 where one is soft."""
        labels = cut(self.labels, crop.start_zyx, patch, 0)
        masks = [
            cut(self.soft[name], crop.start_zyx, patch, 0.0)
            if name in self.soft
            else np.isin(labels, self.values[name])
            for name in names
        ]
        return np.stack(masks)


def _iter_views(
    prepared: PreparedImage, masks: _Masks, plan: CropPlan, patch: Patch
) -> Iterator[View]:
    for crop in plan.crops:

        def masks_of(names: Sequence[str], crop: Crop = crop) -> Array:
            return masks.cut(names, crop, patch)

        image = cut(prepared.array, crop.start_zyx, patch, prepared.fill)
        yield View(image, crop.voxels, masks_of)


def _masks(native: Volume, values: Values, working: Grid) -> _Masks:
    labels = resample_labels(native.array, native.grid, working)
    points = class_points(labels, values)
    soft = {
        name: _soft_mask(np.isin(native.array, values[name]), native.grid, working)
        for name in values
        if len(points[name]) < SOFT_BELOW
    }
    counts = {name: len(points[name]) for name in values}
    points |= {name: np.argwhere(mask > 0).astype(np.int64) for name, mask in soft.items()}
    return _Masks(labels, values, points, counts, soft)


def _soft_mask(hard: npt.NDArray[np.bool_], grid: Grid, working: Grid) -> npt.NDArray[np.float32]:
    """The mask resampled linearly; if that misses it, the working voxels nearest to its own."""
    soft = np.asarray(resample_mask(hard, grid, working), dtype=np.float32)
    if not soft.any():
        world = grid.voxel_to_world(np.argwhere(hard)[:, ::-1])
        index = np.rint(working.world_to_voxel(world)).astype(np.int64)[:, ::-1]
        z, y, x = np.clip(index, 0, np.asarray(working.shape_zyx) - 1).T
        soft[z, y, x] = 1.0
    return soft


def _class_views(plan: CropPlan, masks: _Masks, name: str) -> ClassViews:
    return ClassViews(
        crops=len(plan.of(name)),
        voxels=masks.counts[name],
        coverage=plan.coverage[name],
        soft=name in masks.soft,
    )


def _soft_warnings(number: int, masks: _Masks, spacing_mm: float) -> list[str]:
    return [
        f"class {name!r} has only {masks.counts[name]} voxels at {spacing_mm:.4g} mm "
        f"in reference {number} (fewer than {SOFT_BELOW}): used as a soft mask"
        for name in masks.soft
    ]


def _fill_warnings(number: int, plan: CropPlan, patch: Patch) -> list[str]:
    size = float(np.prod(patch))
    return [
        f"class {name!r} fills {voxels / size:.0%} of a crop of reference {number} "
        f"(more than {FILL_MAX:.0%}): little of its surroundings is seen"
        for crop in plan.crops
        for name, voxels in crop.voxels.items()
        if voxels > FILL_MAX * size
    ]
