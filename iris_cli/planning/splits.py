"""Who trains and who validates: by subject, before anything else is decided."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from iris_cli.dataset.raw import Case

VALIDATE_SHARE = 0.2
# Below this a validation subject would cost more training data than its number is worth.
SUBJECTS_MIN = 4


@dataclass(frozen=True)
class Split:
    """Case names by role, each sorted, and why they are so."""

    train: tuple[str, ...]
    validate: tuple[str, ...]
    test: tuple[str, ...]
    unlabelled: tuple[str, ...]
    reason: str


def split_cases(
    cases: Sequence[Case], *, set_name: str, roles_declared: bool, seed: int = 0
) -> Split:
    """Roles of cases: those of dataset.json, else a fifth of the training subjects validates.

    The subjects are put in the order of a hash of seed, set and subject, and the first fifth
    (rounded) validates: the same on every machine, and a subject added later moves at most one.
    """
    by_role: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        by_role[case.role].append(case.name)
    reason = "roles of dataset.json"
    if not roles_declared:
        reason = _split_training(cases, by_role, set_name, seed)
    return Split(
        train=tuple(sorted(by_role["train"])),
        validate=tuple(sorted(by_role["validate"])),
        test=tuple(sorted(by_role["test"])),
        unlabelled=tuple(sorted(by_role["unlabelled"])),
        reason=reason,
    )


def _split_training(
    cases: Sequence[Case], by_role: dict[str, list[str]], set_name: str, seed: int
) -> str:
    subject_of = {case.name: case.subject for case in cases}
    training = by_role["train"]
    subjects = sorted({subject_of[name] for name in training})
    if len(subjects) < SUBJECTS_MIN:
        return f"{len(subjects)} training subjects: too few to set one aside for validation"
    ordered = sorted(subjects, key=lambda s: _rank(s, set_name, seed))
    chosen = set(ordered[: max(1, round(VALIDATE_SHARE * len(subjects)))])
    by_role["validate"] += [name for name in training if subject_of[name] in chosen]
    by_role["train"] = [name for name in training if subject_of[name] not in chosen]
    return (
        f"no roles in dataset.json: {len(chosen)} of {len(subjects)} subjects validate, "
        f"chosen by a hash of their names with seed {seed}"
    )


def _rank(subject: str, set_name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}/{set_name}/{subject}".encode()).hexdigest()
