"""Running a case function over many cases, in this process or in supervised worker processes.

    summary = run_cases(jobs, function, workers=2, claims=folder)

The function is a picklable top-level function from a payload to a `CaseResult`; it is pure but for
what it publishes. Whatever happens to one case is its outcome, not the end of the job:

- An exception is recorded with its parts; the others go on.
- A worker that dies, hangs, or takes longer than `timeout_s` costs its case, not the job
  (`supervisor`).
- A request to stop (signals, time limit) hands out no more cases, gives those in work a few
  seconds, drops what is not finished and raises Stopped; a second Ctrl-C raises Interrupted.
- Workers die with their parent.

Outcomes are in the order of the jobs for any number of workers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from iris_cli.errors import UsageError
from iris_cli.execution.claims import Claims
from iris_cli.execution.kept_workers import KeptWorkers
from iris_cli.execution.outcomes import CaseJob, CaseResult, Outcome, RunSummary
from iris_cli.execution.overlap import run_overlapped, steps_of
from iris_cli.execution.progress import Progress, SilentProgress
from iris_cli.execution.schedule import DEFAULT_RULES, Rules, Schedule
from iris_cli.execution.signals import StopRequest
from iris_cli.execution.supervisor import (
    Assign,
    Limits,
    Supervisor,
    raise_if_stopped,
    wait_for,
)
from iris_cli.execution.worker import CaseFunction, run_case

__all__ = ["CaseJob", "CaseResult", "Outcome", "RunSummary", "run_cases"]

# Slurm sends SIGKILL 30 s after SIGTERM; what is not finished by then is dropped in good order.
GRACE_S = 20.0

# A decoder may hold the interpreter for minutes on a large volume, which keeps the heartbeat back.
SILENCE_S = 900.0


class Engine(Protocol):
    """Drives a schedule: takes cases from it, has them run, and records what became of them."""

    def run(self, schedule: Schedule, function: CaseFunction, stop: StopRequest) -> None:
        """Until every case has an outcome; raises Stopped when asked to stop."""


def run_cases(
    jobs: Sequence[CaseJob],
    function: CaseFunction,
    *,
    workers: int = 0,
    overlap: bool = False,
    progress: Progress | None = None,
    label: str = "cases",
    claims: Path | None = None,
    rules: Rules = DEFAULT_RULES,
    assign: Assign | None = None,
    engine: Engine | None = None,
    kept: KeptWorkers | None = None,
    stop: StopRequest | None = None,
    timeout_s: float | None = None,
    silence_s: float = SILENCE_S,
    grace_s: float = GRACE_S,
) -> RunSummary:
    """Run `function` over the payloads of all jobs.

    workers: 0 runs in this process (no protection from crashes, no time limit per case), n in
    that many spawned processes with one computing thread each.
    overlap: without workers, read the next case and write the last one while one is computed, where
    the function has steps (`overlap.in_steps`); takes the memory of up to three cases.
    claims: a folder for claim files, where several processes share the cases; a case that
    another one holds comes last, and its function then finds the receipt.
    rules: what a failure and a claim of another process mean for the job.
    assign: payload and number of the worker (from 0) -> the payload for that worker, where workers
    differ, as in the device they use.
    engine: runs the cases in place of this process and its workers (`dask_engine`).
    kept: worker processes of an earlier job, which go on to a later one.
    stop: asked between cases; by default signals are handled for the time of this call.
    timeout_s: longest time of one case. silence_s: longest silence of a worker that hangs.
    raises Stopped when asked to stop, EnvironmentProblem where workers cannot be started,
    UsageError for two jobs of one name and for a time limit without workers.
    """
    _refuse_equal_names(jobs)
    _refuse_limit_without_workers(timeout_s, workers)
    progress = progress or SilentProgress()
    stop = stop or StopRequest()
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop)
        held = stack.enter_context(Claims(claims)) if claims is not None else None
        schedule = Schedule(jobs, held, progress, rules)
        progress.start(len(jobs), label)
        stack.callback(progress.finish)
        if engine is not None:
            engine.run(schedule, function, stop)
        elif workers <= 0:
            _run_here(schedule, function, stop, overlap)
        elif jobs:
            count = min(workers, len(jobs))
            limits = Limits(timeout_s, silence_s, grace_s)
            with Supervisor(schedule, function, count, stop, limits, assign, kept) as supervisor:
                supervisor.run()
        return schedule.summary()


def _refuse_equal_names(jobs: Sequence[CaseJob]) -> None:
    names = [job.name for job in jobs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two cases are called {twice!r}", fix="rename one of them")


def _refuse_limit_without_workers(timeout_s: float | None, workers: int) -> None:
    if timeout_s is not None and workers <= 0:
        raise UsageError(
            "a time limit per case needs worker processes: nothing else can be ended from outside",
            found=f"{timeout_s:g} s and no workers",
            fix="add -j 1 or more, or leave the limit out",
        )


def _run_here(schedule: Schedule, function: CaseFunction, stop: StopRequest, overlap: bool) -> None:
    steps = steps_of(function)
    if overlap and steps is not None:
        run_overlapped(schedule, steps, stop)
        return
    while schedule.has_more:
        raise_if_stopped(schedule, stop)
        index = schedule.take()
        if index is None:
            wait_for([], stop, schedule.wait_s())
        else:
            schedule.record(index, run_case(function, schedule.jobs[index].payload))
