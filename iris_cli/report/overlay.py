"""One picture per case: the label map over the image in three planes, truth as outlines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from iris_cli.files.publish import publish

Labels = npt.NDArray[np.integer[Any]]

# Enough for two percentiles; of all voxels of a large scan they take a copy of it.
WINDOW_VOXELS = 1 << 25

_PLANES = ("axial", "coronal", "sagittal")
# Edges of each picture: what lies (left, right, bottom, top) of it.
_EDGES = {
    "axial": ("R", "L", "P", "A"),
    "coronal": ("R", "L", "I", "S"),
    "sagittal": ("A", "P", "I", "S"),
}


@dataclass(frozen=True)
class Overlay:
    """What is drawn: arrays (z, y, x) in canonical orientation, spacing in mm along z, y, x."""

    title: str
    image: npt.NDArray[Any]
    prediction: Labels
    truth: Labels | None
    spacing_zyx: tuple[float, float, float]
    class_names: Mapping[int, str]


def draw_overlay(path: Path, overlay: Overlay) -> Path:
    """Publish a PNG of three planes; prediction filled, truth (where given) as white outline.

    The slices go through the middle of the foreground; values are windowed from the 1st to the
    99th percentile of the image, of every n-th plane where it is large.
    """
    figure = Figure(figsize=(12.5, 4.6), layout="constrained", facecolor="black")
    centre = _centre(overlay)
    values = list(overlay.class_names)
    colours = _colours(len(values))
    low, high = np.percentile(_thinned(overlay.image), (1.0, 99.0))
    for axes, plane in zip(figure.subplots(1, 3), _PLANES, strict=True):
        picture = _slice(overlay.image, plane, centre)
        aspect = _aspect(plane, overlay.spacing_zyx)
        axes.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1), aspect=aspect)
        _fill(axes, _slice(overlay.prediction, plane, centre), values, colours, aspect)
        if overlay.truth is not None:
            _outline(axes, _slice(overlay.truth, plane, centre), values)
        _letters(axes, plane)
    _legend(figure, overlay, colours)
    figure.suptitle(overlay.title, color="white", fontsize=11)
    return publish(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))


def _thinned(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return image[:: 1 + image.size // WINDOW_VOXELS]


def _centre(overlay: Overlay) -> tuple[int, int, int]:
    """Through the foreground's median voxel of truth, else of the prediction, else the middle."""
    for labels in (overlay.truth, overlay.prediction):
        if labels is not None and labels.any():
            z, y, x = (_middle(labels, axis) for axis in range(3))
            return z, y, x
    z, y, x = (n // 2 for n in overlay.image.shape)
    return z, y, x


def _middle(labels: Labels, axis: int) -> int:
    """Median of the index along an axis, over the foreground."""
    planes = np.array([np.count_nonzero(labels.take(i, axis)) for i in range(labels.shape[axis])])
    before, half = np.cumsum(planes), (planes.sum() - 1) / 2
    low, high = (
        int(np.searchsorted(before, at, side="right")) for at in (math.floor(half), math.ceil(half))
    )
    return (low + high) // 2


def _slice(array: npt.NDArray[Any], plane: str, centre: tuple[int, int, int]) -> npt.NDArray[Any]:
    """A picture with row 0 on top; canonical axes grow to superior, anterior, right."""
    z, y, x = centre
    picture = {"axial": array[z], "coronal": array[:, y], "sagittal": array[:, :, x]}[plane]
    return np.flip(picture)


def _aspect(plane: str, spacing_zyx: tuple[float, float, float]) -> float:
    z, y, x = spacing_zyx
    return {"axial": y / x, "coronal": z / x, "sagittal": z / y}[plane]


def _fill(
    axes: Any, labels: Labels, values: list[int], colours: npt.NDArray[Any], aspect: float
) -> None:
    index = np.zeros(labels.shape, np.intp)
    for position, value in enumerate(values, start=1):
        index[labels == value] = position
    shown = np.ma.masked_equal(index, 0)
    axes.imshow(
        shown,
        cmap=ListedColormap(colours),
        vmin=1,
        vmax=max(len(values), 2),
        alpha=0.45,
        interpolation="nearest",
        aspect=aspect,
    )


def _outline(axes: Any, labels: Labels, values: list[int]) -> None:
    for value in values:
        mask = labels == value
        if mask.any() and not mask.all():
            axes.contour(mask.astype(float), levels=[0.5], colors="white", linewidths=0.7)


def _letters(axes: Any, plane: str) -> None:
    axes.set_axis_off()
    left, right, bottom, top = _EDGES[plane]
    places = ((left, 0.02, 0.5), (right, 0.98, 0.5), (bottom, 0.5, 0.02), (top, 0.5, 0.98))
    for letter, x, y in places:
        axes.text(
            x, y, letter, color="yellow", fontsize=9, ha="center", va="center",
            transform=axes.transAxes,
        )  # fmt: skip
    axes.set_title(plane, color="white", fontsize=9)


def _legend(figure: Figure, overlay: Overlay, colours: npt.NDArray[Any]) -> None:
    handles: list[Any] = [
        Patch(color=tuple(colour), label=name)
        for colour, name in zip(colours, overlay.class_names.values(), strict=False)
    ][:16]
    if overlay.truth is not None:
        handles.append(Line2D([], [], color="white", label="truth (outline)"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 9),
        fontsize=8,
        facecolor="black",
        labelcolor="white",
        frameon=False,
    )


def _colours(count: int) -> npt.NDArray[Any]:
    if count <= 10:
        return np.asarray(mpl.colormaps["tab10"](np.arange(max(count, 2))))
    return np.asarray(mpl.colormaps["hsv"](np.linspace(0, 0.95, count)))
