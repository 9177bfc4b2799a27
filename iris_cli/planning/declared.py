"""What dataset.json said when a set was planned, so that a later change of it does not go unseen.

A plan is made once and edited by hand; the raw set may be edited after it. Values that the plan
took over (classes, roles, subjects, ...) are compared with the raw set before preprocessing and
before a run begins, and a difference is refused: which of the two counts only the user knows.
Classes that a case leaves out (`not_annotated`) are no part of a plan: preprocessing reads them
anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iris_cli.dataset.dataset_json import FILE_NAME, Role
from iris_cli.dataset.raw import RawDataset
from iris_cli.errors import DataRefused
from iris_cli.files.schema import Record

if TYPE_CHECKING:
    from iris_cli.planning.plan import Plan

Modalities = tuple[str | None, ...]
# So many cases or classes of a key are named.
NAMED = 5


class Declared(Record):
    """The section of a raw set that plans depend on, as it is read (files and dataset.json).

    subjects, case_modality: only cases where they are not the case's own name, or the channels'.
    """

    modality: Modalities
    classes: dict[str, tuple[int, ...]]
    ignore_value: int | None
    absent_means: str
    held_out_classes: tuple[str, ...]
    mirror_pairs: tuple[tuple[str, str], ...]
    roles: dict[str, Role]
    subjects: dict[str, str]
    case_modality: dict[str, Modalities]

    @classmethod
    def of(cls, raw: RawDataset) -> Declared:
        modality = tuple(channel.modality for channel in raw.channels)
        return cls(
            modality=modality,
            classes={label.name: label.values for label in raw.classes},
            ignore_value=raw.ignore_value,
            absent_means=raw.absent_means,
            held_out_classes=raw.held_out_classes,
            mirror_pairs=raw.mirror_pairs,
            roles={case.name: case.role for case in raw.cases},
            subjects={c.name: c.subject for c in raw.cases if c.subject != c.name},
            case_modality={c.name: c.modality for c in raw.cases if c.modality != modality},
        )

    def changes(self, now: Declared) -> list[str]:
        """What is otherwise now, in words; cases that came or went are no change of the others."""
        cases = set(self.roles) & set(now.roles)
        found = []
        for key in type(self).model_fields:
            before, after = getattr(self, key), getattr(now, key)
            if key in ("roles", "subjects", "case_modality"):
                before, after = (
                    {name: value for name, value in values.items() if name in cases}
                    for values in (before, after)
                )
            if before != after:
                found.append(f"{key}: {_difference(before, after)}")
        return found


def changes_since_planned(plan: Plan, name: str, raw: RawDataset) -> list[str]:
    """What a raw set says otherwise than when it was planned, in words.

    Plans of versions that did not note it are taken as they are.
    """
    declared = plan.sets[name].declared
    return [] if declared is None else declared.changes(Declared.of(raw))


def refuse_changed(plan: Plan, name: str, raw: RawDataset) -> None:
    """Raise DataRefused where a raw set says other things than when it was planned."""
    if changes := changes_since_planned(plan, name, raw):
        raise DataRefused(
            f"{name} was changed after it was planned",
            file=raw.folder / FILE_NAME,
            found="; ".join(changes),
            expected="what the plan was made from",
            fix="run `iris plan` and `iris preprocess` again, which keeps what need not change "
            "(a run that has begun keeps its plan and goes on), or undo the change",
        )


def _difference(before: Any, after: Any) -> str:
    if not isinstance(before, dict):
        return f"{_shown(after)} (planned: {_shown(before)})"
    names = sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
    shown = [
        f"{n} {_shown(after.get(n))} (planned: {_shown(before.get(n))})" for n in names[:NAMED]
    ]
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return ", ".join(shown + more)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return "none" if value is None else str(value)
