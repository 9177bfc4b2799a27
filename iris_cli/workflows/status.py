"""`iris status`: where a training run or a folder of predictions stands. Nothing is changed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from iris_cli.errors import (
    DataRefused,
    Diverged,
    Interrupted,
    IrisError,
    Stopped,
    UsageError,
)
from iris_cli.execution.announced import ANNOUNCED, read_announced
from iris_cli.execution.claims import case_of, living
from iris_cli.execution.failures import FAILURES, read_failures
from iris_cli.execution.receipts import read_receipt
from iris_cli.files.publish import published_json
from iris_cli.inference.job import HIDDEN, cases_left
from iris_cli.inference.outputs import OUTPUT_ENDINGS
from iris_cli.planning.plan import read_plan
from iris_cli.training.checkpoint import BEST, LATEST, PREVIOUS, read_step
from iris_cli.training.claim import claim_file
from iris_cli.training.ending import read_end
from iris_cli.training.log import METRICS, read_lines
from iris_cli.workflows.manifest import command_of
from iris_cli.workflows.run_folder import MODEL, RUN_PLAN, has_model

State = Literal["running", "finished", "stopped", "failed", "diverged", "never begun"]
# What the same line goes on after; after every other end it would end in the same way.
GOES_ON = (Stopped.exit_code, Interrupted.exit_code)


@dataclass(frozen=True)
class CheckpointStatus:
    """A checkpoint of a run; step is None where the file is damaged."""

    name: str
    step: int | None
    age_s: float


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands.

    why: who trains, or why it ended. step: of the newest whole checkpoint, or of the log while it
    runs. last: the last report of the log; validation: step and figures of the last validation.
    exit_code: 0 nothing to do now, 75 the same line goes on, else what the last process ended with,
    which a person has to look at.
    """

    folder: Path
    state: State
    why: str
    step: int
    steps: int
    last: Mapping[str, Any]
    validation: tuple[int, Mapping[str, Any]] | None
    checkpoints: tuple[CheckpointStatus, ...]
    next: str
    exit_code: int

    @property
    def eta_s(self) -> float | None:
        """Seconds of work that are left at the last pace."""
        step_s = self.last.get("step_s")
        return None if step_s is None else step_s * (self.steps - self.step)

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "kind": "run",
            "folder": str(self.folder),
            "state": self.state,
            "why": self.why,
            "step": self.step,
            "steps": self.steps,
            "eta_s": self.eta_s,
            "last": dict(self.last),
            "validation": None
            if self.validation is None
            else {"step": self.validation[0], **self.validation[1]},
            "checkpoints": [asdict(checkpoint) for checkpoint in self.checkpoints],
            "next": self.next,
            "exit_code": self.exit_code,
        }


@dataclass(frozen=True)
class CaseInWork:
    """A case that a living process has claimed. age_s: for how long, where that is known."""

    case: str
    host: str
    pid: int
    age_s: float | None


@dataclass(frozen=True)
class OutputStatus:
    """Where a folder of predictions stands.

    done: receipt and label map are there, and no line has the case to do again. incomplete: a
    receipt whose label map is gone. failed: case -> parts of its error. working: cases that a
    living process has claimed. waiting: cases of a line that did not end, or is not at its end,
    which have no result of this line and are none of these. A case that failed or waits may have a
    label map of an earlier line.
    """

    folder: Path
    done: tuple[str, ...]
    incomplete: tuple[str, ...]
    failed: Mapping[str, Mapping[str, Any]]
    working: tuple[CaseInWork, ...]
    waiting: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """75 cases wait and nobody works, 3 something failed or is missing, else 0."""
        if self.waiting and not self.working:
            return Stopped.exit_code
        return 3 if self.failed or self.incomplete else 0

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "kind": "predictions",
            "folder": str(self.folder),
            "done": list(self.done),
            "incomplete": list(self.incomplete),
            "failed": {case: dict(error) for case, error in self.failed.items()},
            "working": [asdict(case) for case in self.working],
            "waiting": list(self.waiting),
            "exit_code": self.exit_code,
        }


def status(folder: Path) -> RunStatus | OutputStatus:
    """Where the run or the predictions in a folder stand; raises UsageError for other folders."""
    if (folder / RUN_PLAN).is_file():
        return run_status(folder)
    if (folder / HIDDEN).is_dir():
        return output_status(folder)
    raise UsageError(
        "neither a run nor a folder of predictions",
        file=folder,
        expected=f"{RUN_PLAN} of iris train, or {HIDDEN}/ of iris predict",
        fix="give a folder below runs/, or the output folder of iris predict",
    )


def run_status(folder: Path) -> RunStatus:
    """Where a training run stands, by its claim, its checkpoints and its log."""
    steps = read_plan(folder / RUN_PLAN).training.steps
    lines = read_lines(folder / METRICS) if (folder / METRICS).is_file() else []
    reports = [line for line in lines if "loss" in line]
    validations = [(line["step"], line["validation"]) for line in lines if "validation" in line]
    checkpoints = _checkpoints(folder)
    saved = [c.step for c in checkpoints if c.step is not None and c.name != BEST]
    state, why, exit_code = _state(folder, max(saved, default=None), steps)
    logged = [report["step"] for report in reports[-1:]] if state == "running" else []
    return RunStatus(
        folder=folder,
        state=state,
        why=why,
        step=max([*saved, *logged], default=0),
        steps=steps,
        last=reports[-1] if reports else {},
        validation=validations[-1] if validations else None,
        checkpoints=checkpoints,
        next=_next(folder, state),
        exit_code=exit_code,
    )


def output_status(folder: Path) -> OutputStatus:
    """Where a folder of `iris predict` stands, by its receipts, notes and claims."""
    hidden = folder / HIDDEN
    receipts = {path.stem for path in published_json(hidden) if read_receipt(path) is not None}
    written = {
        case
        for case in receipts
        if any((folder / f"{case}{ending}").is_file() for ending in OUTPUT_ENDINGS)
    }
    working = _in_work(hidden / "claims")
    taken = {case.case for case in working}
    failed = {
        case: error for case, error in read_failures(hidden / FAILURES).items() if case not in taken
    }
    lists = read_announced(hidden / ANNOUNCED).values()
    left = {case for announced in lists for case in cases_left(announced, hidden)}
    waiting = left - taken - set(failed)
    others = waiting | set(failed)
    return OutputStatus(
        folder=folder,
        done=tuple(sorted(written - others)),
        incomplete=tuple(sorted(receipts - written - others)),
        failed=failed,
        working=working,
        waiting=tuple(sorted(waiting)),
    )


def _in_work(claims: Path) -> tuple[CaseInWork, ...]:
    now = time.time()
    cases = {
        case_of(path): (holder, max(0.0, now - holder.since) if holder.since else None)
        for path, holder in living(claims.glob("*.claim")).items()
    }
    return tuple(
        CaseInWork(case, holder.host, holder.pid, age_s)
        for case, (holder, age_s) in sorted(cases.items())
    )


def _state(folder: Path, saved: int | None, steps: int) -> tuple[State, str, int]:
    """State, why, and the exit code for scripts."""
    claim = claim_file(folder)
    if holder := living([claim]).get(claim):
        return "running", f"process {holder.pid} on {holder.host}", 0
    end = read_end(folder)
    if end:
        # Without a code it was no error that iris raises on purpose.
        code, problem = int(end.get("exit_code") or IrisError.exit_code), str(end.get("problem"))
        if code == Diverged.exit_code:
            return "diverged", problem, code
        if code not in GOES_ON:
            return "failed", problem, code
        return "stopped", problem, Stopped.exit_code
    if saved is None and not (folder / METRICS).is_file():
        return "never begun", "no step was trained", Stopped.exit_code
    if saved is None or saved < steps:
        return "stopped", "its process left no word: it was killed", Stopped.exit_code
    if not has_model(folder):
        return "stopped", "every step is done, its model is not written", Stopped.exit_code
    return "finished", "every step is done", 0


def _checkpoints(folder: Path) -> tuple[CheckpointStatus, ...]:
    """The checkpoints that are there, each read to its last byte."""
    found = []
    for name in (LATEST, PREVIOUS, BEST):
        path = folder / name
        try:
            age = time.time() - path.stat().st_mtime
        except OSError:
            continue
        try:
            step: int | None = read_step(path)
        except DataRefused:
            step = None
        found.append(CheckpointStatus(name, step, age))
    return tuple(found)


def _line_of(folder: Path) -> str:
    """The command line a run was begun with, where its manifest tells."""
    try:
        words = command_of(folder)
    except IrisError:
        words = None
    return f"iris train {folder}" if words is None else shlex.join(words)


def _next(folder: Path, state: State) -> str:
    line = _line_of(folder)
    return {
        "finished": f"use {folder / MODEL}",
        "running": "wait; a signal or Ctrl-C to the process saves and stops it",
        "stopped": f"{line} goes on",
        "failed": f"see to what is said above; then {line} goes on",
        "never begun": f"{line} begins it",
        "diverged": f"a new run with --init-from {folder / LATEST} and a lower "
        "training.optimiser.lr or training.clip; the checkpoint is intact",
    }[state]
