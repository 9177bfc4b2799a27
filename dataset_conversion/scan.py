"""What a converter finds: cases with their files, and deviations from what it expected.

A scan looks at names, and into files only where these do not tell. A converter is
`PublicSet(facts, scan)`, where `scan` makes a `Scan` out of a `SourceTree`; everything else is the
runner's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_conversion.facts import SetFacts
from dataset_conversion.raw_set import Split
from dataset_conversion.source_tree import SourceTree
from iris_cli.dataset.dataset_json import Role
from iris_cli.errors import IrisError
from iris_cli.execution.outcomes import Outcome
from iris_cli.volume.reading import Volume


@dataclass(frozen=True)
class Recipe:
    """A volume that no file of the source holds as it is: out of which files, and how.

    make: a top-level function (or `functools.partial` of one), so that it goes to worker
    processes; it is called with `files`.
    """

    make: Callable[[Sequence[Path]], Volume]
    files: tuple[Path, ...]

    def described(self) -> str:
        """The same text for the same making, for the receipt."""
        return described(self.make)


def described(function: Callable[..., object]) -> str:
    """A top-level function, or a `functools.partial` of one, as text."""
    if isinstance(function, functools.partial):
        arguments = (function.args, sorted(function.keywords.items()))
        return f"{described(function.func)}{arguments}"
    return f"{function.__module__}.{function.__qualname__}"


Source = Path | Recipe
"""A file that is taken as it is, or what makes the volume."""

Repair = Callable[[Volume], tuple[Volume, str | None]]
"""Corrects a known defect: the volume (the same object where it stays as it is), and what is to be
reported, None for nothing."""


@dataclass(frozen=True)
class FoundCase:
    """One case of the source: one image per channel, and a label map where there is one.

    repair: applied to every volume of the case (a top-level function, or a partial of one).
    notes: what is to be reported of this case whatever its voxels hold.
    """

    name: str
    images: tuple[Source, ...]
    label: Source | None
    subject: str | None = None
    split: Split = Split.TRAINING
    role: Role | None = None
    modality: str | None = None
    not_annotated: tuple[str, ...] = ()
    repair: Repair | None = None
    notes: tuple[str, ...] = ()

    @property
    def person(self) -> str:
        """The subject; the case itself where the set knows no other."""
        return self.subject or self.name


@dataclass(frozen=True)
class Deviation:
    """Something that is not as expected, and the cases it is about."""

    message: str
    cases: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.cases:
            return self.message
        shown = ", ".join(self.cases[:8]) + (", ..." if len(self.cases) > 8 else "")
        return f"{self.message} ({len(self.cases)}): {shown}"


@dataclass(frozen=True)
class Refused:
    """A subject, or a whole set, that fails before its cases are known; the others go on."""

    name: str
    error: IrisError

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.name, "failed", 0.0, self.error.to_json())


@dataclass(frozen=True)
class Scan:
    """What was found. `facts` are the set's, or completed by what the source itself says."""

    facts: SetFacts
    cases: tuple[FoundCase, ...]
    deviations: tuple[Deviation, ...] = ()
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True)
class PublicSet:
    """A converter: what is known about the set, and how its cases are found by name."""

    facts: SetFacts
    scan: Callable[[SourceTree], Scan]

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def summary(self) -> str:
        return self.facts.title


def missing(what: str, there: Iterable[str], needed: Iterable[str]) -> list[Deviation]:
    """A deviation that names the cases of `needed` which are not in `there`; none for none."""
    absent = sorted(set(needed) - set(there))
    return [Deviation(what, tuple(absent))] if absent else []


def paired_cases(
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    *,
    unlabelled: bool | Collection[str] = False,
    make: Callable[[str, Path, Path | None], FoundCase] | None = None,
) -> tuple[list[FoundCase], list[Deviation]]:
    """Cases of one channel out of images and label maps by name, in the order of the images.

    unlabelled: names (True: all) that are cases without label map; other images without one are
    left out and said. make: (name, image, label map) to the case, where it is more than its files.
    """
    make = make or simple_case
    free = images if unlabelled is True else unlabelled or ()
    cases = [
        make(name, image, labels.get(name))
        for name, image in images.items()
        if name in labels or name in free
    ]
    return cases, [
        *missing("label maps without an image, left out", images, labels),
        *missing("images without a label map, left out", {*labels, *free}, images),
    ]


def simple_case(name: str, image: Path, label: Path | None) -> FoundCase:
    """A case of one channel that is its own subject; without label map it is in `imagesTs`."""
    return FoundCase(name, (image,), label, split=Split.TRAINING if label else Split.TEST)
