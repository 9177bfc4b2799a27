"""Several tasks as one: their classes side by side, one encoding of the query for all of them.

Each task stays a decoder group of its own, so its classes see what they saw alone, and a voxel that
two tasks claim goes to the larger logit; `Grouping.JOINT` decodes all classes together instead.
source: DESIGN.md section 7.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.schema import nearest
from iris_cli.task.task_file import (
    MAJOR,
    MINOR,
    TASK_ENDING,
    BankSource,
    Task,
    TaskClass,
    TaskHeader,
)
from iris_cli.volume.grid import SAME_SPACING

BY_CLASS_NAME = ("expected_quality", "reference_volumes", "token_distances")
"""Fields of a header that are dictionaries by class name."""


class Grouping(Enum):
    """Which classes are decoded together: those of a task, or all."""

    APART = "apart"
    JOINT = "joint"


@dataclass(frozen=True)
class NamedTask:
    """A task and the name that messages and renamed classes know it by."""

    name: str
    task: Task

    @classmethod
    def of_file(cls, path: Path, task: Task) -> NamedTask:
        """Named as its file is, without the ending."""
        return cls(path.name.removesuffix(TASK_ENDING), task)


def combine(
    tasks: Sequence[NamedTask], *, grouping: Grouping = Grouping.APART, renumber: bool = False
) -> Task:
    """One task with the classes of all, in the order given.

    renumber: label values 1..n in that order; a class name that several tasks have becomes
    `class@task`.
    raises DataRefused where tasks differ in model, profile, spacing, channel or modality, or give
    one value or one name to two classes; both tasks are named.
    """
    if not tasks:
        raise UsageError("there is no task to combine", fix="give one or more tasks")
    for other in tasks[1:]:
        _refuse_other_work(tasks[0], other)
    if renumber:
        classes = _renumbered(tasks)
    else:
        _refuse_conflicts(tasks)
        classes = [entry for one in tasks for entry in one.task.header.classes]
    headers = [one.task.header for one in tasks]
    groups = list(_groups(headers))
    if grouping is Grouping.JOINT:
        groups = [tuple(range(len(classes)))]
    header = _merged(headers, classes, groups)
    stages = zip(*(one.task.tokens for one in tasks), strict=True)
    return Task(header, tuple(np.concatenate(stage) for stage in stages))


def split(task: Task) -> list[Task]:
    """The decoder groups of a task as tasks of their own: `combine` undone.

    Classes that are decoded together stay together, as they see each other.
    """
    return [_part(task, group) for group in task.header.groups]


def apart(task: Task) -> list[Task]:
    """Every class as a task of its own, decoded alone: other results than in its group."""
    return [_part(task, [index]) for index in range(len(task.header.classes))]


def rename(task: Task, names: Mapping[str, str], values: Mapping[str, int] | None = None) -> Task:
    """The task with other class names (old -> new) and label values (old name -> value).

    raises UsageError for a class the task does not have, DataRefused where two classes would have
    one name or value.
    """
    values = values or {}
    known = [entry.name for entry in task.header.classes]
    for name in (*names, *values):
        if name not in known:
            guess = nearest(name, known)
            raise UsageError(
                f"the task has no class {name!r}",
                expected="some of " + ", ".join(known),
                fix=f"did you mean {guess!r}?" if guess else "take one of the classes above",
            )
    classes = [
        _changed(entry, names.get(entry.name, entry.name), values.get(entry.name, entry.value))
        for entry in task.header.classes
    ]
    for what, taken in (
        ("name", [entry.name for entry in classes]),
        ("label value", [entry.value for entry in classes]),
    ):
        twice = [key for key, count in Counter(taken).items() if count > 1]
        if twice:
            raise DataRefused(f"two classes would have the {what} {twice[0]!r}", fix="take another")
    known_as = [(task.header, name) for name in known]
    changed = {"classes": classes, **_by_class_name(known_as, classes)}
    return Task(_header(task.header, changed), task.tokens)


@dataclass(frozen=True)
class _Demand:
    """What a task asks of a query, and how one is made that asks for something else.

    shown: what messages show of it, where that is not the thing itself.
    """

    what: str
    of: Callable[[TaskHeader], object]
    fix: str
    shown: Callable[[TaskHeader], object] | None = None

    def said(self, header: TaskHeader) -> str:
        """For messages."""
        return _said((self.shown or self.of)(header))


_DEMANDS = (
    _Demand(
        "model",
        lambda header: header.model.fingerprint,  # a copy under another name is the same model
        "encode one of them again with --model",
        shown=lambda header: (
            f"{header.model.name} {header.model.version} ({header.model.fingerprint[:12]})"
        ),
    ),
    _Demand("profile", lambda header: header.profile, "encode one of them again"),
    _Demand("working spacing", lambda header: header.spacing_mm, "encode one again with --spacing"),
    _Demand("channel", lambda header: header.channel, "encode one again with --channel"),
    _Demand(
        "modality",
        lambda header: header.modality,
        "encode one again with --modality, if it was guessed wrongly",
    ),
)


def _refuse_other_work(first: NamedTask, other: NamedTask) -> None:
    """One encoding serves tasks of one model that want the query in one form."""
    for demand in _DEMANDS:
        mine, yours = first.task.header, other.task.header
        if not _same(demand.of(mine), demand.of(yours)):
            raise DataRefused(
                f"the tasks {first.name!r} and {other.name!r} differ in their {demand.what}",
                found=f"{first.name}: {demand.said(mine)}; {other.name}: {demand.said(yours)}",
                expected=f"one {demand.what}, as one encoding of the query serves all tasks",
                fix=f"{demand.fix}, or predict with them one after the other",
            )


def _same(one: object, two: object) -> bool:
    if isinstance(one, float) and isinstance(two, float):
        return abs(one - two) <= SAME_SPACING * one
    return one == two


def _said(value: object) -> str:
    return f"{value:.6g} mm" if isinstance(value, float) else str(value)


def _refuse_conflicts(tasks: Sequence[NamedTask]) -> None:
    names: dict[str, str] = {}
    values: dict[int, tuple[str, str]] = {}
    for one in tasks:
        for entry in one.task.header.classes:
            if entry.name in names:
                raise _conflict(
                    f"the class name {entry.name!r}", names[entry.name], one.name, entry.name
                )
            if entry.value in values:
                other, name = values[entry.value]
                raise _conflict(
                    f"the label value {entry.value}", other, one.name, f"{name}, {entry.name}"
                )
            names[entry.name], values[entry.value] = one.name, (one.name, entry.name)


def _conflict(what: str, first: str, second: str, found: str) -> DataRefused:
    return DataRefused(
        f"the tasks {first!r} and {second!r} both have {what}",
        found=found,
        expected="names and label values that no other task of the call has",
        fix="add --renumber for label values 1, 2, ... in order, or `iris task rename` one of them",
    )


def _renumbered(tasks: Sequence[NamedTask]) -> list[TaskClass]:
    count = Counter(entry.name for one in tasks for entry in one.task.header.classes)
    pairs = [(one, entry) for one in tasks for entry in one.task.header.classes]
    names = [e.name if count[e.name] == 1 else f"{e.name}@{one.name}" for one, e in pairs]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataRefused(
            "two tasks of one name have a class of one name",
            found=twice[0],
            fix="rename one of the task files, or `iris task rename` the class",
        )
    return [
        _changed(entry, name, value)
        for value, (name, (_, entry)) in enumerate(zip(names, pairs, strict=True), start=1)
    ]


def _changed(entry: TaskClass, name: str, value: int) -> TaskClass:
    return TaskClass(**{**entry.model_dump(), "name": name, "value": value})


def _groups(headers: Sequence[TaskHeader]) -> Iterator[tuple[int, ...]]:
    first = 0
    for header in headers:
        for group in header.groups:
            yield tuple(first + index for index in group)
        first += len(header.classes)


def _merged(
    headers: Sequence[TaskHeader],
    classes: Sequence[TaskClass],
    groups: Sequence[tuple[int, ...]],
) -> TaskHeader:
    """What the tasks have in common is that of the first; what they rest on is that of all."""
    licences = dict.fromkeys(header.licence for header in headers if header.licence)
    known_as = [(header, entry.name) for header in headers for entry in header.classes]
    changed: dict[str, Any] = {
        "classes": classes,
        "groups": groups,
        "references": list(dict.fromkeys(r for header in headers for r in header.references)),
        "bank": [entry for header in headers for entry in header.bank],
        "warnings": list(dict.fromkeys(w for header in headers for w in header.warnings)),
        "licence": "; ".join(licences) or None,
        **_by_class_name(known_as, classes),
    }
    if len(headers) > 1:  # of several versions, perhaps
        changed["version"] = f"{MAJOR}.{MINOR}"
    return _header(headers[0], changed)


def _by_class_name(
    known_as: Sequence[tuple[TaskHeader, str]], classes: Sequence[TaskClass]
) -> dict[str, dict[str, Any] | None]:
    """The fields that go by class name, under the names of `classes`.

    known_as: of each class, a header and the name it has there.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for field in BY_CLASS_NAME:
        said = [(getattr(header, field) or {}, name) for header, name in known_as]
        pairs = zip(classes, said, strict=True)
        new = {entry.name: known[name] for entry, (known, name) in pairs if name in known}
        found[field] = new or TaskHeader.model_fields[field].get_default(call_default_factory=True)
    return found


def _header(header: TaskHeader, changed: Mapping[str, Any]) -> TaskHeader:
    """The header with other fields, checked as a new one."""
    fields = {name: getattr(header, name) for name in TaskHeader.model_fields}
    return TaskHeader(**{**fields, **changed})


def _part(task: Task, group: Sequence[int]) -> Task:
    header = task.header
    classes = [header.classes[index] for index in group]
    changed = {
        "classes": classes,
        "groups": [tuple(range(len(group)))],
        "bank": _bank_of(header, group),
        **_by_class_name([(header, entry.name) for entry in classes], classes),
    }
    return Task(_header(header, changed), tuple(stage[list(group)] for stage in task.tokens))


def _bank_of(header: TaskHeader, group: Sequence[int]) -> list[BankSource]:
    """The bank's entries are those of the classes without references, in their order."""
    from_bank = [i for i, entry in enumerate(header.classes) if entry.crops is None]
    return [entry for i, entry in zip(from_bank, header.bank, strict=True) if i in group]
