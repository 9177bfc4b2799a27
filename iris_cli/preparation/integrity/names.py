"""What names and dataset.json alone show: no file is read."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator

from iris_cli.dataset.raw import RawDataset, RawFinding
from iris_cli.preparation.codes import Code
from iris_cli.preparation.findings import Finding, Place


def check_names(raw: RawDataset) -> Iterator[Finding]:
    """Everything that reading the set found, and names and subjects against each other."""
    for finding in raw.findings:
        yield _of_reading(raw, finding)
    yield from _check_case_names(raw)
    yield from _check_subjects(raw)
    yield from _check_count(raw)


def is_leak(roles: Iterable[str]) -> bool:
    """Whether what is scored is also trained on, in one subject or one image.

    Training on an image twice only counts double.
    """
    found = set(roles)
    return len(found) > 1 and bool(found & {"validate", "test"})


def folded(name: str) -> str:
    """What disks that ignore case, or encode accents in their own way, make of a name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _of_reading(raw: RawDataset, finding: RawFinding) -> Finding:
    return Place(raw.name, finding.case).finding(
        Code(finding.code),
        finding.message,
        file=finding.file,
        found=finding.found,
        expected=finding.expected,
        fix=finding.fix,
    )


def _check_case_names(raw: RawDataset) -> Iterator[Finding]:
    # Label maps without image count too: an accent that images and label maps encode differently
    # leaves an image without label map and a label map without image.
    orphans = {finding.case for finding in raw.findings if finding.case}
    names = {case.name for case in raw.cases} | orphans
    for alike in _alike(names):
        yield Place(raw.name, alike[0]).finding(
            Code.NAMES_ALIKE,
            "case names that differ only by upper and lower case or by how accents are encoded",
            file=raw.folder / "dataset.json",
            found=", ".join(alike),
        )
    for case in raw.cases:
        if len(raw.channels) > 1 and re.search(r"@\d+$", case.name):
            yield Place(raw.name, case.name).finding(
                Code.RESERVED_NAME,
                "case names of sets with several channels cannot end in @ and a number",
                file=case.images[0] if case.images else None,
            )


def _check_subjects(raw: RawDataset) -> Iterator[Finding]:
    roles: dict[str, set[str]] = defaultdict(set)
    # A case that is there twice is a finding of its own, which cannot be accepted.
    twice = {finding.case for finding in raw.findings if finding.code == Code.CASE_TWICE}
    for case in raw.cases:
        if case.name not in twice:
            roles[case.subject].add(case.role)
    for subject, found in roles.items():
        if is_leak(found):
            cases = [case.name for case in raw.cases if case.subject == subject]
            yield Place(raw.name, cases[0]).finding(
                Code.SUBJECT_ACROSS_ROLES,
                "one subject has cases in several roles",
                file=raw.folder / "dataset.json",
                found=f"{', '.join(sorted(found))}: {', '.join(cases)}",
                expected="no subject both scored and trained on, or both validated and tested on",
            )
    declared = {case.subject for case in raw.cases if case.subject != case.name}
    for alike in _alike(declared):
        yield Place(raw.name).finding(
            Code.SUBJECTS_ALIKE,
            "subjects whose names differ only by upper and lower case or encoding",
            file=raw.folder / "dataset.json",
            found=", ".join(alike),
        )


def _check_count(raw: RawDataset) -> Iterator[Finding]:
    """nnU-Net's numTraining; counted with and without cases that have no label map."""
    declared = raw.declared_training
    here = [case for case in raw.cases if case.images and case.images[0].parent.name != "imagesTs"]
    counts = {len(here), sum(case.label is not None for case in here)}
    if declared is not None and declared not in counts:
        yield Place(raw.name).finding(
            Code.CASE_COUNT,
            "the number of training cases is not that of dataset.json",
            file=raw.folder / "dataset.json",
            found=f"{max(counts)} cases",
            expected=f"numTraining {declared}",
        )


def _alike(names: Iterable[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        groups[folded(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]
