"""Whether the volumes of a case lie on one grid, and by which turn of axes they would.

iris follows headers: volumes are compared in canonical orientation, so a label map that is stored
with other axes than its image, and says so, is on its grid. What is left are label maps whose
header or voxels were turned alone. Which of the two was turned no header tells, so nothing is
turned silently; `repaired_labels` is what `iris plan --repair` writes for people to look at.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.preparation.codes import Code
from iris_cli.preparation.findings import Finding, Place
from iris_cli.volume.grid import Grid, GridMatch
from iris_cli.volume.reading import NativeGeometry, Volume

_SAME_AXES = 1e-3
"""Largest difference of two affines' columns, in units of the voxel edge, of equal axes."""


Order = tuple[int, int, int]

# Exchanging x and z is by far the commonest: NumPy's order taken for that of the file.
_ORDERS: tuple[Order, ...] = (
    (0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1),
)  # fmt: skip
_STRAIGHT = (False, False, False)


@dataclass(frozen=True)
class Turn:
    """Axes of a stored array exchanged and turned round.

    axes_xyz: for each axis of the image the axis of the label map that becomes it.
    flips_xyz: whether that axis is turned round. reason: what was found, in words.
    """

    axes_xyz: Order
    flips_xyz: tuple[bool, bool, bool]
    reason: str

    def apply(self, array_zyx: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The label map's stored array (z, y, x) in the order of the image's."""
        xyz = array_zyx.transpose(2, 1, 0).transpose(self.axes_xyz)
        turned = xyz[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips_xyz)]
        return np.ascontiguousarray(turned.transpose(2, 1, 0))


def check_channel_grid(
    place: Place, channel: int, volume: Volume, first: Volume
) -> Iterator[Finding]:
    """A channel against the first one."""
    match = volume.grid.compare(first.grid)
    if match is GridMatch.ROUNDING:
        yield _rounding(place, f"channel {channel} differs from the first channel", volume, first)
    if match is GridMatch.DIFFERENT:
        yield place.finding(
            Code.CHANNEL_GRID,
            f"channel {channel} is not on the grid of the first channel",
            file=volume.path,
            **grid_numbers(volume.grid, first.grid),
        )


def check_label_grid(place: Place, label: Volume, image: Volume) -> Iterator[Finding]:
    """A label map against its image."""
    match = label.grid.compare(image.grid)
    if match is GridMatch.ROUNDING:
        yield _rounding(place, "the label map differs from its image", label, image)
    if match is not GridMatch.DIFFERENT:
        if label.native.orientation != image.native.orientation:
            yield place.finding(
                Code.GRID_REORIENTED,
                "the label map is stored with other axes than its image; the headers put both in "
                "one place",
                file=label.path,
                found=axes_of(label.native.grid),
                expected=axes_of(image.native.grid),
            )
        return
    turn = find_turn(label.native.grid, image.native.grid)
    if turn is None:
        yield place.finding(
            Code.GRID_DIFFERENT,
            "the label map is not on the grid of its image",
            file=label.path,
            **grid_numbers(label.grid, image.grid),
        )
        return
    yield place.finding(
        Code.GRID_FLIPPED,
        f"the label map is not on the grid of its image: {turn.reason}",
        file=label.path,
        **grid_numbers(label.native.grid, image.native.grid),
    )


def find_turn(label: Grid, image: Grid) -> Turn | None:
    """The turn of axes that puts a label map on its image's grid, None where none explains it.

    label, image: grids as stored. Looked for, in this order: a world mirrored as a whole (LPS
    taken for RAS), a header turned without its origin, axes exchanged without the header.
    """
    return _mirrored_world(label, image) or _turned_header(label, image) or _exchanged(label, image)


def repaired_labels(label: Volume, image: NativeGeometry) -> npt.NDArray[Any] | None:
    """The label map turned as `find_turn` says: canonical (z, y, x), to be written beside `image`.

    None where no turn explains its grid. Whether its voxels fit the image only a look can tell.
    """
    turn = find_turn(label.native.grid, image.grid)
    if turn is None:
        return None
    stored = turn.apply(label.native.orientation.restore(label.array))
    return image.orientation.apply_array(stored)


def grid_numbers(found: Grid, expected: Grid) -> dict[str, str]:
    """The numbers in which two grids differ, as `found` and `expected`."""
    parts = [
        ("shape (x, y, z)", found.shape_xyz, expected.shape_xyz),
        ("spacing", _numbers(found.spacing_xyz), _numbers(expected.spacing_xyz)),
        ("origin", _numbers(found.affine[:3, 3]), _numbers(expected.affine[:3, 3])),
        ("axes", axes_of(found), axes_of(expected)),
    ]
    differing = [part for part in parts if part[1] != part[2]]
    if not differing:
        directions = [_numbers(grid.affine[:3, :3].reshape(-1)) for grid in (found, expected)]
        differing = [("axes", directions[0], directions[1])]
    return {
        "found": ", ".join(f"{name} {a}" for name, a, _ in differing),
        "expected": ", ".join(f"{name} {b}" for name, _, b in differing),
    }


def axes_of(grid: Grid) -> str:
    """Where the stored axes run to, as three letters (RAS: right, anterior, superior)."""
    from nibabel.orientations import aff2axcodes

    return "".join(str(letter) for letter in aff2axcodes(grid.affine))


def _mirrored_world(label: Grid, image: Grid) -> Turn | None:
    if label.shape_zyx != image.shape_zyx:
        return None
    for signs in itertools.product((1.0, -1.0), repeat=3):
        mirror = np.diag([*signs, 1.0])
        if min(signs) < 0 and _same(mirror @ label.affine, image.affine, image):
            names = ", ".join(n for n, s in zip("xyz", signs, strict=True) if s < 0)
            return Turn(
                _ORDERS[0], _STRAIGHT, f"its header has the signs of {names} the other way round"
            )
    return None


def _turned_header(label: Grid, image: Grid) -> Turn | None:
    """Axes that are the image's in another order or direction, at a place that does not fit."""
    for order, flips in itertools.product(_ORDERS, itertools.product((False, True), repeat=3)):
        is_turned = order != _ORDERS[0] or any(flips)
        if not is_turned or tuple(label.shape_xyz[a] for a in order) != image.shape_xyz:
            continue
        columns = label.affine[:3, list(order)] * [-1.0 if flip else 1.0 for flip in flips]
        if _same_columns(columns, image.affine[:3, :3], image):
            reason = (
                f"its axes run to {axes_of(label)}, the image's to {axes_of(image)}, but its "
                "origin was not moved with them"
            )
            return Turn(order, (flips[0], flips[1], flips[2]), reason)
    return None


def _exchanged(label: Grid, image: Grid) -> Turn | None:
    """An array with its axes in another order under a header with the image's voxel edges."""
    edges = np.sort(label.spacing_xyz), np.sort(image.spacing_xyz)
    if label.shape_xyz == image.shape_xyz or not np.allclose(*edges, rtol=_SAME_AXES):
        return None
    for order in _ORDERS[1:]:
        if tuple(label.shape_xyz[a] for a in order) == image.shape_xyz:
            return Turn(order, _STRAIGHT, "its axes are exchanged")
    return None


def _same(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64], grid: Grid) -> bool:
    edge = min(grid.spacing_xyz)
    moved = float(np.abs(one[:3, 3] - other[:3, 3]).max())
    return moved <= 0.1 * edge and _same_columns(one[:3, :3], other[:3, :3], grid)


def _same_columns(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64], grid: Grid) -> bool:
    return bool(np.abs(one - other).max() <= _SAME_AXES * min(grid.spacing_xyz))


def _rounding(place: Place, what: str, volume: Volume, other: Volume) -> Finding:
    return place.finding(
        Code.GRID_ROUNDING,
        f"{what}'s grid by rounding; the image's is used",
        file=volume.path,
        **grid_numbers(volume.grid, other.grid),
    )


def _numbers(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{float(v):.7g}" for v in values) + ")"
