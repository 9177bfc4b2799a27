"""What is unusual about a class in a case: things to look at, no verdicts.

The thresholds come from validation cases of sets with truth (docs/predicting.md).
"""

from __future__ import annotations

from iris_cli.inference.statistics import ClassStatistics
from iris_cli.task.task_file import ReferenceVolumes

LOW_CONFIDENCE = 0.9
"""Mean sigmoid of the winning logit; 0.5 is the least it can be."""

VOLUME_FACTOR = 3.0
"""Below the smallest reference by this factor, or above the largest, a volume is unlikely."""

CONFIDENCE, VOLUME, CUT = "low confidence", "unlikely volume", "cut by the field of view"


def quality_flags(
    found: ClassStatistics, confidence: float | None, references: ReferenceVolumes | None
) -> dict[str, str]:
    """What is unusual (`CONFIDENCE`, `VOLUME`, `CUT`) -> the numbers.

    confidence: None where the profile tells none. references: None where the task does not say.
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
    return flags


def _unlikely(found: ClassStatistics, references: ReferenceVolumes) -> bool:
    if found.volume_ml < min(references.volumes_ml) / VOLUME_FACTOR:
        return not found.touches_border  # a cut one is small for that reason
    # Of references that are cut the whole volume is not known.
    return not references.cut and found.volume_ml > VOLUME_FACTOR * max(references.volumes_ml)
