"""Looks: what a worker reads of one image of an episode, and how it is to be looked at.

A look holds the region of the store that its view needs, at the resolution of the store: where an
image is interpolated twice, a quarter of its finest detail is lost (docs/decisions/0005). Masks
travel as one map of numbers with a table, whatever the number of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from iris_cli.training.catalogue import Case
from iris_cli.training.views import Array, Frame, View, frame_of, prefilter, region_of

# Label values below this are numbered by a table as long as the largest.
TABLE_LIMIT = 1 << 16


@dataclass(frozen=True)
class Look:
    """One image of an episode and its classes, read from the store but not yet rendered.

    image: (z, y, x) float, in the volume as `image_frame` says; `fill` is the value outside.
    labels: (z, y, x) uint8 or int16, rows of `table`; row 0 is what lies outside.
    table: (rows, K + 1) bool, whether a row belongs to each class of the episode; the last column
    marks what carries no loss. Only rows of classes that are asked for exist: a label value of any
    other class cannot be told from background any more.
    zoom: (z, y, x) resolution that is simulated, as a part of the patch's; None: its own.
    """

    view: View
    image: torch.Tensor
    image_frame: Frame
    fill: float
    labels: torch.Tensor
    label_frame: Frame
    table: npt.NDArray[np.bool_]
    zoom: tuple[float, float, float] | None = None

    @property
    def coarseness(self) -> float:
        """Voxel edge of the patch in voxels of `image`."""
        return self.view.ratio / self.image_frame.step

    def centre_voxels(self, patch: int) -> tuple[npt.NDArray[np.float64], float]:
        """About how many voxels of the patch each class fills, and how many carry loss.

        Counted in the box that the view would see if it were neither turned nor bent.
        """
        step = self.label_frame.step
        middle = (self.view.centre - np.array(self.label_frame.origin)) / step
        reach = self.view.ratio * patch / (2 * step)
        low = np.maximum(np.ceil(middle - reach), 0).astype(int)
        high = np.maximum(np.floor(middle + reach).astype(int) + 1, 0)
        z, y, x = (slice(a, b) for a, b in zip(low, high, strict=True))
        inner = self.labels[z, y, x].reshape(-1)
        rows = torch.bincount(inner, minlength=len(self.table)).numpy()
        filled = rows @ self.table * (step / self.view.ratio) ** 3
        return filled[:-1], float(rows.sum() * (step / self.view.ratio) ** 3 - filled[-1])


def read_image(case: Case, view: View, patch: int) -> tuple[torch.Tensor, Frame]:
    """What a view needs of a case's image, float32, smoothed for it where it is coarser."""
    region = region_of(view, patch, case.shape)
    if region is None:
        return torch.full((1, 1, 1), case.fill), Frame((0.0, 0.0, 0.0))
    source = torch.from_numpy(case.volume.image(region)).float()  # NumPy: 20 times as slow
    return prefilter(source, frame_of(region), view.ratio, case.fill)


def read_labels(
    case: Case, view: View, patch: int, values: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, Frame, npt.NDArray[np.bool_]]:
    """Labels, frame and table of a look at a case.

    values: the label values of each class of the episode (none: the class stays empty). The ignore
    label of the case fills the last column of the table.
    """
    ignored = () if case.ignore_value is None else (case.ignore_value,)
    columns = [*values, ignored]
    region = region_of(view, patch, case.shape)
    if region is None or not any(columns):
        empty = torch.zeros((1, 1, 1), dtype=torch.uint8)
        return empty, Frame((0.0, 0.0, 0.0)), np.zeros((1, len(columns)), bool)
    numbers, table = number_labels(case.volume.label(region), columns)
    return numbers, frame_of(region), table


def number_labels(
    label: Array, columns: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, npt.NDArray[np.bool_]]:
    """A label map as rows of a table: numbers (z, y, x) uint8 or int16, table (rows, columns).

    columns: the label values of each column. Values that no column has become row 0, which is
    empty; values with the same columns share a row.
    """
    asked = np.array(sorted({value for values in columns for value in values}), np.int64)
    members = np.array([[v in values for values in columns] for v in asked.tolist()], bool)
    table, row = np.unique(members, axis=0, return_inverse=True)
    dtype = np.uint8 if len(table) < 256 else np.int16
    rows = (row.reshape(-1) + 1).astype(dtype)
    if asked[0] >= 0 and label.dtype.kind == "u" and label.dtype.itemsize <= 2:
        lookup = np.zeros(TABLE_LIMIT, dtype)
        lookup[asked[asked < TABLE_LIMIT]] = rows[asked < TABLE_LIMIT]
        numbers = np.take(lookup, label)
    else:
        place = np.minimum(np.searchsorted(asked, label), len(asked) - 1)
        numbers = np.where(asked[place] == label, rows[place], 0).astype(dtype)
    return torch.from_numpy(numbers), np.concatenate([np.zeros_like(table[:1]), table])
