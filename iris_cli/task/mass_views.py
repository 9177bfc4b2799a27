"""Profile `mass-1` looks at references: one window for each class, normalised by itself.

The window lies around the middle of the class's bounding box, wherever that is, reaches outside the
volume where it has to, and is padded with raw zeros, which its normalisation then counts as tissue.
What it does not reach of a class is not seen, and where it misses the class altogether, an empty
mask is encoded. Masks are resampled by the nearest voxel; a class that vanishes there is skipped.
source: NETWORK.md section 7, column "reference".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from iris_cli.dataset.classes import Modality
from iris_cli.network.precision import Precision
from iris_cli.preparation.mass import (
    AUTO,
    PADDING,
    PROFILE,
    Floats,
    guess_modality,
    normalise,
    resample,
)
from iris_cli.task.crops import Points, Shape3, class_points, cut
from iris_cli.task.spacing import ReferenceSize, SpacingChoice
from iris_cli.task.views import (
    Array,
    ClassViews,
    LabelledReference,
    ReferenceViews,
    TaskModality,
    View,
)
from iris_cli.volume.itk_resampling import resample_nearest
from iris_cli.volume.reading import Volume


class MassRecipe:
    """`ReferenceRecipe` of profile `mass-1`."""

    strict = False

    def modality(self, image: Volume, declared: Modality | None) -> TaskModality:
        """Left to the voxels of every window, whatever the data set says."""
        return AUTO

    def spacing(self, s0: float, patch: int, references: Sequence[ReferenceSize]) -> SpacingChoice:
        """The model's own, whatever the classes measure."""
        return SpacingChoice(s0, f"{s0:.4g} mm: the model's own, as profile {PROFILE} has it")

    def precision(self, wanted: Precision, device: str) -> Precision:
        """As wanted on CUDA, where the published code is in half precision; nowhere else."""
        return wanted if device.startswith("cuda") else "fp32"

    def views(
        self, reference: LabelledReference, spacing_mm: float, patch: Shape3
    ) -> ReferenceViews:
        """One window for each class that has a voxel on the working grid."""
        raw, grid = resample(reference.image, spacing_mm)
        labels = resample_nearest(reference.labels.array, reference.labels.grid, grid)
        points = class_points(labels, reference.values)
        starts = {name: window_start(found, patch) for name, found in points.items() if len(found)}
        return ReferenceViews(
            views=_iter_views(raw, labels, starts, reference, patch),
            classes={name: _class_views(points[name], starts[name], patch) for name in starts},
            warnings=tuple(
                f"class {name!r} has no voxel left at {spacing_mm:.4g} mm in reference "
                f"{reference.number} and is skipped there"
                for name in reference.values
                if name not in starts
            ),
        )


def window_start(points: Points, patch: Shape3) -> Shape3:
    """First voxel of the window around the middle of the bounding box, halves to the even voxel.

    points: (n, 3) voxels of a class, at least one.
    """
    first, last = points.min(axis=0), points.max(axis=0)
    z, y, x = (
        round((int(low) + int(high)) / 2) - size // 2
        for low, high, size in zip(first, last, patch, strict=True)
    )
    return z, y, x


def prepare_window(raw: Floats, start: Shape3, patch: Shape3, modality: TaskModality) -> Floats:
    """The window of a raw image: padded with 0 first, then normalised with that padding."""
    window = cut(raw, start, patch, PADDING)
    return normalise(window, guess_modality(window) if modality == AUTO else modality)[0]


def _iter_views(
    raw: Floats,
    labels: Array,
    starts: Mapping[str, Shape3],
    reference: LabelledReference,
    patch: Shape3,
) -> Iterator[View]:
    for name, start in starts.items():

        def masks(names: Sequence[str], start: Shape3 = start) -> Array:
            window = cut(labels, start, patch, 0)
            return np.stack([np.isin(window, reference.values[name]) for name in names])

        image = prepare_window(raw, start, patch, reference.modality)
        yield View(image, {name: 1.0}, masks)


def _class_views(points: Points, start: Shape3, patch: Shape3) -> ClassViews:
    inside = (points >= start) & (points < np.add(start, patch))
    return ClassViews(crops=1, voxels=len(points), coverage=float(inside.all(axis=1).mean()))
