"""Running a case function over many cases, in this process or in supervised worker processes.

    summary = run_cases(jobs, function, workers=2, claims=folder)

The function is a picklable top-level function from a payload to a `CaseResult`; it is pure but for
what it publishes. Whatever happens to one case is its outcome, not the end of the job:

- An exception is recorded with its parts; the others go on.
- A worker that dies (a signal, out of memory, a crash in a decoder) costs its case one retry,
  alone, when all others are finished; a case whose worker dies twice has failed.
- A case that takes longer than `timeout_s` has its worker killed and has failed.
- A request to stop (signals, time limit) hands out no more cases, gives those in work a few
  seconds, drops what is not finished and raises Stopped; a second Ctrl-C raises Interrupted.
- Workers die with their parent.

Outcomes are in the order of the jobs for any number of workers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import time
import types
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from iris_cli.errors import EnvironmentProblem, UsageError
from iris_cli.execution.claims import Claims
from iris_cli.execution.outcomes import (
    CaseJob,
    CaseResult,
    Outcome,
    RunSummary,
    error_parts,
    killed,
)
from iris_cli.execution.progress import Progress, SilentProgress
from iris_cli.execution.schedule import Schedule
from iris_cli.execution.signals import StopRequest, blocked
from iris_cli.execution.threads import configure
from iris_cli.execution.worker import BROKEN, READY, CaseFunction, Ran, run_case, worker_main

__all__ = ["CaseJob", "CaseResult", "Outcome", "RunSummary", "run_cases"]

# Slurm sends SIGKILL 30 s after SIGTERM; what is not finished by then is dropped in good order.
GRACE_S = 20.0
_START_ATTEMPTS = 3


def run_cases(
    jobs: Sequence[CaseJob],
    function: CaseFunction,
    *,
    workers: int = 0,
    progress: Progress | None = None,
    label: str = "cases",
    claims: Path | None = None,
    stop: StopRequest | None = None,
    timeout_s: float | None = None,
    grace_s: float = GRACE_S,
) -> RunSummary:
    """Run `function` over the payloads of all jobs.

    workers: 0 runs in this process (no protection from crashes, no time limit per case), n in
    that many spawned processes with one computing thread each.
    claims: a folder for claim files, where several processes share the cases; a case that
    another one holds comes last, and its function then finds the receipt.
    stop: asked between cases; by default signals are handled for the time of this call.
    raises Stopped when asked to stop, EnvironmentProblem where workers cannot be started,
    UsageError for two jobs of one name.
    """
    _refuse_equal_names(jobs)
    progress = progress or SilentProgress()
    stop = stop or StopRequest()
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop)
        held = stack.enter_context(Claims(claims)) if claims is not None else None
        schedule = Schedule(jobs, held, progress)
        progress.start(len(jobs), label)
        stack.callback(progress.finish)
        if workers <= 0:
            _run_here(schedule, function, stop)
        elif jobs:
            count = min(workers, len(jobs))
            with _Supervisor(schedule, function, count, stop, timeout_s, grace_s) as supervisor:
                supervisor.run()
        return schedule.summary()


def _refuse_equal_names(jobs: Sequence[CaseJob]) -> None:
    names = [job.name for job in jobs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two cases are called {twice!r}", fix="rename one of them")


def _run_here(schedule: Schedule, function: CaseFunction, stop: StopRequest) -> None:
    while schedule.has_more:
        _raise_if_stopped(schedule, stop)
        index = schedule.take()
        if index is None:
            _wait([], stop, schedule.wait_s())
        else:
            schedule.record(index, run_case(function, schedule.jobs[index].payload))


def _raise_if_stopped(schedule: Schedule, stop: StopRequest) -> None:
    stop.raise_if_requested(f"{schedule.finished} of {len(schedule.jobs)} cases are finished")


def _wait(objects: Sequence[Any], stop: StopRequest, timeout_s: float | None) -> list[Any]:
    """Wait for one of `objects`, a signal, the time limit of `stop`, or `timeout_s`."""
    limits = [s for s in (timeout_s, stop.remaining_s) if s is not None and not stop.requested]
    if stop.requested and timeout_s is not None:
        limits = [timeout_s]
    waker = [] if stop.requested or stop.fileno() < 0 else [stop.fileno()]
    ready = multiprocessing.connection.wait(
        [*objects, *waker], timeout=min(limits) if limits else None
    )
    return [one for one in ready if one not in waker]


class _Worker:
    """One worker process with its connection, and the case it has in work."""

    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        self.process = process
        self.connection = connection
        self.is_ready = False
        self.index: int | None = None
        self.since = 0.0

    def elapsed(self) -> float:
        return time.monotonic() - self.since

    def give(self, index: int, pickled: bytes) -> None:
        self.index, self.since = index, time.monotonic()
        # A worker that died meanwhile is found by its sentinel.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send_bytes(pickled)

    def messages(self) -> tuple[list[tuple[str, Any]], bool]:
        """What it has said, and whether it is gone; what it said before it went counts."""
        is_gone = not self.process.is_alive()
        said: list[tuple[str, Any]] = []
        try:
            while self.connection.poll():
                said.append(self.connection.recv())
        except (EOFError, OSError, pickle.UnpicklingError):
            is_gone = True
        return said, is_gone

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def ended_by(self) -> str:
        """Why the process is gone, in words."""
        self.process.join()
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"the worker process ended (exit status {code})"
        cause = {
            getattr(signal, "SIGKILL", 9): "; out of memory is the usual cause",
            signal.SIGSEGV: "; a crash in native code",
            signal.SIGBUS: "; a crash in native code, or a file that shrank",
            signal.SIGABRT: "; native code gave up",
        }
        return f"killed (signal {-code}{cause.get(-code, '')})"


class _Supervisor:
    """Hands cases to worker processes and notices everything that can become of them."""

    def __init__(
        self,
        schedule: Schedule,
        function: CaseFunction,
        count: int,
        stop: StopRequest,
        timeout_s: float | None,
        grace_s: float,
    ) -> None:
        self._schedule = schedule
        self._function = _pickled(function)
        self._needs_main = _defined_in_main(function, schedule.jobs)
        self._count = count
        self._stop = stop
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._workers: list[_Worker] = []
        self._suspects: list[int] = []
        self._retried: set[int] = set()
        self._failed_starts = 0

    def __enter__(self) -> _Supervisor:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def run(self) -> None:
        """Until every case has an outcome; raises Stopped when asked to stop."""
        while self._schedule.has_more or self._suspects or self._busy:
            if self._stop.requested:
                self._finish_or_drop()
                _raise_if_stopped(self._schedule, self._stop)
            self._hand_out()
            self._step(self._schedule.wait_s())

    @property
    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.index is not None]

    def _hand_out(self) -> None:
        wanted = min(self._count, len(self._busy) + self._ready_cases())
        while len(self._workers) < wanted:
            self._workers.append(self._start())
        for worker in self._workers:
            # A case that cannot be sent has failed, and the worker still waits for one.
            while worker.is_ready and worker.index is None:
                index = self._next()
                if index is None:
                    return
                self._give(worker, index)

    def _give(self, worker: _Worker, index: int) -> None:
        try:
            pickled = pickle.dumps(self._schedule.jobs[index].payload)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            self._schedule.record(index, Ran(0.0, None, error_parts(error)))
        else:
            worker.give(index, pickled)

    def _ready_cases(self) -> int:
        """How many more workers could have work now."""
        return self._count if self._schedule.has_pending else int(bool(self._suspects))

    def _next(self) -> int | None:
        index = self._schedule.take()
        if index is None and self._suspects and not self._busy:
            index = self._suspects.pop(0)
            self._retried.add(index)
        return index

    def _step(self, look_again_s: float | None) -> None:
        """Wait until something happens, and deal with it."""
        owners: dict[Any, _Worker] = {}
        for worker in self._workers:
            owners[worker.process.sentinel] = worker
            owners[worker.connection] = worker
        due = [self._timeout_s - w.elapsed() for w in self._busy] if self._timeout_s else []
        limits = [max(0.0, limit) for limit in (*due, look_again_s) if limit is not None]
        ready = _wait(list(owners), self._stop, min(limits) if limits else None)
        for worker in dict.fromkeys(owners[one] for one in ready):
            self._hear(worker)
        self._kill_overdue()

    def _hear(self, worker: _Worker) -> None:
        messages, is_gone = worker.messages()
        for kind, content in messages:
            self._message(worker, kind, content)
        if is_gone:
            self._died(worker)

    def _message(self, worker: _Worker, kind: str, content: Any) -> None:
        if kind == READY:
            worker.is_ready = True
            self._failed_starts = 0
        elif kind == BROKEN:
            raise UsageError(
                "the case function cannot be loaded in a worker process",
                found=content["problem"],
                expected="a function at the top level of an importable module",
                fix="move it there, or use no workers",
            )
        elif worker.index is not None:
            index, worker.index = worker.index, None
            self._schedule.record(index, content)

    def _died(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.process.kill()
        reason = worker.ended_by()
        worker.connection.close()
        index = worker.index
        if index is None:
            self._count_failed_start(worker, reason)
        elif index in self._retried:
            self._schedule.record(index, Ran(worker.elapsed(), None, killed(reason)))
        else:
            self._suspects.append(index)
            self._suspects.sort()

    def _count_failed_start(self, worker: _Worker, reason: str) -> None:
        if worker.is_ready:
            return  # killed while it had nothing to do
        self._failed_starts += 1
        if self._failed_starts >= _START_ATTEMPTS:
            raise EnvironmentProblem(
                "worker processes cannot be started",
                found=reason,
                fix="look for the reason on the lines above; -j 0 needs no workers",
            )

    def _kill_overdue(self) -> None:
        if self._timeout_s is None:
            return
        for worker in self._busy:
            if worker.elapsed() >= self._timeout_s:
                self._workers.remove(worker)
                worker.kill()
                assert worker.index is not None
                self._schedule.record(
                    worker.index, Ran(worker.elapsed(), None, _overdue(self._timeout_s))
                )

    def _finish_or_drop(self) -> None:
        """Give the cases in work the grace period; what is not finished then is dropped."""
        deadline = time.monotonic() + self._grace_s
        while self._busy and (left := deadline - time.monotonic()) > 0:
            self._step(left)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=worker_main,
            args=(theirs, self._function, os.getpid()),
            name="iris-worker",
            daemon=True,
        )
        with _worker_environment(), _main_module(self._needs_main), blocked():
            try:
                process.start()
            except OSError as error:
                raise EnvironmentProblem(
                    "a worker process cannot be started", found=str(error), fix="use fewer workers"
                ) from error
        theirs.close()
        return _Worker(process, ours)


def _pickled(function: CaseFunction) -> bytes:
    try:
        return pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            "the case function cannot go to a worker process",
            found=str(error),
            expected="a function at the top level of an importable module",
        ) from error


def _overdue(limit_s: float) -> dict[str, Any]:
    return {
        **killed(f"took longer than {limit_s:g} s"),
        "found": "the worker was killed at the time limit",
        "fix": "raise the time limit",
        "kind": "TimeLimit",
    }


def _defined_in_main(function: CaseFunction, jobs: Sequence[CaseJob]) -> bool:
    modules = {getattr(function, "__module__", None)}
    modules |= {type(job.payload).__module__ for job in jobs}
    return "__main__" in modules


@contextlib.contextmanager
def _worker_environment() -> Iterator[None]:
    """One thread and passive waiting for a process that is started inside."""
    before = dict(os.environ)
    configure(1)
    # Started once and early: starting it would undo the blocking of signals.
    _ensure_resource_tracker()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _ensure_resource_tracker() -> None:
    if os.name == "posix":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()


@contextlib.contextmanager
def _main_module(needed: bool) -> Iterator[None]:
    """Hide the main module where no worker needs it.

    A spawned process imports the main module of its parent again: a script without the usual
    `if __name__ == "__main__"` would start itself over and over, and the command line's imports
    would be paid by every worker.
    """
    if needed:
        yield
        return
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
