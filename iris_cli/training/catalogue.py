"""The sets of a run as the sampler sees them: which case offers which class, and for what.

Two rules are enforced here and nowhere else, so that no sampler can break them:
a view with role `test` is refused, and a class that shares a label value with a held-out class is
no class (a union could otherwise smuggle it in).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.dataset.classes import sharing_values
from iris_cli.errors import DataRefused
from iris_cli.files.hashing import hash_json
from iris_cli.preparation.store import StoredVolume, open_case
from iris_cli.training.settings import CaseDeclared, LabelTable, SetForTraining

Points = npt.NDArray[np.int64]

# Raise it where episodes of the same data come out otherwise: no begun run may go on with them.
SAMPLER_VERSION = 4


@dataclass(frozen=True)
class CaseClass:
    """One class of one case: its label values, its size and up to 256 of its voxels (n, 3) zyx."""

    values: tuple[int, ...]
    voxels: int
    points: Points


@dataclass(frozen=True)
class Case:
    """One view of the store. `classes` holds what may be asked for, and only if annotated here.

    held_out: the label values of each held-out class, for pseudo tasks to stay away from.
    """

    volume: StoredVolume
    subject: str
    channel: int
    labelled: bool
    classes: Mapping[str, CaseClass]
    held_out: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        return self.volume.name

    @property
    def fill(self) -> float:
        """Smallest normalised value: what lies outside the volume."""
        return self.volume.stored.fill

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.volume.shape

    @property
    def ignore_value(self) -> int | None:
        return self.volume.stored.ignore_value

    def annotated(self, names: Sequence[str]) -> bool:
        """Whether every one of these classes was annotated here (present or truly absent)."""
        return self.labelled and all(name in self.classes for name in names)

    def holds(self, name: str) -> bool:
        found = self.classes.get(name)
        return self.labelled and found is not None and found.voxels > 0

    def values(self, names: Sequence[str]) -> tuple[int, ...]:
        return tuple(sorted({v for name in names for v in self.classes[name].values}))


@dataclass(frozen=True)
class TrainingSet:
    """One set: its cases and, per class, the cases that hold it."""

    settings: SetForTraining
    cases: tuple[Case, ...]
    partners: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.settings.name

    @cached_property
    def holders(self) -> Mapping[str, tuple[int, ...]]:
        """Class -> indices of the cases that hold it; only classes that some case holds."""
        names = sorted({name for case in self.cases for name in case.classes})
        found = {
            name: tuple(i for i, case in enumerate(self.cases) if case.holds(name))
            for name in names
        }
        return {name: cases for name, cases in found.items() if cases}

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.holders)

    @property
    def may_mirror(self) -> bool:
        return self.settings.symmetric or bool(self.partners)


@dataclass(frozen=True)
class Catalogue:
    """All sets of a run."""

    sets: tuple[TrainingSet, ...]

    def fingerprint(self) -> str:
        """Hash of what training reads: stored arrays by their content hashes, and their records."""
        sets = {
            item.name: {
                case.name: {
                    "outputs": dict(case.volume.outputs),
                    "stored": case.volume.stored.model_dump(mode="json"),
                    "labelled": case.labelled,
                    "classes": {n: list(c.values) for n, c in case.classes.items()},
                }
                for case in item.cases
            }
            for item in self.sets
        }
        return hash_json({"sampler": SAMPLER_VERSION, "sets": sets})


def read_catalogue(sets: Sequence[SetForTraining]) -> Catalogue:
    """Open the store of every set; raises DataRefused where a set has nothing to train on."""
    if not sets:
        raise DataRefused(
            "there is no set to train on", fix="give at least one set of the plan training cases"
        )
    if len({item.name for item in sets}) != len(sets):
        raise DataRefused("two training sets have one name", found=[item.name for item in sets])
    return Catalogue(tuple(_read_set(item) for item in sets))


def _read_set(settings: SetForTraining) -> TrainingSet:
    cases = []
    for wanted in settings.cases:
        volume = open_case(settings.store, wanted.view)
        if volume.stored.role == "test":
            raise DataRefused(
                f"{wanted.view} is a test case of {settings.name}: it cannot be trained on",
                file=settings.store / f"{wanted.view}.json",
                fix="take it out of the plan's train list",
            )
        if volume.stored.labelled and settings.table is not None:
            _check_made_with(settings.table, volume, settings)
        if wanted.declared is not None:
            _check_made_with(wanted.declared, volume, settings)
        cases.append(_case(volume, settings, use_labels=wanted.labels))
    if not cases:
        raise DataRefused(
            f"{settings.name} has no case to train on",
            file=settings.store,
            fix="run `iris preprocess`, or take the set out of the plan",
        )
    _check_names(settings, cases)
    partners = {a: b for pair in settings.mirror_pairs for a, b in (pair, pair[::-1])}
    return TrainingSet(settings, tuple(cases), partners)


def _check_made_with(
    wanted: LabelTable | CaseDeclared, volume: StoredVolume, settings: SetForTraining
) -> None:
    """A label map says nothing without its table: with an old one, liver is learned as spleen."""
    expected = wanted.model_dump(mode="json")
    other = [key for key, value in expected.items() if volume.parameters.get(key) != value]
    if other:
        raise DataRefused(
            f"{volume.name} of {settings.name} was preprocessed with other {', '.join(other)}",
            file=settings.store / f"{volume.name}.json",
            found={key: volume.parameters.get(key) for key in other},
            expected={key: expected[key] for key in other},
            fix="run `iris preprocess`",
        )


def _check_names(settings: SetForTraining, cases: Sequence[Case]) -> None:
    """A mistyped held-out class would be trained on without a word."""
    known = {name for case in cases for name in case.volume.stored.classes}
    named = {*settings.held_out_classes, *(n for pair in settings.mirror_pairs for n in pair)}
    unknown = sorted(named - known)
    if unknown:
        raise DataRefused(
            f"{settings.name} has no class {', '.join(unknown)}",
            file=settings.store,
            found=", ".join(sorted(known)) or "no classes",
            fix="correct held_out_classes or mirror_pairs of the set",
        )


def _case(volume: StoredVolume, settings: SetForTraining, *, use_labels: bool) -> Case:
    stored = volume.stored
    held_out = tuple(
        stored.classes[name].values for name in settings.held_out_classes if name in stored.classes
    )
    tables = {name: item.values for name, item in stored.classes.items()}
    hidden = sharing_values(settings.held_out_classes, tables) | set(stored.not_annotated)
    classes = {
        name: CaseClass(item.values, item.voxels, _points(item.coordinates))
        for name, item in stored.classes.items()
        if name not in hidden
    }
    labelled = stored.labelled and use_labels
    return Case(
        volume=volume,
        subject=stored.subject,
        channel=stored.channel,
        labelled=labelled,
        classes=classes if labelled else {},
        held_out=held_out if stored.labelled else (),
    )


def _points(coordinates: Sequence[tuple[int, int, int]]) -> Points:
    points: np.ndarray[Any, np.dtype[np.int64]] = np.array(coordinates, np.int64)
    return points.reshape(-1, 3)
