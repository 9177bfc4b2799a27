"""Integrity of raw data sets: every finding of every case in one pass, before anything is computed.

Each file is read once, whole, by the readers that everything else uses; the same reading measures
what planning needs (`measure`). Test cases are checked but never measured.

Errors refuse the set: iris would fail on it later, or learn or score something else than meant.
Warnings are said and recorded.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.dataset.raw import Case, RawDataset, RawFinding
from iris_cli.errors import DataRefused, IrisError
from iris_cli.execution.jobs import CaseJob, CaseResult, Outcome, run_cases
from iris_cli.execution.progress import Progress
from iris_cli.execution.signals import StopRequest
from iris_cli.preparation.findings import (
    Code,
    Finding,
    IntegrityReport,
    Severity,
    finding_of_error,
    sort_findings,
)
from iris_cli.preparation.measure import (
    CaseFacts,
    ClassFacts,
    class_values,
    count_and_box,
    measure_classes,
    measured_values,
)
from iris_cli.preparation.profiles import NONFINITE_LIMIT, guess_modality, replace_nonfinite
from iris_cli.volume.grid import Grid, GridMatch
from iris_cli.volume.reading import Volume, read_image, read_labels


@dataclass(frozen=True)
class CasePayload:
    """What `check_case` needs of one case, picklable. channels: as many as the set declares.

    measured: the classes among them whose size and place planning may know.
    """

    set: str
    case: Case
    channels: int
    classes: Mapping[str, tuple[int, ...]]
    measured: Mapping[str, tuple[int, ...]]
    ignore_value: int | None


def check_datasets(
    sets: Sequence[RawDataset],
    *,
    workers: int = 0,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> tuple[IntegrityReport, ...]:
    """Check raw data sets and measure their cases, all in one pass.

    sets: read with `strict=False`, so that what is wrong with their files is in the reports too.
    returns: a report per set with errors and warnings in a fixed order; nothing is raised for bad
    data. raises Stopped on a signal.
    """
    jobs = [job for raw in sets for job in _jobs(raw)]
    run = run_cases(
        jobs, check_case, workers=workers, progress=progress, label="checking", stop=stop
    )
    outcomes = iter(run.outcomes)
    return tuple(_report(raw, [next(outcomes) for _ in raw.cases]) for raw in sets)


def check_dataset(
    raw: RawDataset, *, workers: int = 0, progress: Progress | None = None
) -> IntegrityReport:
    """`check_datasets` for one set."""
    return check_datasets([raw], workers=workers, progress=progress)[0]


def _report(raw: RawDataset, outcomes: Sequence[Outcome]) -> IntegrityReport:
    findings = [_raw_finding(raw, finding) for finding in raw.findings]
    findings += _check_names(raw)
    facts: list[CaseFacts] = []
    for case, outcome in zip(raw.cases, outcomes, strict=True):
        if outcome.result is None:
            findings.append(_died(raw.name, case.name, outcome.error))
            continue
        receipt = outcome.result.receipt
        findings += [Finding.model_validate(f) for f in receipt["findings"]]
        if receipt["facts"] is not None:
            facts.append(CaseFacts.model_validate(receipt["facts"]))
    findings += _check_across(raw, facts)
    # Duplicates need the test cases too; what is handed on to planning does not.
    measured = tuple(fact for fact in facts if fact.role != "test")
    return IntegrityReport(
        set=raw.name, cases=len(raw.cases), findings=sort_findings(findings), facts=measured
    )


def check_case(payload: CasePayload) -> CaseResult:
    """All findings of one case; facts where it could be read and is not a test case."""
    check = _CaseCheck(payload)
    images = [check.read_channel(channel) for channel in range(len(payload.case.images))]
    grid = next((volume.grid for volume in images if volume is not None), None)
    for channel, volume in enumerate(images):
        if volume is not None and grid is not None:
            check.channel_grid(channel, volume, grid)
    label = check.read_label(grid)
    read = [volume for volume in images if volume is not None]
    facts = check.facts(read, label) if len(read) == payload.channels else None
    return CaseResult(
        status="done",
        receipt={
            "findings": [f.model_dump(mode="json") for f in check.findings],
            "facts": None if facts is None else facts.model_dump(mode="json"),
        },
    )


@dataclass
class _CaseCheck:
    payload: CasePayload
    findings: list[Finding] = field(default_factory=list)

    def add(self, code: Code, severity: Severity, message: str, **details: Any) -> None:
        texts = {k: None if v is None else str(v) for k, v in details.items()}
        self.findings.append(
            Finding(
                code=code,
                severity=severity,
                set=self.payload.set,
                case=self.payload.case.name,
                message=message,
                file=texts.pop("file", None),
                **texts,
            )
        )

    def error(self, code: Code, message: str, **details: Any) -> None:
        self.add(code, Severity.ERROR, message, **details)

    def warning(self, code: Code, message: str, **details: Any) -> None:
        self.add(code, Severity.WARNING, message, **details)

    def read_channel(self, channel: int) -> Volume | None:
        path = self.payload.case.images[channel]
        try:
            volume = read_image(path)
        except (IrisError, OSError) as error:
            self._unreadable(error, path)
            return None
        self._notes(volume)
        self._check_voxels(channel, volume)
        return volume

    def channel_grid(self, channel: int, volume: Volume, grid: Grid) -> None:
        match = volume.grid.compare(grid)
        if match is GridMatch.EQUAL:
            return
        details = _grids(volume.grid, grid)
        if match is GridMatch.ROUNDING:
            self.warning(
                Code.GRID_ROUNDING,
                f"channel {channel} differs from the first channel's grid by rounding",
                file=volume.path,
                **details,
            )
            return
        self.error(
            Code.CHANNEL_GRID,
            f"channel {channel} is not on the grid of the first channel",
            file=volume.path,
            fix="resample the channels to one grid outside iris",
            **details,
        )

    def read_label(self, grid: Grid | None) -> Volume | None:
        case = self.payload.case
        if case.label is None:
            return None
        try:
            volume = read_labels(case.label)
        except (IrisError, OSError) as error:
            self._unreadable(error, case.label, label=True)
            return None
        self._notes(volume)
        self._check_values(volume)
        if grid is not None:
            self._label_grid(volume, grid)
        return volume

    def facts(self, images: list[Volume], label: Volume | None) -> CaseFacts:
        case, grid = self.payload.case, images[0].grid
        z, y, x = (float(s) for s in grid.spacing_zyx)
        classes: dict[str, ClassFacts] = {}
        extent = 0.0
        if label is not None and case.role != "test":
            classes, extent = measure_classes(label.array, (z, y, x), self.payload.measured)
        return CaseFacts(
            case=case.name,
            subject=case.subject,
            role=case.role,
            shape_zyx=grid.shape_zyx,
            spacing_zyx_mm=(z, y, x),
            guesses=tuple(_guess(volume.array) for volume in images),
            image_hash=images[0].content_hash(),
            labelled=label is not None,
            classes=classes,
            extent_mm=extent,
        )

    def _unreadable(self, error: Exception, path: Path, *, label: bool = False) -> None:
        if not isinstance(error, IrisError):
            error = DataRefused("the file cannot be read", file=path, found=error)
        self.findings.append(
            finding_of_error(
                error,
                _code_of(error, label=label),
                set_name=self.payload.set,
                case=self.payload.case.name,
                file=path,
            )
        )

    def _notes(self, volume: Volume) -> None:
        said = {finding.message for finding in self.findings}
        for note in volume.notes:
            if note not in said:  # image and label map usually share it
                self.warning(Code.NOTE, note, file=volume.path)

    def _check_voxels(self, channel: int, volume: Volume) -> None:
        finite = np.isfinite(volume.array) if volume.array.dtype.kind == "f" else None
        bad = 0 if finite is None else int(finite.size - np.count_nonzero(finite))
        if bad:
            share = bad / volume.array.size
            self.add(
                Code.NONFINITE,
                Severity.ERROR if share > NONFINITE_LIMIT else Severity.WARNING,
                f"{bad} voxels are NaN or infinite",
                file=volume.path,
                found=f"{100 * share:.3g} % of the voxels",
                expected=f"at most {100 * NONFINITE_LIMIT:g} %, which are replaced",
            )
            if share > NONFINITE_LIMIT:
                return
        values, _ = replace_nonfinite(volume.array)
        if values.min() == values.max():
            self.warning(
                Code.CONSTANT_IMAGE,
                "every voxel has the same value",
                file=volume.path,
                found=values.flat[0],
            )
        declared, guess = self._declared_modality(channel), guess_modality(values)
        if declared is not None and declared != guess:
            self.warning(
                Code.MODALITY,
                f"channel {channel} looks like {_words(guess)}",
                file=volume.path,
                found=guess,
                expected=f"{declared}, as dataset.json says",
            )

    def _declared_modality(self, channel: int) -> str | None:
        declared = self.payload.case.modality
        complete = len(self.payload.case.images) == self.payload.channels == len(declared)
        return declared[channel] if complete else None

    def _check_values(self, volume: Volume) -> None:
        payload = self.payload
        declared = {0}.union(*payload.classes.values())
        if payload.ignore_value is not None:
            declared.add(payload.ignore_value)
        counts, _ = count_and_box(volume.array)
        undeclared = {v: n for v, n in sorted(counts.items()) if v not in declared}
        if undeclared:
            shown = ", ".join(f"{v} ({n} voxels)" for v, n in list(undeclared.items())[:10])
            self.error(
                Code.UNDECLARED_VALUE,
                "the label map holds values that dataset.json does not declare",
                file=volume.path,
                found=shown,
                expected=_short(sorted(declared)),
                fix="declare them under `labels`, or correct the label map",
            )
        if not any(counts.get(v) for values in payload.classes.values() for v in values):
            self.warning(Code.EMPTY_LABEL, "no voxel of any class", file=volume.path)

    def _label_grid(self, volume: Volume, grid: Grid) -> None:
        match = volume.grid.compare(grid)
        if match is GridMatch.EQUAL:
            return
        details = _grids(volume.grid, grid)
        if match is GridMatch.ROUNDING:
            self.warning(
                Code.GRID_ROUNDING,
                "the label map differs from its image's grid by rounding; the image's is used",
                file=volume.path,
                **details,
            )
            return
        self.error(
            Code.GRID_DIFFERENT,
            "the label map is not on the grid of its image",
            file=volume.path,
            fix="resample one of them outside iris, or correct its header",
            **details,
        )


def _code_of(error: IrisError, *, label: bool) -> Code:
    """Which kind of finding a reader's refusal is, by the words of its first line."""
    if label and "whole numbers" in error.problem:
        return Code.NON_INTEGER_LABELS
    if re.search(r"\b\d-D (image|volume)", error.problem):
        return Code.NOT_3D
    if re.search(r"affine|spacing|qform|axes of the volume|where the voxels are", error.problem):
        return Code.BAD_GEOMETRY
    return Code.UNREADABLE


def _guess(array: npt.NDArray[Any]) -> str:
    try:
        return guess_modality(array)
    except DataRefused:  # too many non-finite voxels, which is a finding of its own
        return "other"


def _grids(found: Grid, expected: Grid) -> dict[str, str]:
    """The numbers in which two grids differ, as `found` and `expected`."""
    parts = [
        ("shape (x, y, z)", found.shape_xyz, expected.shape_xyz),
        ("spacing", _numbers(found.spacing_xyz), _numbers(expected.spacing_xyz)),
        ("origin", _numbers(found.affine[:3, 3]), _numbers(expected.affine[:3, 3])),
    ]
    differing = [part for part in parts if part[1] != part[2]]
    if not differing:
        directions = [_numbers(g.affine[:3, :3].reshape(-1)) for g in (found, expected)]
        differing = [("axes", directions[0], directions[1])]
    return {
        "found": ", ".join(f"{name} {a}" for name, a, _ in differing),
        "expected": ", ".join(f"{name} {b}" for name, _, b in differing),
    }


def _numbers(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{float(v):.7g}" for v in values) + ")"


def _short(values: Sequence[int]) -> str:
    text = ", ".join(str(v) for v in values[:20])
    return text if len(values) <= 20 else f"{text}, ... ({len(values)} values)"


def _words(modality: str) -> str:
    return "CT in Hounsfield units" if modality == "ct" else "something else than CT"


def _died(set_name: str, case: str, error: Mapping[str, Any] | None) -> Finding:
    details = dict(error or {})
    return Finding(
        code=Code.UNREADABLE,
        severity=Severity.ERROR,
        set=set_name,
        case=case,
        file=details.get("file"),
        message=str(details.get("problem", "reading the case failed")),
        found=details.get("found"),
        expected=details.get("expected"),
        fix=details.get("fix"),
    )


def _jobs(raw: RawDataset) -> list[CaseJob]:
    classes, measured, channels = class_values(raw), measured_values(raw), len(raw.channels)
    payloads = [
        CasePayload(raw.name, case, channels, classes, measured, raw.ignore_value)
        for case in raw.cases
    ]
    names = [case.name for case in raw.cases]
    # A name that is there twice is a finding; as a job it needs a name of its own.
    return [
        CaseJob(f"{raw.folder}/{name}" + ("" if names.index(name) == i else f" ({i})"), payload)
        for i, (name, payload) in enumerate(zip(names, payloads, strict=True))
    ]


def _raw_finding(raw: RawDataset, finding: RawFinding) -> Finding:
    return Finding(
        code=Code(finding.code),
        severity=Severity.ERROR,
        set=raw.name,
        case=finding.case,
        file=None if finding.file is None else str(finding.file),
        message=finding.message,
        found=finding.found,
        expected=finding.expected,
        fix=finding.fix,
    )


def _check_names(raw: RawDataset) -> Iterable[Finding]:
    folded: dict[str, set[str]] = defaultdict(set)
    roles: dict[str, set[str]] = defaultdict(set)
    incomplete = {finding.case for finding in raw.findings}
    for case in raw.cases:
        folded[case.name.casefold()].add(case.name)
        if case.name not in incomplete:  # its role is a guess
            roles[case.subject].add(case.role)
        if len(raw.channels) > 1 and re.search(r"@\d+$", case.name):
            yield _set_finding(
                raw,
                Code.RESERVED_NAME,
                Severity.ERROR,
                "case names of sets with several channels cannot end in @ and a number",
                case=case.name,
                fix="rename the case: <case>@1 is the name of its second channel in the store",
            )
    for names in folded.values():
        if len(names) > 1:
            yield _set_finding(
                raw,
                Code.DUPLICATE_CASE,
                Severity.ERROR,
                "case names that differ only by upper and lower case",
                case=min(names),
                found=", ".join(sorted(names)),
                fix="rename one of them: they would be one file on some disks",
            )
    for subject, found in roles.items():
        if len(found) > 1:
            cases = [c.name for c in raw.cases if c.subject == subject]
            yield _set_finding(
                raw,
                Code.SUBJECT_ACROSS_ROLES,
                Severity.ERROR,
                "one subject has cases in several roles",
                case=cases[0],
                found=f"{', '.join(sorted(found))}: {', '.join(cases)}",
                expected="every case of a subject in one role",
                fix="correct `roles` or `subjects` in dataset.json",
            )


def _check_across(raw: RawDataset, facts: Sequence[CaseFacts]) -> Iterable[Finding]:
    """Findings that need all cases: the same image twice, classes that no label map has."""
    by_hash: dict[str, list[CaseFacts]] = defaultdict(list)
    for fact in facts:
        by_hash[fact.image_hash].append(fact)
    for twins in by_hash.values():
        if len(twins) < 2:
            continue
        across = len({t.role for t in twins}) > 1
        names = ", ".join(f"{t.case} ({t.role})" for t in twins)
        yield _set_finding(
            raw,
            Code.DUPLICATE_IMAGE,
            Severity.ERROR if across else Severity.WARNING,
            "the same image under several names" + (", in different roles" if across else ""),
            case=twins[0].case,
            found=names,
            fix=(
                'give them one role in dataset.json and list them as one subject under "iris"'
                ".subjects, or remove the copies"
                if across
                else 'list them as one subject under "iris".subjects, or remove the copies'
            ),
        )
    labelled = [fact for fact in facts if fact.labelled and fact.role != "test"]
    seen = {name for fact in labelled for name in fact.classes}
    for name in measured_values(raw) if labelled else ():
        if name not in seen:
            yield _set_finding(
                raw,
                Code.CLASS_NEVER_SEEN,
                Severity.WARNING,
                f"class {name!r} has no voxel in any training or validation label map",
            )


def _set_finding(
    raw: RawDataset, code: Code, severity: Severity, message: str, **details: str
) -> Finding:
    return Finding(
        code=code,
        severity=severity,
        set=raw.name,
        case=details.pop("case", None),
        file=str(raw.folder / "dataset.json"),
        message=message,
        **details,
    )
