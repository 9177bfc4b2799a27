"""What only all cases of a set, or all sets, show together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from iris_cli.dataset.raw import RawDataset
from iris_cli.preparation.codes import Code
from iris_cli.preparation.findings import Finding, Place
from iris_cli.preparation.integrity.geometry import check_spacings
from iris_cli.preparation.integrity.names import is_leak
from iris_cli.preparation.integrity.payload import CheckedCase
from iris_cli.preparation.integrity.sides import check_sides
from iris_cli.preparation.measure import CaseFacts, measured_values


def across_cases(raw: RawDataset, checked: Sequence[CheckedCase]) -> Iterator[Finding]:
    """Copies, classes that no label map has, spacings and sides against those of the set."""
    facts = [case.facts for case in checked if case.facts is not None]
    yield from _check_copies(raw, facts)
    yield from _check_label_copies(raw, checked)
    yield from _check_classes(raw, facts)
    yield from check_spacings(raw, facts)
    names = [case.name for case in raw.cases]
    yield from check_sides(raw, {n: c.sides for n, c in zip(names, checked, strict=True)})


def across_sets(
    sets: Sequence[RawDataset],
    checked: Sequence[Sequence[CheckedCase]],
    unseen: Collection[str] = (),
) -> Mapping[str, list[Finding]]:
    """Set -> findings about images that are in another set too.

    unseen: sets that only validation opens: none of their images may be in another set, whatever
    its role there.
    """
    places: dict[str, list[tuple[RawDataset, CaseFacts]]] = defaultdict(list)
    for raw, cases in zip(sets, checked, strict=True):
        for case in cases:
            if case.facts is not None:
                places[case.facts.image_hash].append((raw, case.facts))
    findings: dict[str, list[Finding]] = defaultdict(list)
    for copies in places.values():
        if len({raw.name for raw, _ in copies}) < 2:
            continue
        first, fact = copies[0]
        across, fix = "", None
        if len({raw.name in unseen for raw, _ in copies}) > 1:
            across = ", one of which only validation opens"
            fix = "remove the copies from one of the sets"
        elif is_leak(copy.role for _, copy in copies):
            across = ", in different roles"
        findings[first.name].append(
            Place(first.name, fact.case).finding(
                Code.IMAGE_ACROSS_ROLES if across else Code.IMAGE_TWICE,
                f"the same image in several sets{across}",
                file=first.case(fact.case).images[0],
                found=", ".join(f"{raw.name}/{copy.case} ({copy.role})" for raw, copy in copies),
                fix=fix,
            )
        )
    return findings


def _check_copies(raw: RawDataset, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    by_hash: dict[str, list[CaseFacts]] = defaultdict(list)
    for fact in facts:
        by_hash[fact.image_hash].append(fact)
    for twins in by_hash.values():
        if len(twins) < 2:
            continue
        leaks = is_leak(twin.role for twin in twins)
        yield Place(raw.name, twins[0].case).finding(
            Code.IMAGE_ACROSS_ROLES if leaks else Code.IMAGE_TWICE,
            "the same image under several names" + (", in different roles" if leaks else ""),
            file=raw.folder / "dataset.json",
            found=", ".join(f"{twin.case} ({twin.role})" for twin in twins),
        )


def _check_label_copies(raw: RawDataset, checked: Sequence[CheckedCase]) -> Iterator[Finding]:
    """One label map for several contrasts of a subject is usual; for other subjects it is not."""
    by_hash: dict[str, list[CaseFacts]] = defaultdict(list)
    for case in checked:
        if case.label_hash is not None and case.facts is not None:
            by_hash[case.label_hash].append(case.facts)
    for twins in by_hash.values():
        other_subjects = len({twin.subject for twin in twins}) > 1
        if other_subjects and len({twin.image_hash for twin in twins}) > 1:
            yield Place(raw.name, twins[0].case).finding(
                Code.LABEL_TWICE,
                "the same label map in cases of different subjects",
                file=raw.case(twins[0].case).label,
                found=", ".join(twin.case for twin in twins),
            )


def _check_classes(raw: RawDataset, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    labelled = [fact for fact in facts if fact.labelled and fact.role != "test"]
    seen = {name for fact in labelled for name in fact.classes}
    for name in measured_values(raw) if labelled else ():
        if name not in seen:
            yield Place(raw.name).finding(
                Code.CLASS_NEVER_SEEN,
                f"class {name!r} has no voxel in any training or validation label map",
                file=raw.folder / "dataset.json",
            )
