"""What is known about a public data set before a file of it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class PaperRole(StrEnum):
    """What the paper ("Show and Segment", CVPR 2025) does with a set."""

    TRAINED = "trained"
    HELD_OUT = "held out"
    NONE = "no"


class Verified(StrEnum):
    """What the layout that a converter expects was compared with."""

    ARCHIVE = "real archive"
    DOCUMENTATION = "documentation"


class LabelGrid(StrEnum):
    """What becomes of a label map that is not on the grid of its image.

    REFUSE: the case fails. COPY: equal shapes, the header of the label map is known to be wrong.
    RESAMPLE: another grid in the same room, largest linear weight. The last two are reported.
    """

    REFUSE = "refuse"
    COPY = "copy the geometry of the image"
    RESAMPLE = "resample to the image"


@dataclass(frozen=True)
class AuthorSplit:
    """The split of the paper's author: subjects that validate and test; the others train."""

    validate: frozenset[str]
    test: frozenset[str]
    source: str


@dataclass(frozen=True)
class SetFacts:
    """A public data set: everything `iris convert list` and dataset.json say about it.

    labels: name -> value (or values: a region), without background.
    layout: the tree of the archive, in a line. sources: where layout and labels were learned.
    subjects: the rule that says which cases are one subject, in words.
    expected: how many "labelled" and "unlabelled" cases the archive holds.
    defects: known ones; each is repaired or reported by the converter.
    duplicates: cases that other public sets hold, too (a leak if one trains, the other tests).
    mirror_pairs: (left, right). right_of: further pairs whose first lies on the patient's right of
    the second; both kinds are checked in every label map, and what is not so is reported.
    drop_values: label values that become background, which is reported.
    """

    name: str
    title: str
    channels: tuple[str, ...]
    labels: Mapping[str, int | list[int]]
    licence: str
    page: str
    layout: str
    sources: tuple[str, ...]
    subjects: str
    citation: str | None = None
    paper: PaperRole = PaperRole.NONE
    verified: Verified = Verified.DOCUMENTATION
    expected: Mapping[str, int] | None = None
    defects: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    mirror_pairs: tuple[tuple[str, str], ...] = ()
    right_of: tuple[tuple[str, str], ...] = ()
    label_grid: LabelGrid = LabelGrid.REFUSE
    drop_values: tuple[int, ...] = ()
    regions_class_order: tuple[int, ...] | None = None
    absent_means: str = "background"
    author_split: AuthorSplit | None = None

    @property
    def legal_values(self) -> frozenset[int]:
        """Every value a converted label map may hold."""
        values = [[v] if isinstance(v, int) else v for v in self.labels.values()]
        return frozenset({0}.union(*values))

    def to_json(self) -> dict[str, Any]:
        """For `iris convert list --json`, JSON values only."""
        return {
            "name": self.name,
            "title": self.title,
            "modality": list(self.channels),
            "labels": dict(self.labels),
            "licence": self.licence,
            "page": self.page,
            "paper": str(self.paper),
            "verified": str(self.verified),
            "layout": self.layout,
            "sources": list(self.sources),
            "subjects": self.subjects,
            "expected": dict(self.expected or {}),
            "defects": list(self.defects),
            "duplicates": list(self.duplicates),
            "mirror_pairs": [list(pair) for pair in self.mirror_pairs],
            "author_split": self.author_split is not None,
        }
