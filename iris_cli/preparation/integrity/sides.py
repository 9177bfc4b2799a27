"""Left and right: whether the classes of a pair lie where their names say.

Of a pair whose names say the side ("left kidney", "right kidney") the left one must lie to the
patient's left. A declared pair without such names must lie as it does in most other cases. A pair
that lies the other way round means that image or label map were mirrored, or names exchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from iris_cli.dataset.raw import RawDataset
from iris_cli.dataset.sides import suggest_mirror_pairs
from iris_cli.files.schema import Record
from iris_cli.preparation.codes import Code
from iris_cli.preparation.findings import Finding, Place
from iris_cli.preparation.measure import count_and_box
from iris_cli.volume.reading import Volume

SMALLEST_OFFSET_VOXELS = 2.0
"""Centres nearer than this along left-right say nothing about the side."""

AGREEING_SHARE, AGREEING_CASES = 2 / 3, 3
"""Of the cases that have a pair without sides in its names: how many say how it lies."""


@dataclass(frozen=True)
class SidePair:
    """Two classes that are each other's mirror image. named: whether the names say the side."""

    left: str
    right: str
    named: bool


class SideOffset(Record):
    """How far (mm) the centre of `right` lies to the patient's right of the centre of `left`."""

    left: str
    right: str
    named: bool
    offset_mm: float

    @property
    def pair(self) -> tuple[str, str]:
        return self.left, self.right


def side_pairs(raw: RawDataset) -> tuple[SidePair, ...]:
    """Pairs by name, and those that dataset.json declares besides."""
    named = suggest_mirror_pairs(raw.class_names)
    known = {frozenset(pair) for pair in named}
    declared = [pair for pair in raw.mirror_pairs if frozenset(pair) not in known]
    return (
        *(SidePair(left, right, True) for left, right in named),
        *(SidePair(one, other, False) for one, other in declared),
    )


def measure_sides(
    label: Volume, classes: Mapping[str, Sequence[int]], pairs: Sequence[SidePair]
) -> tuple[SideOffset, ...]:
    """Offsets of the pairs of which both classes are there, far enough apart to count.

    label: (z, y, x) canonical.
    """
    if not pairs:
        return ()
    wanted = {name for pair in pairs for name in (pair.left, pair.right)}
    centres = _centres_mm(label, {name: classes[name] for name in wanted})
    smallest = SMALLEST_OFFSET_VOXELS * label.grid.spacing_xyz[0]
    found = []
    for pair in pairs:
        if pair.left in centres and pair.right in centres:
            offset = centres[pair.right] - centres[pair.left]
            if abs(offset) >= smallest:
                found.append(SideOffset(**vars(pair), offset_mm=offset))
    return tuple(found)


def check_sides(raw: RawDataset, sides: Mapping[str, Sequence[SideOffset]]) -> Iterator[Finding]:
    """A finding for each case with pairs the wrong way round; one for all where most have them.

    sides: case -> its offsets.
    """
    usual = _usual_signs(sides)
    wrong = {
        case: [o for o in offsets if o.offset_mm * usual.get(o.pair, 0.0) < 0]
        for case, offsets in sides.items()
    }
    wrong = {case: offsets for case, offsets in wrong.items() if offsets}
    looked_at = sum(any(o.pair in usual for o in offsets) for offsets in sides.values())
    if len(wrong) > 1 and 2 * len(wrong) > looked_at:
        cases = list(wrong)
        yield Place(raw.name).finding(
            Code.SIDES_SWAPPED,
            "left and right are exchanged in most cases",
            file=raw.folder / "dataset.json",
            found=f"{len(cases)} of {looked_at} cases: {', '.join(cases[:10])}"
            + (", ..." if len(cases) > 10 else "")
            + f"; in {cases[0]}, {_words(wrong[cases[0]])}",
            expected="left structures on the patient's left",
        )
        return
    for case, offsets in wrong.items():
        label = raw.case(case).label
        yield Place(raw.name, case).finding(
            Code.SIDES_SWAPPED,
            "left and right look exchanged",
            file=label,
            found=_words(offsets),
            expected="the other way round, as the names say"
            if offsets[0].named
            else "the other way round, as in the other cases",
        )


def _usual_signs(sides: Mapping[str, Sequence[SideOffset]]) -> dict[tuple[str, str], float]:
    """Pair -> sign of its offset where it lies as it should; without pairs that say nothing."""
    signs: dict[tuple[str, str], list[float]] = defaultdict(list)
    usual: dict[tuple[str, str], float] = {}
    for offset in (o for offsets in sides.values() for o in offsets):
        if offset.named:
            usual[offset.pair] = 1.0
        else:
            signs[offset.pair].append(float(np.sign(offset.offset_mm)))
    for pair, found in signs.items():
        share = (1 + abs(sum(found)) / len(found)) / 2
        if len(found) >= AGREEING_CASES and share >= AGREEING_SHARE:
            usual[pair] = float(np.sign(sum(found)))
    return usual


def _centres_mm(label: Volume, classes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Class -> its centre along the patient's left-right axis (RAS+ x, mm)."""
    _, boxes = count_and_box(label.array)
    sums = {
        value: _sum_and_count(label, value, boxes[value])
        for value in {v for values in classes.values() for v in values} & boxes.keys()
    }
    centres = {}
    for name, values in classes.items():
        there = [sums[value] for value in values if value in sums]
        if there:
            total, voxels = np.sum([s for s, _ in there], axis=0), sum(n for _, n in there)
            centres[name] = float(label.grid.voxel_to_world(total / voxels)[0])
    return centres


def _sum_and_count(
    label: Volume, value: int, box: tuple[slice, slice, slice]
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], int]:
    """Sum of the indices (x, y, z) of all voxels of a value, and how many there are."""
    mask = label.array[box] == value
    voxels = int(np.count_nonzero(mask))
    sums = []
    for axis in (2, 1, 0):  # x, y, z
        others = tuple(a for a in range(3) if a != axis)
        profile = np.count_nonzero(mask, axis=others)
        sums.append(float(profile @ np.arange(profile.size)) + box[axis].start * voxels)
    return np.array(sums), voxels


def _words(offsets: Sequence[SideOffset]) -> str:
    worst = max(offsets, key=lambda o: abs(o.offset_mm))
    side = "right" if worst.offset_mm < 0 else "left"
    more = f" (and {len(offsets) - 1} more pairs)" if len(offsets) > 1 else ""
    return (
        f"{worst.left!r} lies {abs(worst.offset_mm):.3g} mm to the patient's {side} of "
        f"{worst.right!r}{more}"
    )
