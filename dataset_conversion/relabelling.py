"""Label maps whose values are given other numbers on the way into a raw data set."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dataset_conversion.scan import Recipe
from iris_cli.errors import DataRefused
from iris_cli.volume.reading import Volume, read_labels, smallest_label_type


def renumbered(path: Path, new: Mapping[int, int]) -> Recipe:
    """A label map with the values of `new` (old -> new); others than these and 0 are refused."""
    return Recipe(functools.partial(renumber_labels, new=tuple(sorted(new.items()))), (path,))


def renumber_labels(files: Sequence[Path], *, new: Sequence[tuple[int, int]]) -> Volume:
    """The one file of `files`, renumbered. raises DataRefused for a value that `new` lacks."""
    volume = read_labels(files[0])
    table = {0: 0, **dict(new)}
    values, places = np.unique(volume.array, return_inverse=True)
    unknown = sorted(set(values.tolist()) - set(table))
    if unknown:
        raise DataRefused(
            "the label map holds values that the table of this set does not have",
            file=files[0],
            found=", ".join(map(str, unknown[:10])),
            expected=", ".join(map(str, sorted(table))),
            fix="check that this is the file of this set",
        )
    dtype = smallest_label_type(0, max(table.values()))
    numbers = np.array([table[int(value)] for value in values], dtype=dtype)
    return dataclasses.replace(volume, array=numbers[places].reshape(volume.array.shape))


def described(new: Mapping[int, int]) -> str | None:
    """What is renumbered, in words; None where every value keeps its number."""
    moved = ", ".join(f"{old} -> {number}" for old, number in new.items() if old != number)
    return f"label values are renumbered: {moved}" if moved else None
