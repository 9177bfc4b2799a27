"""The contact sheet of a training step: what a few episodes showed, asked for, and got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from iris_cli.files.publish import publish

Picture = npt.NDArray[np.floating[Any]]
Masks = npt.NDArray[np.bool_]

COLUMNS = (
    "reference",
    "reference and mask",
    "query",
    "query and truth",
    "query and prediction",
)
_NAMES_SHOWN = 10
_NAME_LENGTH = 24


@dataclass(frozen=True)
class SheetClass:
    """A class of an episode. dice: of the whole query patch; None where it is not annotated."""

    name: str
    dice: float | None


@dataclass(frozen=True)
class SheetRow:
    """One episode: a slice of a reference and one of the query.

    reference, query: (Y, X), canonical orientation. reference_masks, truth, prediction:
    (K, Y, X) bool, in the order of `classes`.
    """

    title: str
    classes: tuple[SheetClass, ...]
    reference: Picture
    reference_masks: Masks
    query: Picture
    truth: Masks
    prediction: Masks


def draw_sheet(path: Path, title: str, rows: Sequence[SheetRow]) -> Path:
    """Publish a PNG with a row per episode; every class has one colour in its row.

    Slices are windowed from the 1st to the 99th percentile of what they show; anterior is on top
    and the right side of the body on the left.
    """
    height = 2.35 * len(rows) + 0.6
    # Placed by hand: to find the margins would draw everything twice.
    figure = Figure(figsize=(14.5, height), facecolor="black")
    grid = figure.subplots(
        len(rows),
        6,
        squeeze=False,
        gridspec_kw={
            "left": 0.005,
            "right": 0.995,
            "bottom": 0.05 / height,
            "top": 1 - 0.55 / height,
            "wspace": 0.02,
            "hspace": 0.02,
        },
    )
    for row, axes in zip(rows, grid, strict=True):
        _draw_row(axes, row)
    for axes, heading in zip(grid[0], COLUMNS, strict=False):
        axes.set_title(heading, color="white", fontsize=10)
    figure.suptitle(title, color="white", fontsize=11, parse_math=False)
    return publish(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))


def _draw_row(axes: Sequence[Any], row: SheetRow) -> None:
    none = np.zeros((0, *row.query.shape), bool)
    cells = (
        (row.reference, none),
        (row.reference, row.reference_masks),
        (row.query, none),
        (row.query, row.truth),
        (row.query, row.prediction),
    )
    colours = _colours(len(row.classes))
    for cell, (image, masks) in zip(axes, cells, strict=False):
        low, high = np.percentile(image, (1.0, 99.0))
        cell.imshow(np.flip(image), cmap="gray", vmin=low, vmax=max(high, low + 1e-3))
        cell.set_axis_off()
        for mask, colour in zip(masks, colours, strict=False):
            _paint(cell, np.flip(mask), colour)
        height, width = image.shape
        cell.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    _name(axes[5], row, colours)


def _paint(axes: Any, mask: npt.NDArray[np.bool_], colour: tuple[float, ...]) -> None:
    """Filled and outlined: classes may lie in each other, as unions do."""
    if not mask.any():
        return
    fill = np.zeros((*mask.shape, 4))
    fill[mask] = (*colour[:3], 0.25)
    axes.imshow(fill, interpolation="nearest")
    # One voxel of margin closes the outline of a mask that the slice cuts.
    outline = np.pad(mask, 1).astype(float)
    y, x = (np.arange(-1, n + 1) for n in mask.shape)
    axes.contour(x, y, outline, levels=[0.5], colors=[colour], linewidths=1.2)


def _name(axes: Any, row: SheetRow, colours: Sequence[tuple[float, ...]]) -> None:
    """What the row is, and its classes with the Dice of the patch."""
    axes.set_axis_off()
    # A dollar sign in a name is no formula.
    plain = {"va": "top", "transform": axes.transAxes, "parse_math": False}
    axes.text(0.0, 0.97, row.title, color="white", fontsize=9, **plain)
    shown = list(zip(row.classes, colours, strict=True))[:_NAMES_SHOWN]
    lines = [(_entry(item), colour) for item, colour in shown]
    if len(row.classes) > _NAMES_SHOWN:
        lines.append((f"and {len(row.classes) - _NAMES_SHOWN} more", (1.0, 1.0, 1.0)))
    for index, (text, colour) in enumerate(lines):
        axes.text(0.0, 0.78 - 0.078 * index, text, color=colour, fontsize=8, **plain)


def _entry(item: SheetClass) -> str:
    short = item.name if len(item.name) <= _NAME_LENGTH else item.name[: _NAME_LENGTH - 1] + "…"
    return f"{short}: " + ("not annotated" if item.dice is None else f"Dice {item.dice:.2f}")


def _colours(count: int) -> list[tuple[float, ...]]:
    palette = mpl.colormaps["tab10" if count <= 10 else "hsv"]
    places = range(count) if count <= 10 else np.linspace(0, 0.95, count)
    return [tuple(float(part) for part in palette(place)) for place in places]
