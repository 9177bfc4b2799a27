"""Which classes of a public set change places when an image is mirrored left to right."""

from __future__ import annotations

from collections.abc import Iterable

from iris_cli.dataset.sides import suggest_mirror_pairs

# The chambers of the heart are called left and right by the blood they carry, not by their side.
_NOT_BY_SIDE = ("atrium", "ventricle", "heart")


def lateral_pairs(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Pairs (left, right) of class names that differ in the word for the side alone."""
    return suggest_mirror_pairs(
        name for name in names if not any(word in name.lower() for word in _NOT_BY_SIDE)
    )
