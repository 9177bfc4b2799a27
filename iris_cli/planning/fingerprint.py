"""The fingerprint of a set: what its training cases are like, in the numbers planning uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from iris_cli.files.schema import Record
from iris_cli.preparation.measure import CaseFacts

Triple = tuple[float, float, float]


class ClassFingerprint(Record):
    """One class over the training cases that have it: medians on the native grid."""

    cases: int
    voxels: float
    volume_mm3: float
    longest_extent_mm: float


class SetFingerprint(Record):
    """One set over its training cases (the unlabelled ones where no case has labels).

    modality_votes: per channel, guessed modality -> cases. Shapes and spacings are zyx.
    """

    cases: int
    subjects: int
    modality_votes: tuple[dict[str, int], ...]
    spacing_mm_min: Triple
    spacing_mm_median: Triple
    spacing_mm_max: Triple
    shape_min: tuple[int, int, int]
    shape_median: Triple
    shape_max: tuple[int, int, int]
    extent_mm: float
    classes: dict[str, ClassFingerprint]


def fingerprint_set(facts: Sequence[CaseFacts]) -> SetFingerprint:
    """Sum up the facts of the cases that planning may look at (at least one)."""
    spacings = [fact.spacing_zyx_mm for fact in facts]
    shapes = [fact.shape_zyx for fact in facts]
    channels = range(len(facts[0].guesses))
    extents = [fact.extent_mm for fact in facts if fact.extent_mm > 0]
    return SetFingerprint(
        cases=len(facts),
        subjects=len({fact.subject for fact in facts}),
        modality_votes=tuple(dict(Counter(fact.guesses[c] for fact in facts)) for c in channels),
        spacing_mm_min=_by_axis(spacings, min),
        spacing_mm_median=_by_axis(spacings, median),
        spacing_mm_max=_by_axis(spacings, max),
        shape_min=_whole(_by_axis(shapes, min)),
        shape_median=_by_axis(shapes, median),
        shape_max=_whole(_by_axis(shapes, max)),
        extent_mm=float(median(extents)) if extents else 0.0,
        classes=_classes(facts),
    )


def _classes(facts: Sequence[CaseFacts]) -> dict[str, ClassFingerprint]:
    names = dict.fromkeys(name for fact in facts for name in fact.classes)
    summed = {}
    for name in names:
        found = [fact.classes[name] for fact in facts if name in fact.classes]
        summed[name] = ClassFingerprint(
            cases=len(found),
            voxels=float(median(f.voxels for f in found)),
            volume_mm3=float(median(f.volume_mm3 for f in found)),
            longest_extent_mm=float(median(max(f.extent_mm) for f in found)),
        )
    return summed


def _by_axis(rows: Sequence[Sequence[float]], choose: object) -> Triple:
    assert callable(choose)
    z, y, x = (float(choose(column)) for column in zip(*rows, strict=True))
    return z, y, x


def _whole(triple: Triple) -> tuple[int, int, int]:
    z, y, x = triple
    return int(z), int(y), int(x)
