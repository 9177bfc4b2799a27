"""Who trains and who validates: by subject, before anything else is decided."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
    cases: Sequence[Case],
    *,
    set_name: str,
    seed: int = 0,
    image_hashes: Mapping[str, str] | None = None,
) -> Split:
    """Roles of cases: those of dataset.json; where none validates, a fifth of the subjects does.

    Only training subjects are split: test and unlabelled cases stay as they are declared. The
    subjects are put in the order of a hash of seed, set and subject, and the first fifth (rounded)
    validates: the same on every machine, and a subject added later moves at most one. A subject
    with unlabelled cases does not validate, as pseudo tasks train on their images.
    image_hashes: case -> hash of its image; cases with the same image count as one subject.
    """
    by_role: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        by_role[case.role].append(case.name)
    if by_role["validate"]:
        reason = "roles of dataset.json"
    else:
        subjects, merged = _merge_twins(cases, image_hashes or {})
        reason = _split_training(subjects, by_role, set_name, seed) + merged
        reason += _kept_as_declared(by_role)
    return Split(
        train=tuple(sorted(by_role["train"])),
        validate=tuple(sorted(by_role["validate"])),
        test=tuple(sorted(by_role["test"])),
        unlabelled=tuple(sorted(by_role["unlabelled"])),
        reason=reason,
    )


def _split_training(
    subject_of: Mapping[str, str], by_role: dict[str, list[str]], set_name: str, seed: int
) -> str:
    training = by_role["train"]
    subjects = sorted({subject_of[name] for name in training})
    if len(subjects) < SUBJECTS_MIN:
        return f"{len(subjects)} training subjects: too few to set one aside for validation"
    unlabelled = {subject_of[name] for name in by_role["unlabelled"]}
    free = [subject for subject in subjects if subject not in unlabelled]
    if not free:
        return "every subject has unlabelled cases, which are trained on: none validates"
    ordered = sorted(free, key=lambda s: _rank(s, set_name, seed))
    chosen = set(ordered[: max(1, round(VALIDATE_SHARE * len(subjects)))])
    by_role["validate"] += [name for name in training if subject_of[name] in chosen]
    by_role["train"] = [name for name in training if subject_of[name] not in chosen]
    return (
        f"no case is declared `validate`: {len(chosen)} of {len(subjects)} subjects validate, "
        f"chosen by a hash of their names with seed {seed}"
    )


def _merge_twins(
    cases: Sequence[Case], image_hashes: Mapping[str, str]
) -> tuple[dict[str, str], str]:
    """Case -> subject of all that is trained on, subjects that share an image made one, and why."""
    subject_of = {c.name: c.subject for c in cases if c.role in ("train", "unlabelled")}
    twins: dict[str, list[str]] = defaultdict(list)
    for name in sorted(subject_of):
        if name in image_hashes:
            twins[image_hashes[name]].append(name)
    notes = []
    for names in twins.values():
        joined = {subject_of[name] for name in names}
        if len(joined) > 1:
            first = min(joined)
            subject_of = {n: first if s in joined else s for n, s in subject_of.items()}
            notes.append(" and ".join(names))
    text = f"; the same image, so counted as one subject: {', '.join(notes)}" if notes else ""
    return subject_of, text


def _kept_as_declared(by_role: Mapping[str, Sequence[str]]) -> str:
    kept = [f"{len(by_role[r])} {r}" for r in ("test", "unlabelled") if by_role.get(r)]
    return f"; as declared: {', '.join(kept)}" if kept else ""


def _rank(subject: str, set_name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}/{set_name}/{subject}".encode()).hexdigest()
