"""`--split`: roles of the labelled cases, by subject.

- `author`: the list of the paper's author, where it is known.
- `subject-5fold`: nnU-Net's splits_final.json of five folds, no subject on both sides of one; the
  order of subjects is that of a hash of their names, so that it depends on nothing else.
- a file: {"train": [...], "validate": [...], "test": [...]} of case or subject names.

Cases that test lie in imagesTs, where nnU-Net trains on nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dataset_conversion.facts import SetFacts
from dataset_conversion.raw_set import Split
from dataset_conversion.scan import Deviation, FoundCase
from iris_cli.dataset.dataset_json import Role
from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.hashing import hash_bytes
from iris_cli.files.schema import read_json

AUTHOR, FIVE_FOLD = "author", "subject-5fold"
FOLDS = 5
_ROLES: tuple[Role, ...] = ("train", "validate", "test")


@dataclass(frozen=True)
class SplitCases:
    """The cases with their roles and folders, folds for splits_final.json, and what to say."""

    cases: tuple[FoundCase, ...]
    has_folds: bool = False
    deviations: tuple[Deviation, ...] = ()


def split_cases(cases: Sequence[FoundCase], split: str | None, facts: SetFacts) -> SplitCases:
    """Give the labelled cases the roles of a split; None leaves them as the archive has them.

    raises UsageError for an unknown split, DataRefused where a subject would have several roles.
    """
    if split is None:
        result = SplitCases(tuple(cases))
    elif split == FIVE_FOLD:
        result = SplitCases(tuple(cases), has_folds=True)
    elif split == AUTHOR:
        result = _by_author(cases, facts)
    elif split.endswith(".json"):
        result = _by_file(cases, Path(split))
    else:
        raise UsageError(
            f"there is no split {split!r}",
            expected=f"{AUTHOR}, {FIVE_FOLD}, or the name of a .json file",
        )
    _refuse_leaks(result.cases)
    return result


def folds(cases: Sequence[FoundCase]) -> list[dict[str, list[str]]]:
    """nnU-Net's splits_final.json over the labelled cases of imagesTr."""
    trained = [case for case in cases if case.label is not None and case.split is Split.TRAINING]
    subjects = sorted({case.person for case in trained}, key=lambda name: hash_bytes(name.encode()))
    fold_of = {subject: index % FOLDS for index, subject in enumerate(subjects)}
    return [
        {
            "train": sorted(c.name for c in trained if fold_of[c.person] != fold),
            "val": sorted(c.name for c in trained if fold_of[c.person] == fold),
        }
        for fold in range(FOLDS)
    ]


def _by_author(cases: Sequence[FoundCase], facts: SetFacts) -> SplitCases:
    lists = facts.author_split
    if lists is None:
        raise UsageError(
            f"the author's split of {facts.name} is not known case by case",
            expected=f"{FIVE_FOLD}, or a .json file",
            fix="leave --split out to keep the archive's own parts",
        )

    def role(case: FoundCase) -> Role:
        if case.person in lists.test:
            return "test"
        return "validate" if case.person in lists.validate else "train"

    found = {case.person for case in cases if case.label is not None}
    gone = sorted((lists.test | lists.validate) - found)
    deviations = [Deviation("subjects of the author's split that are not here", tuple(gone))]
    return SplitCases(
        tuple(_with_role(case, role(case)) for case in cases),
        deviations=tuple(deviations) if gone else (),
    )


def _by_file(cases: Sequence[FoundCase], path: Path) -> SplitCases:
    roles = _read_roles(path)
    known = {name for case in cases for name in (case.name, case.person)}
    unknown = sorted(set(roles) - known)
    if unknown:
        raise DataRefused(
            "the split names cases that are not here",
            file=path,
            found=", ".join(unknown[:10]),
            expected="names of cases or subjects of this set",
            fix="correct the split; --dry-run shows the names",
        )
    named = {c.name: roles.get(c.name, roles.get(c.person)) for c in cases if c.label is not None}
    rest = tuple(sorted(name for name, role in named.items() if role is None))
    deviations = (Deviation("in no list of the split, not trained on", rest),) if rest else ()
    return SplitCases(
        tuple(_with_role(case, named.get(case.name) or "test") for case in cases),
        deviations=deviations,
    )


def _read_roles(path: Path) -> dict[str, Role]:
    content: Any = read_json(path)
    lists = content if isinstance(content, dict) else {}
    good = bool(lists) and all(
        key in _ROLES and isinstance(names, list) for key, names in lists.items()
    )
    if not good:
        raise DataRefused(
            "this is no split",
            file=path,
            expected='{"train": [names], "validate": [names], "test": [names]}',
        )
    roles: dict[str, Role] = {}
    for role in _ROLES:
        for name in map(str, lists.get(role, [])):
            if roles.setdefault(name, role) != role:
                raise DataRefused(f"the split names {name!r} twice", file=path)
    return roles


def _with_role(case: FoundCase, role: Role) -> FoundCase:
    if case.label is None:
        return case
    folder = Split.TEST if role == "test" else Split.TRAINING
    return replace(case, role=role, split=folder)


def _refuse_leaks(cases: Sequence[FoundCase]) -> None:
    """A subject may test or train, never both; images without label map take no part."""
    roles: dict[str, FoundCase] = {}
    for case in cases:
        if case.label is None or case.role is None:
            continue
        other = roles.setdefault(case.person, case)
        if other.role != case.role:
            raise DataRefused(
                f"subject {case.person!r} has cases in several roles",
                found=f"{other.name} is {other.role}, {case.name} is {case.role}",
                expected="all cases of a subject in one role",
                fix="correct the split",
            )
