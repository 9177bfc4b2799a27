"""Left and right in class names: which pairs look like the two sides of one structure.

A suggestion for people, never applied: what changes places when an image is mirrored is declared
by `mirror_pairs` in dataset.json, because a name can mislead and a silent flip cannot be seen.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

# Words for the left side and their counterparts.
_LEFT = {"left": "right", "lt": "rt", "l": "r"}
_OTHER_SIDE = _LEFT | {right: left for left, right in _LEFT.items()}
# The chambers of the heart are called left and right by the blood they carry, not by their side;
# the lateral ventricles of the brain do lie on the side they are called by.
_HEART = ("atrium", "ventricle", "heart")
_BRAIN = frozenset({"lateral", "lat", "brain", "cerebral"})
# KidneyLeft, kidney_left, L-Kidney, LParotid, ANTERIOR_L, lung2
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def suggest_mirror_pairs(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Pairs (left, right) of class names that differ in the word for the side alone.

    A side is `left`, `lt` or `l` as a word of its own, in any case and at any place of the name. A
    name that says both sides, or whose counterpart is not clear, is in no pair, and no chamber of
    the heart is. Sorted by name.
    """
    by_words: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        if not _is_chamber(name):
            by_words[_words(name)].append(name)
    pairs = []
    for words, found in by_words.items():
        other = by_words.get(tuple(_OTHER_SIDE.get(word, word) for word in words), [])
        sides = [word for word in words if word in _OTHER_SIDE]
        if len(sides) == 1 and sides[0] in _LEFT and len(found) == len(other) == 1:
            pairs.append((found[0], other[0]))
    return tuple(sorted(pairs))


def undeclared_mirror_pairs(
    names: Sequence[str], declared: Iterable[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """The suggested pairs of which no class is in a declared pair."""
    known = {name for pair in declared for name in pair}
    return tuple(pair for pair in suggest_mirror_pairs(names) if not known & set(pair))


def _is_chamber(name: str) -> bool:
    of_heart = any(word in name.lower() for word in _HEART)
    return of_heart and not _BRAIN & set(_words(name))


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(name))
