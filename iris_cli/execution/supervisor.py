"""The supervisor: hands cases to worker processes and notices everything that can become of them.

- A worker that dies costs its case one retry, alone, when all others are finished; a case whose
  worker dies twice has failed, with the kernel's evidence for the reason (`deaths`).
- A worker sends a heartbeat every few seconds, with the step it is in and its memory. One that is
  silent for `silence_s` hangs (a disk that does not answer, a deadlock): it is killed, its case has
  failed. A case that takes longer than `timeout_s` has its worker killed and has failed.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from iris_cli.errors import EnvironmentProblem, UsageError
from iris_cli.execution.deaths import died, overdue, silent
from iris_cli.execution.kept_workers import KeptWorkers
from iris_cli.execution.outcomes import CaseJob, error_parts
from iris_cli.execution.process import WorkerProcess
from iris_cli.execution.schedule import Schedule
from iris_cli.execution.signals import StopRequest
from iris_cli.execution.worker import ALIVE, BROKEN, READY, CaseFunction, Ran

Assign = Callable[[Any, int], Any]

_START_ATTEMPTS = 3
_BEAT_S = 5.0


@dataclass(frozen=True)
class Limits:
    """Seconds: of one case (None: none), of silence of a worker, of grace after a stop request."""

    timeout_s: float | None
    silence_s: float
    grace_s: float

    @property
    def beat_s(self) -> float:
        """How often a worker says that it is alive: four may be late."""
        return min(_BEAT_S, self.silence_s / 5)


def wait_for(objects: Sequence[Any], stop: StopRequest, timeout_s: float | None) -> list[Any]:
    """Wait for one of `objects`, a signal, the time limit of `stop`, or `timeout_s`."""
    limits = [s for s in (timeout_s, stop.remaining_s) if s is not None and not stop.requested]
    if stop.requested and timeout_s is not None:
        limits = [timeout_s]
    waker = [] if stop.requested or stop.fileno() < 0 else [stop.fileno()]
    ready = multiprocessing.connection.wait(
        [*objects, *waker], timeout=min(limits) if limits else None
    )
    return [one for one in ready if one not in waker]


def raise_if_stopped(schedule: Schedule, stop: StopRequest) -> None:
    """Raise Stopped if asked to, with how far the job has come."""
    stop.raise_if_requested(f"{schedule.finished} of {len(schedule.jobs)} cases are finished")


class Supervisor:
    """Worker processes over a schedule; a context manager that leaves none of them behind."""

    def __init__(
        self,
        schedule: Schedule,
        function: CaseFunction,
        count: int,
        stop: StopRequest,
        limits: Limits,
        assign: Assign | None = None,
        kept: KeptWorkers | None = None,
    ) -> None:
        self._schedule = schedule
        self._function = pickled_function(function)
        self._needs_main = _defined_in_main(function, schedule.jobs)
        self._count = count
        self._stop = stop
        self._limits = limits
        self._assign = assign
        # Without any to keep them, they end with this job.
        self._kept = kept
        self._workers = [] if kept is None else kept.take(self._function, count)
        self._suspects: list[int] = []
        self._retried: set[int] = set()
        self._failed_starts = 0

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.ExitStack() as stack:
            kept = self._kept or stack.enter_context(KeptWorkers())
            kept.keep(self._function, self._workers)
        self._workers = []

    def run(self) -> None:
        """Until every case has an outcome; raises Stopped when asked to stop."""
        while self._schedule.has_more or self._suspects or self._busy:
            if self._stop.requested:
                self._finish_or_drop()
                raise_if_stopped(self._schedule, self._stop)
            self._hand_out()
            self._step(self._schedule.wait_s())

    @property
    def _busy(self) -> list[WorkerProcess]:
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

    def _give(self, worker: WorkerProcess, index: int) -> None:
        try:
            payload = self._schedule.jobs[index].payload
            if self._assign is not None:
                payload = self._assign(payload, worker.number)
            pickled = pickle.dumps(payload)
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
        owners: dict[Any, WorkerProcess] = {}
        for worker in self._workers:
            owners[worker.process.sentinel] = worker
            owners[worker.connection] = worker
        due = [self._due_s(worker) for worker in self._busy]
        limits = [max(0.0, limit) for limit in (*due, look_again_s) if limit is not None]
        ready = wait_for(list(owners), self._stop, min(limits) if limits else None)
        for worker in dict.fromkeys(owners[one] for one in ready):
            self._hear(worker)
        self._kill_overdue()

    def _hear(self, worker: WorkerProcess) -> None:
        messages, is_gone = worker.messages()
        for kind, content in messages:
            self._message(worker, kind, content)
        if is_gone:
            self._died(worker)

    def _message(self, worker: WorkerProcess, kind: str, content: Any) -> None:
        if kind == READY:
            worker.is_ready = True
            self._failed_starts = 0
        elif kind == ALIVE:
            worker.beat(content)
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

    def _died(self, worker: WorkerProcess) -> None:
        self._workers.remove(worker)
        worker.process.kill()
        index = worker.index
        death = worker.death(None if index is None else self._schedule.jobs[index].needs_bytes)
        worker.connection.close()
        if index is None:
            self._count_failed_start(worker, death.reason())
        elif index in self._retried:
            self._schedule.record(index, Ran(worker.elapsed(), None, died(death)))
        else:
            self._suspects.append(index)
            self._suspects.sort()

    def _count_failed_start(self, worker: WorkerProcess, reason: str) -> None:
        if worker.is_ready:
            return  # killed while it had nothing to do
        self._failed_starts += 1
        if self._failed_starts >= _START_ATTEMPTS:
            raise EnvironmentProblem(
                "worker processes cannot be started",
                found=reason,
                fix="look for the reason on the lines above; -j 0 needs no workers",
            )

    def _due_s(self, worker: WorkerProcess) -> float:
        """Seconds until this worker has to be looked at."""
        quiet = self._limits.silence_s - worker.silence()
        timeout_s = self._limits.timeout_s
        return quiet if timeout_s is None else min(quiet, timeout_s - worker.elapsed())

    def _kill_overdue(self) -> None:
        timeout_s, silence_s = self._limits.timeout_s, self._limits.silence_s
        for worker in self._busy:
            if timeout_s is not None and worker.elapsed() >= timeout_s:
                self._give_up(worker, overdue(timeout_s, worker.last))
            elif worker.silence() >= silence_s:
                self._give_up(worker, silent(silence_s, worker.last))

    def _give_up(self, worker: WorkerProcess, error: dict[str, Any]) -> None:
        self._workers.remove(worker)
        worker.kill()
        assert worker.index is not None
        self._schedule.record(worker.index, Ran(worker.elapsed(), None, error))

    def _start(self) -> WorkerProcess:
        taken = {worker.number for worker in self._workers}
        return WorkerProcess.start(
            min(set(range(self._count)) - taken),
            self._function,
            needs_main=self._needs_main,
            beat_s=self._limits.beat_s,
        )

    def _finish_or_drop(self) -> None:
        """Give the cases in work the grace period; what is not finished then is dropped."""
        deadline = time.monotonic() + self._limits.grace_s
        while self._busy and (left := deadline - time.monotonic()) > 0:
            self._step(left)


def pickled_function(function: CaseFunction) -> bytes:
    """The function as it travels to other processes; raises UsageError where it cannot."""
    try:
        return pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            "the case function cannot go to a worker process",
            found=str(error),
            expected="a function at the top level of an importable module",
        ) from error


def _defined_in_main(function: CaseFunction, jobs: Sequence[CaseJob]) -> bool:
    modules = {getattr(function, "__module__", None)}
    modules |= {type(job.payload).__module__ for job in jobs}
    return "__main__" in modules
