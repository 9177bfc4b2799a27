"""`iris preprocess`: the cases of a plan into the preprocessed store.

A rerun computes only what has no matching receipt, so a killed run is finished by the same line;
several processes on one workspace share the cases.
Test cases are left out: training never needs them, and scoring works on raw volumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iris_cli.dataset.raw import Case, RawDataset, read_raw_dataset
from iris_cli.errors import DataRefused, UsageError
from iris_cli.execution.dask_engine import DaskEngine
from iris_cli.execution.failures import noted
from iris_cli.execution.jobs import CaseJob, RunSummary, run_cases
from iris_cli.execution.parts import WHOLE, Part, Share, run_part
from iris_cli.execution.progress import Progress
from iris_cli.execution.schedule import Rules
from iris_cli.execution.signals import StopRequest
from iris_cli.files.schema import nearest
from iris_cli.planning.crew import Crew, choose_crew, worth_starting
from iris_cli.planning.declared import refuse_changed
from iris_cli.planning.plan import PREPROCESSED, Plan, SetPlan, read_plan
from iris_cli.planning.training_sets import modality_of
from iris_cli.preparation.case_memory import predicted_bytes, predicted_seconds
from iris_cli.preparation.preprocess import PreprocessPayload, is_current, preprocess_case
from iris_cli.preparation.store import Role, list_cases, receipt_path, remove_view, view_name

PREPROCESSED_ROLES: tuple[Role, ...] = ("train", "validate", "unlabelled")


@dataclass(frozen=True)
class PreprocessReport:
    """The run over all sets: outcomes named `<set>/<case>`, and the store folder of each set.

    share: what was taken of the cases.
    """

    run: RunSummary
    folders: dict[str, Path]
    memory: Crew
    share: Share

    @property
    def exit_code(self) -> int:
        return self.run.exit_code

    def set_rows(self) -> list[dict[str, str]]:
        """One row per set for a table."""
        return [self._row(name) for name in self.folders]

    def _row(self, name: str) -> dict[str, str]:
        outcomes = [o for o in self.run.outcomes if o.name.startswith(f"{name}/")]
        count = {s: sum(o.status == s for o in outcomes) for s in ("done", "kept", "failed")}
        results = [o.result.receipt for o in outcomes if o.result is not None]
        return {
            "set": name,
            **{status: str(n) for status, n in count.items()},
            "views": str(sum(len(receipt["views"]) for receipt in results)),
            "MB": f"{sum(receipt['bytes'] for receipt in results) / 1e6:.1f}",
            "seconds": f"{sum(o.seconds for o in outcomes):.1f}",
            "folder": str(self.folders[name]),
        }

    def notes(self) -> list[str]:
        """What should be said about workers and cases."""
        return [*([self.memory.note] if self.memory.note else []), *self.share.notes()]

    def to_json(self) -> dict[str, Any]:
        """Rows and failures, JSON values only."""
        failed = {o.name: o.error for o in self.run.outcomes if o.status == "failed"}
        return {
            "sets": self.set_rows(),
            "failed": failed,
            "workers": self.memory.workers,
            "memory_bytes": self.memory.needed_bytes,
            "part": self.share.to_json(),
            "ended_by": self.run.ended_by.name if self.run.ended_by else None,
            "notes": self.notes(),
            "exit_code": self.exit_code,
        }


def preprocess(
    plan: Plan | Path,
    *,
    workspace: Path,
    sets: Sequence[str] = (),
    workers: int = 0,
    max_ram: int | None = None,
    case_timeout_s: float | None = None,
    part: Part = WHOLE,
    only_failed: bool = False,
    strict: bool = False,
    dask: str | None = None,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> PreprocessReport:
    """Preprocess the training, validation and unlabelled cases of a plan's sets.

    sets: some of the plan's (default all). max_ram: bytes that all processes together may take (by
    default what the machine has); as many of the `workers` work as fit and have enough to do.
    part: the share of the cases to work on first. dask: a cluster that does the cases in place of
    workers (`DaskEngine`). only_failed: of these those that an earlier run noted as failed. A case
    that fails ends the run where `strict`; else it is in the report, whose exit code is 3 then (4
    where nothing could be done because of the data).
    raises UsageError for a set that is not in the plan, DataRefused where a raw set lacks cases of
    the plan or was changed since it was planned, EnvironmentProblem where a case needs more than
    `max_ram` (which counts without `dask` alone), Stopped on a signal.
    """
    workspace = workspace if dask is None else workspace.absolute()
    engine = None if dask is None else DaskEngine(dask, workspace)
    planned = read_plan(plan) if isinstance(plan, Path) else plan
    names = _chosen_sets(planned, sets)
    payloads: list[PreprocessPayload] = []
    for name in names:
        raw = read_raw_dataset(planned.raw_folder(workspace, name), strict=False)
        refuse_changed(planned, name, raw)
        _forget_test_cases(planned, workspace, name)
        payloads += payloads_of_set(planned, name, raw, workspace)
    jobs = [CaseJob(f"{p.set}/{p.case}", p, needs_bytes=predicted_bytes(p)) for p in payloads]
    # The memory that counts is that of the cluster's workers, which nobody knows here.
    crew = Crew(0, 0) if engine is not None else _crew(jobs, part, workers, max_ram)
    failures = workspace / PREPROCESSED / ".failed"

    def run(some: Sequence[CaseJob], waits: bool) -> RunSummary:
        return run_cases(
            some,
            preprocess_case,
            workers=crew.workers,
            timeout_s=case_timeout_s,
            progress=progress,
            label="preprocessing" if waits else "preprocessing, left by others",
            claims=workspace / PREPROCESSED / ".claims",
            rules=Rules(strict=strict, waits=waits, failures=failures),
            engine=engine,
            stop=stop,
        )

    summary, share = run_part(
        jobs,
        part,
        run,
        is_done=lambda job: _is_stored(job.payload),
        failed=lambda: noted(failures),
        only_failed=only_failed,
    )
    folders = {name: planned.store_folder(workspace, name) for name in names}
    return PreprocessReport(summary, folders, crew, share)


def _crew(jobs: Sequence[CaseJob], part: Part, workers: int, max_ram: int | None) -> Crew:
    # With one worker or none nothing is to be decided, and no receipt is read for it.
    own = [job for job in part.of(jobs) if not is_current(job.payload)] if workers > 1 else []
    worth, why = worth_starting(workers, sum(predicted_seconds(job.needs_bytes) for job in own))
    crew = choose_crew({job.name: job.needs_bytes or 0 for job in jobs}, worth, max_ram)
    return replace(crew, note=crew.note or why)


def _is_stored(payload: PreprocessPayload) -> bool:
    """Whether every view of a case has a receipt, whatever it says."""
    names = [view_name(payload.case, channel) for channel in range(len(payload.images))]
    return all(receipt_path(payload.folder, name).is_file() for name in names)


def most_memory(plan: Plan, workspace: Path) -> int:
    """Most memory (bytes) that a process of `preprocess` takes for any case of the plan."""
    needs = [0]
    for name in plan.sets:
        raw = read_raw_dataset(plan.raw_folder(workspace, name), strict=False)
        payloads = payloads_of_set(plan, name, raw, workspace)
        needs += [predicted_bytes(payload) or 0 for payload in payloads]
    return max(needs)


def payloads_of_set(
    plan: Plan, name: str, raw: RawDataset, workspace: Path
) -> list[PreprocessPayload]:
    """One payload per case of a set that goes into the store, in order of case names."""
    planned = plan.sets[name]
    cases = {case.name: case for case in raw.cases}
    roles = {case: role for case, role in planned.roles.items() if role in PREPROCESSED_ROLES}
    missing = sorted(set(roles) - set(cases))
    if missing:
        raise DataRefused(
            f"cases of the plan are not in the raw set {name}",
            file=raw.folder,
            found=f"{len(missing)} missing: {', '.join(missing[:10])}",
            fix="bring them back, or plan anew with `iris plan`",
        )
    folder = plan.store_folder(workspace, name)
    return [
        _payload(folder, name, planned, cases[case], role) for case, role in sorted(roles.items())
    ]


def _payload(
    folder: Path, name: str, planned: SetPlan, case: Case, role: Role
) -> PreprocessPayload:
    if len(case.images) != len(planned.channels):
        raise DataRefused(
            f"case {case.name!r} of {name} lacks a channel",
            found=", ".join(path.name for path in case.images) or "no image",
            expected=f"{len(planned.channels)} images",
            fix="add the file, or remove the case and plan anew",
        )
    return PreprocessPayload(
        folder=folder,
        set=name,
        case=case.name,
        subject=case.subject,
        role=role,
        images=case.images,
        # Pseudo tasks work on images alone: the label map of an unlabelled case is never opened.
        label=None if role == "unlabelled" else case.label,
        modalities=tuple(modality_of(case, channel) for channel in planned.channels),
        classes=planned.classes,
        ignore_value=planned.ignore_value,
        not_annotated=case.not_annotated,
        absent_is_background=planned.absent_means == "background",
        spacing_mm=planned.spacing_mm,
    )


def _chosen_sets(plan: Plan, sets: Sequence[str]) -> list[str]:
    for name in sets:
        if name not in plan.sets:
            guess = nearest(name, list(plan.sets))
            held_out = " (it is held out)" if name in plan.held_out_sets else ""
            raise UsageError(
                f"set {name!r} is not in the plan{held_out}",
                expected=", ".join(plan.sets),
                fix=f"did you mean {guess!r}?" if guess else "plan for it with `iris plan`",
            )
    return list(dict.fromkeys(sets)) or list(plan.sets)


def _forget_test_cases(plan: Plan, workspace: Path, name: str) -> None:
    """A case that an earlier plan trained on and this one tests on must leave the store."""
    folder = plan.store_folder(workspace, name)
    test = set(plan.sets[name].test)
    for view in list_cases(folder):
        if view in test or view.rpartition("@")[0] in test:
            remove_view(folder, view)
