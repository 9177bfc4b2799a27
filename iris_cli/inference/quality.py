"""What is unusual about a class in a case: things to look at, no verdicts.

The thresholds come from validation cases of sets with truth (docs/predicting.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iris_cli.inference.statistics import ClassStatistics
from iris_cli.task.task_file import ReferenceVolumes

LOW_CONFIDENCE = 0.9
"""Mean sigmoid of the winning logit; 0.5 is the least it can be."""

VOLUME_FACTOR = 3.0
"""Below the smallest reference by this factor, or above the largest, a volume is unlikely."""

TOKEN_DISTANCE = 0.1
"""Cosine distance from the tokens of the task (`task.likeness`) that is usual for any class."""

DISTANCE_FACTOR = 3.0
"""Of a class whose references differ more, that of the odd one out by this factor is usual."""

CONFIDENCE, VOLUME, CUT = "low confidence", "unlikely volume", "cut by the field of view"
UNLIKE = "unlike the references"


@dataclass(frozen=True)
class Likeness:
    """Distance of the tokens of a class from those of its task, and the largest usual one."""

    token_distance: float
    limit: float

    @classmethod
    def of(cls, distance: float, between_references: Sequence[float]) -> Likeness:
        """between_references: of each reference from the others; empty where the task has none."""
        limit = max([TOKEN_DISTANCE, *(DISTANCE_FACTOR * one for one in between_references)])
        return cls(round(distance, 3), round(limit, 3))


def quality_flags(
    found: ClassStatistics,
    confidence: float | None,
    references: ReferenceVolumes | None,
    likeness: Likeness | None = None,
) -> dict[str, str]:
    """What is unusual (`CONFIDENCE`, `VOLUME`, `CUT`, `UNLIKE`) -> the numbers.

    confidence: None where the profile tells none. references: None where the task does not say.
    likeness: None where the class was not compared.
    """
    flags: dict[str, str] = {}
    if confidence is not None and confidence < LOW_CONFIDENCE:
        flags[CONFIDENCE] = f"{confidence:.2f}, below {LOW_CONFIDENCE:g}"
    # A class that its references show cut (an aorta, a spine) is no news where it is cut again.
    usually_cut = references is not None and references.cut * 2 > len(references.volumes_ml)
    if found.touches_border and not usually_cut:
        flags[CUT] = "reaches the edge of the scan"
    if references is not None and references.volumes_ml:
        unlikely = _unlikely(found, references)
        if unlikely:
            low, high = min(references.volumes_ml), max(references.volumes_ml)
            flags[VOLUME] = f"{found.volume_ml:.3g} ml; references {low:.3g} to {high:.3g} ml"
    if likeness is not None and likeness.token_distance > likeness.limit:
        flags[UNLIKE] = f"token distance {likeness.token_distance:.3g}, above {likeness.limit:.3g}"
    return flags


def _unlikely(found: ClassStatistics, references: ReferenceVolumes) -> bool:
    if found.volume_ml < min(references.volumes_ml) / VOLUME_FACTOR:
        return not found.touches_border  # a cut one is small for that reason
    # Of references that are cut the whole volume is not known.
    return not references.cut and found.volume_ml > VOLUME_FACTOR * max(references.volumes_ml)
