"""Integrity of raw data sets: every finding of every case in one pass, before anything is computed.

Each file is read once, whole, by the readers that everything else uses; the same reading measures
what planning needs (`measure`). Test cases are checked but never measured. What was found of a
case is kept (`cache`), so that a killed or repeated check reads only what is missing or changed.

- `payload`, `case`: one case, from files to `CheckedCase`;
- `grids`, `geometry`, `voxels`, `labels`: what is looked for in one case;
- `sides`, `across`: what only all cases together show;
- `names`: what names and dataset.json alone show.

What each code means and does stands in `preparation.codes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from iris_cli.dataset.raw import RawDataset
from iris_cli.execution.jobs import CaseJob, Outcome, run_cases
from iris_cli.execution.progress import Progress
from iris_cli.execution.signals import StopRequest
from iris_cli.preparation.codes import Code
from iris_cli.preparation.findings import Finding, IntegrityReport, Place, sort_findings
from iris_cli.preparation.integrity.across import across_cases, across_sets
from iris_cli.preparation.integrity.case import check_case
from iris_cli.preparation.integrity.names import check_names
from iris_cli.preparation.integrity.payload import CheckedCase, payloads

__all__ = ["check_case", "check_dataset", "check_datasets"]


def check_datasets(
    sets: Sequence[RawDataset],
    *,
    unseen: Collection[str] = (),
    workers: int = 0,
    cache: Path | None = None,
    timeout_s: float | None = None,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> tuple[IntegrityReport, ...]:
    """Check raw data sets and measure their cases, all in one pass.

    sets: read with `strict=False`, so that what is wrong with their files is in the reports too.
    unseen: names of those that only validation opens, which share no image with the others.
    cache: folder in which what was found of a case is kept. timeout_s: per case, with workers.
    returns: a report per set with errors and warnings in a fixed order; nothing is raised for bad
    data. raises Stopped on a signal.
    """
    jobs = [job for raw in sets for job in _jobs(raw, cache)]
    run = run_cases(
        jobs,
        check_case,
        workers=workers,
        progress=progress,
        label="checking",
        stop=stop,
        timeout_s=timeout_s,
    )
    outcomes = iter(run.outcomes)
    checked = [[_checked(raw, next(outcomes), case.name) for case in raw.cases] for raw in sets]
    between = across_sets(sets, checked, unseen)
    return tuple(
        _report(raw, cases, between.get(raw.name, ()))
        for raw, cases in zip(sets, checked, strict=True)
    )


def check_dataset(
    raw: RawDataset, *, workers: int = 0, cache: Path | None = None
) -> IntegrityReport:
    """`check_datasets` for one set."""
    return check_datasets([raw], workers=workers, cache=cache)[0]


def _report(
    raw: RawDataset, checked: Sequence[CheckedCase], between: Sequence[Finding]
) -> IntegrityReport:
    findings = [*check_names(raw), *across_cases(raw, checked), *between]
    findings += [finding for case in checked for finding in case.findings]
    facts = [case.facts for case in checked if case.facts is not None]
    # What holds between cases needs the test cases too; what is handed on to planning does not.
    measured = tuple(fact for fact in facts if fact.role != "test")
    return IntegrityReport(
        set=raw.name, cases=len(raw.cases), findings=sort_findings(findings), facts=measured
    )


def _checked(raw: RawDataset, outcome: Outcome, case: str) -> CheckedCase:
    """What was found of a case; a check that failed is a finding itself."""
    if outcome.result is not None:
        return CheckedCase.model_validate(outcome.result.receipt)
    error = outcome.error or {}
    finding = Place(raw.name, case).finding(
        Code.CHECK_FAILED,
        f"the check failed: {error.get('problem', 'no reason is known')}",
        file=error.get("file"),
        found=error.get("found"),
        expected=error.get("expected"),
        fix=error.get("fix"),
    )
    return CheckedCase(findings=(finding,))


def _jobs(raw: RawDataset, cache: Path | None) -> list[CaseJob]:
    # A name that is there twice is a finding; as a job it needs a name of its own.
    seen: Counter[str] = Counter()
    unique = []
    for case in raw.cases:
        again = seen[case.name]
        unique.append(f"{case.name} ({again})" if again else case.name)
        seen[case.name] += 1
    folder = None if cache is None else cache / raw.name
    return [
        CaseJob(f"{raw.folder}/{name}", payload)
        for name, payload in zip(unique, payloads(raw, unique, folder), strict=True)
    ]
