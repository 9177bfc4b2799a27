"""What can be wrong with a query or with the mask of a class, done on purpose.

For judging flags (`benchmarks.quality_flags`): a query that is changed is predicted as it is then,
a mask that is changed stands for a prediction that went wrong in this way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from iris_cli.preparation.profiles import guess_modality
from iris_cli.volume.reading import Volume

Labels = npt.NDArray[Any]

NOISE = 0.7  # of the standard deviation of the image
BLUR = 2.5  # voxels
SMALL_PART = 20  # a class is left with one voxel of so many
THICKER = 0.25  # of the edge of a cube of its volume
AIR, BRIGHT = -1000, 900  # HU


def _flipped(axis: int) -> Callable[[Volume, Labels], tuple[Volume, Labels]]:
    def flip(image: Volume, truth: Labels) -> tuple[Volume, Labels]:
        array = np.ascontiguousarray(np.flip(image.array, axis))
        return dataclasses.replace(image, array=array), np.ascontiguousarray(np.flip(truth, axis))

    return flip


def _noisy(image: Volume, truth: Labels) -> tuple[Volume, Labels]:
    array = image.array.astype(np.float32)
    noise = np.random.default_rng(0).normal(0, NOISE * array.std(), array.shape)
    return dataclasses.replace(image, array=(array + noise).astype(np.float32)), truth


def _blurred(image: Volume, truth: Labels) -> tuple[Volume, Labels]:
    array = ndimage.gaussian_filter(image.array.astype(np.float32), BLUR)
    return dataclasses.replace(image, array=array), truth


def _inverted(image: Volume, truth: Labels) -> tuple[Volume, Labels]:
    array = image.array.astype(np.float32)
    if guess_modality(image.array) == "ct":
        inverted = np.maximum(-array - BRIGHT, AIR)
    else:
        inverted = array.max() + array.min() - array
    return dataclasses.replace(image, array=inverted), truth


QUERIES: dict[str, Callable[[Volume, Labels], tuple[Volume, Labels]]] = {
    "query upside down": _flipped(0),
    "query back to front": _flipped(1),
    "query with noise": _noisy,
    "query blurred": _blurred,
    "query inverted": _inverted,
}
"""Image and truth -> both changed."""


def _each(change: Callable[[npt.NDArray[np.bool_]], npt.NDArray[np.bool_]]) -> Callable[..., Any]:
    def change_all(truth: Labels) -> Labels:
        changed = np.zeros_like(truth)
        for value in np.unique(truth[truth > 0]):
            changed[change(truth == value) & (changed == 0)] = value
        return changed

    return change_all


def _moved(part: float) -> Callable[[npt.NDArray[np.bool_]], npt.NDArray[np.bool_]]:
    """By this part of its extent, along the axis where most room is left."""

    def move(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        where = np.argwhere(mask)
        extent = np.ptp(where, axis=0) + 1
        axis = int(np.argmax(np.array(mask.shape) - extent))
        step = max(1, round(float(extent[axis]) * part))
        if where[:, axis].max() + step >= mask.shape[axis]:
            step = -step
        return np.roll(mask, step, axis)

    return move


def _end(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    where = np.argwhere(mask)
    order = np.argsort(where @ np.array([1.0, 0.3, 0.1]))[: max(8, len(where) // SMALL_PART)]
    left = np.zeros_like(mask)
    left[tuple(where[order].T)] = True
    return left


def _thicker(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    steps = max(1, round(float(np.cbrt(mask.sum())) * THICKER))
    return np.asarray(ndimage.binary_dilation(mask, iterations=steps))


def _exchanged(truth: Labels) -> Labels:
    values = np.unique(truth[truth > 0])
    changed = np.zeros_like(truth)
    for value, other in zip(values, np.roll(values, -1), strict=True):
        changed[truth == value] = other if len(values) > 1 else 0
    return changed


def _as_it_is(truth: Labels) -> Labels:
    return truth


MASKS: dict[str, Callable[[Labels], Labels]] = {
    "true mask": _as_it_is,
    "mask of another class": _exchanged,
    "mask moved by a quarter": _each(_moved(0.25)),
    "mask moved by a half": _each(_moved(0.5)),
    "mask moved by its extent": _each(_moved(1.0)),
    "end of the mask alone": _each(_end),
    "mask thicker": _each(_thicker),
}
"""Label map -> label map."""
