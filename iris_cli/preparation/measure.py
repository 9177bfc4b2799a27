"""What planning needs to know of a case, measured while its files are read anyway."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.dataset.classes import sharing_values
from iris_cli.dataset.raw import RawDataset
from iris_cli.files.schema import Record

Box = tuple[slice, slice, slice]

# Label values below this are counted by a table; above it they are numbered anew first.
_TABLE_LIMIT = 65536


class ClassFacts(Record):
    """One class of one native label map: voxels, mm3, and edges of its box (zyx, mm)."""

    voxels: int
    volume_mm3: float
    extent_mm: tuple[float, float, float]


class CaseFacts(Record):
    """One case on its native grid.

    guesses: guessed modality per channel. classes: those with at least one voxel, none that is held
    out. extent_mm: longest edge of the box around these classes, 0 where there is none.
    image_hash: of the voxels of channel 0, whatever its header says.
    """

    case: str
    subject: str
    role: str
    shape_zyx: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]
    guesses: tuple[str, ...]
    image_hash: str
    labelled: bool
    classes: dict[str, ClassFacts]
    extent_mm: float


def class_values(raw: RawDataset) -> dict[str, tuple[int, ...]]:
    """Raw values of every class (background is none)."""
    return {label.name: label.values for label in raw.classes}


def measured_values(raw: RawDataset) -> dict[str, tuple[int, ...]]:
    """Raw values of the classes that planning may know of: as `class_values`, without those that
    are held out or share a value with one that is."""
    classes = class_values(raw)
    hidden = sharing_values(raw.held_out_classes, classes)
    return {name: values for name, values in classes.items() if name not in hidden}


def measure_classes(
    label: npt.NDArray[np.integer[Any]],
    spacing_zyx_mm: Sequence[float],
    classes: Mapping[str, Sequence[int]],
) -> tuple[dict[str, ClassFacts], float]:
    """Size of every class that is present, and the longest extent of them together.

    label: (z, y, x). returns: facts by class name, longest edge (mm) of the box around all.
    """
    counts, boxes = count_and_box(label)
    voxel_mm3 = math.prod(spacing_zyx_mm)
    facts: dict[str, ClassFacts] = {}
    found: list[Box] = []
    for name, values in classes.items():
        there = [v for v in values if v in boxes]
        if not there:
            continue
        box = _union([boxes[v] for v in there])
        found.append(box)
        voxels = sum(counts[v] for v in there)
        facts[name] = ClassFacts(
            voxels=voxels, volume_mm3=voxels * voxel_mm3, extent_mm=_edges(box, spacing_zyx_mm)
        )
    extent = max(_edges(_union(found), spacing_zyx_mm)) if found else 0.0
    return facts, extent


def count_and_box(label: npt.NDArray[np.integer[Any]]) -> tuple[dict[int, int], dict[int, Box]]:
    """Voxel count of every value (0 included) and bounding box of every value but 0."""
    from scipy import ndimage  # a third of a second that only planning has to pay

    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= _TABLE_LIMIT:
        values, numbered = np.unique(label, return_inverse=True)
        numbered = numbered.reshape(label.shape).astype(np.int32) + 1
    else:
        values, numbered = np.arange(high + 1), label
    size = int(numbered.max()) + 1
    # Slice by slice: counting needs 8 bytes a voxel for what it is counting.
    table = np.sum([np.bincount(plane.reshape(-1), minlength=size) for plane in numbered], axis=0)
    offset = 0 if numbered is label else 1
    counts = {int(v): int(table[i + offset]) for i, v in enumerate(values) if table[i + offset]}
    boxes: dict[int, Box] = {}
    for number, box in enumerate(ndimage.find_objects(numbered), start=1):
        value = int(values[number - offset])
        if box is not None and value != 0:
            boxes[value] = (box[0], box[1], box[2])
    return counts, boxes


def _union(boxes: Sequence[Box]) -> Box:
    z, y, x = (
        slice(min(b[a].start for b in boxes), max(b[a].stop for b in boxes)) for a in range(3)
    )
    return z, y, x


def _edges(box: Box, spacing_zyx_mm: Sequence[float]) -> tuple[float, float, float]:
    z, y, x = (
        (side.stop - side.start) * float(mm) for side, mm in zip(box, spacing_zyx_mm, strict=True)
    )
    return z, y, x
