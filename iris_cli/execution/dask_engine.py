"""Cases on the workers of dask.distributed: one scheduler, any number of machines.

Only paths, other small values and receipts travel: the workers read and write the same folders,
under the same paths. This process keeps the schedule and the claims, has as many cases in work as
there are workers that can do them, and asks again every few seconds who those are (`dask_workers`);
it hears signals while it waits for an answer. A worker has one case at a time, with one computing
thread. The case of a worker that dies is given to another one by dask's scheduler, as often as its
`allowed-failures` says. The scheduler blames all cases that such a worker had or was going to have;
so what it gives up is tried once more, alone, when all others are finished, and then it has failed.

`distributed` is imported when a job begins, and not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import pickle
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from iris_cli.errors import DataRefused, EnvironmentProblem, IrisError, UsageError
from iris_cli.execution.dask_workers import Workers, environment_here
from iris_cli.execution.outcomes import SOME_FAILED, error_parts
from iris_cli.execution.schedule import Schedule
from iris_cli.execution.signals import StopRequest, blocked
from iris_cli.execution.supervisor import pickled_function, raise_if_stopped, wait_for
from iris_cli.execution.threads import limit_torch
from iris_cli.execution.worker import CaseFunction, Ran, run_case
from iris_cli.files.schema import read_json

_LOOK_S = 5.0
# Of a local cluster; others have their own `distributed.scheduler.allowed-failures`.
_RETRIES = 1
# Workers may wait in the queue of a cluster, and come back to it.
_NO_WORKER_S = 600.0
_CONNECT_S = 30.0
# So often a case may lose all workers that might do it, before it is taken to be the reason.
_LOSSES = 3
_GRACE_S = 20.0
_LOCAL = "local:"


@dataclass(frozen=True)
class DaskEngine:
    """Runs the cases of a job on a dask cluster.

    cluster: address of a scheduler (tls://host:port, tcp://host:port), the .json file it wrote
    (`dask scheduler --scheduler-file`), or local:N for N processes on this machine. folder: one
    that every worker has to see. no_worker_s: after so many seconds without any worker the job
    ends. grace_s: how long cases in work may go on after a request to stop.
    """

    cluster: str
    folder: Path
    no_worker_s: float = _NO_WORKER_S
    grace_s: float = _GRACE_S

    def __post_init__(self) -> None:
        """Raises UsageError for words that name no cluster, EnvironmentProblem without dask."""
        count = self.cluster.removeprefix(_LOCAL)
        is_local = self.cluster.startswith(_LOCAL) and count.isascii() and count.isdecimal()
        is_address = self.cluster.startswith(("tls://", "tcp://"))
        if not (is_local and int(count)) and not is_address and not self.cluster.endswith(".json"):
            raise UsageError(
                "no such dask cluster",
                found=self.cluster,
                expected="tls://host:port, tcp://host:port, a scheduler.json, or local:N",
            )
        _distributed()

    def run(self, schedule: Schedule, function: CaseFunction, stop: StopRequest) -> None:
        """Until every case has an outcome.

        raises Stopped when asked to stop, EnvironmentProblem where scheduler or workers cannot be
        reached, or are no match for this process.
        """
        with (
            _connected(self.cluster) as client,
            _Dispatcher(client, schedule, function, stop, self) as dispatcher,
        ):
            dispatcher.run()


@dataclass(frozen=True)
class _Sent:
    """A case in work. workers: addresses of those that may do it, empty where any may."""

    future: Any
    workers: frozenset[str]


class _Dispatcher:
    """Hands cases to the workers of a client, and keeps what becomes of them."""

    def __init__(
        self,
        client: Any,
        schedule: Schedule,
        function: CaseFunction,
        stop: StopRequest,
        engine: DaskEngine,
    ) -> None:
        self._client = client
        self._schedule = schedule
        self._function = pickled_function(function)
        self._stop = stop
        self._engine = engine
        self._job = secrets.token_hex(8)
        self._futures: dict[int, _Sent] = {}
        self._lost: Counter[int] = Counter()
        self._again: list[int] = []
        self._suspects: list[int] = []
        self._retried: set[int] = set()
        self._ended: SimpleQueue[tuple[int, Any, Ran | BaseException]] = SimpleQueue()
        look_s = min(_LOOK_S, engine.no_worker_s)
        self._workers = Workers(client, engine.folder, self._wake, look_s)

    def __enter__(self) -> _Dispatcher:
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        return self

    def __exit__(self, *exception: object) -> None:
        self._workers.close()
        with contextlib.suppress(Exception):  # a scheduler that is gone has nothing to cancel
            self._client.cancel([sent.future for sent in self._futures.values()])
        self._futures.clear()
        os.close(self._wake_read)
        # What wakes later finds it closed.
        wake, self._wake_write = self._wake_write, -1
        os.close(wake)

    def run(self) -> None:
        while self._schedule.has_more or self._futures or self._again or self._suspects:
            if self._stop.requested:
                self._finish_or_drop()
                raise_if_stopped(self._schedule, self._stop)
            look_s = self._workers.look()
            self._refuse()
            self._take_back()
            self._hand_out(self._workers.fit)
            wait_s = self._schedule.wait_s()
            self._step(look_s if wait_s is None else min(look_s, wait_s))

    def _refuse(self) -> None:
        """Raise where nothing can be done with the workers that there are, or not."""
        workers, engine = self._workers, self._engine
        if workers.problem is not None:
            raise _unreachable(engine.cluster, workers.problem) from workers.problem
        if workers.refusals:
            named = [f"{worker}: {why}" for worker, why in sorted(workers.refusals.items())[:5]]
            raise EnvironmentProblem(
                "dask workers cannot do these cases",
                found="; ".join(named),
                expected=f"{environment_here()}, and {engine.folder}",
                fix="start the workers in the same environment, where they see the same folders",
            )
        silent_s = time.monotonic() - workers.answered_at
        if silent_s >= max(engine.no_worker_s, _CONNECT_S):
            raise _unreachable(engine.cluster, TimeoutError(f"no answer for {silent_s:.0f} s"))
        if workers.answered_at - workers.seen_at >= engine.no_worker_s:
            unanswered = workers.unanswered
            silent = f"; no answer from {', '.join(unanswered[:5])}" if unanswered else ""
            raise EnvironmentProblem(
                "there is no dask worker",
                found=f"none for {engine.no_worker_s:g} s at {engine.cluster}{silent}",
                fix="start workers, then run the same line again",
            )

    def _take_back(self) -> None:
        """Cases whose workers have all gone: the scheduler would wait for these and no others."""
        for index, sent in list(self._futures.items()):
            if not sent.workers or sent.workers & self._workers.there:
                continue
            del self._futures[index]
            self._client.cancel([sent.future])
            self._lost[index] += 1
            if self._lost[index] < _LOSSES:
                self._again.append(index)
            else:
                self._schedule.record(index, Ran(0.0, None, _gone(sent.workers)))

    def _hand_out(self, workers: frozenset[str]) -> None:
        while len(self._futures) < len(workers) and (index := self._next()) is not None:
            try:
                payload = pickle.dumps(self._schedule.jobs[index].payload)
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                self._schedule.record(index, Ran(0.0, None, error_parts(error)))
                continue
            key = f"iris-{self._job}-{index}-{'alone' if index in self._retried else 'first'}"
            # Without any that has not answered its greeting, dask is free to choose.
            chosen = workers if workers < self._workers.there else frozenset()
            future = self._client.submit(
                _run_on_worker,
                self._function,
                payload,
                key=f"{key}-{self._lost[index]}",
                pure=False,
                workers=sorted(chosen) or None,
            )
            self._futures[index] = _Sent(future, chosen)
            self._client.loop.add_callback(self._follow, index, future)

    def _next(self) -> int | None:
        index = self._again.pop(0) if self._again else self._schedule.take()
        if index is None and self._suspects and not self._futures:
            index = self._suspects.pop(0)
            self._retried.add(index)
        return index

    async def _follow(self, index: int, future: Any) -> None:
        """In the loop of the client: fetch what became of a case."""
        try:
            end: Ran | BaseException = await future
        except (Exception, asyncio.CancelledError) as error:
            end = error
        self._ended.put((index, future, end))
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"!")

    def _step(self, timeout_s: float) -> None:
        """Wait until a case has ended, for a signal, or `timeout_s`."""
        if wait_for([self._wake_read], self._stop, timeout_s):
            os.read(self._wake_read, 4096)
        while not self._ended.empty():
            index, future, end = self._ended.get()
            if index in self._futures and self._futures[index].future is future:
                del self._futures[index]
                self._end(index, end)

    def _end(self, index: int, end: Ran | BaseException) -> None:
        if isinstance(end, Ran):
            self._schedule.record(index, end)
        elif isinstance(end, asyncio.CancelledError):
            raise _unreachable(self._engine.cluster, ConnectionError("its cases were cancelled"))
        elif not _is_death(end):
            self._schedule.record(index, Ran(0.0, None, error_parts(end)))
        elif index in self._retried:
            self._schedule.record(index, Ran(0.0, None, _died(end)))
        else:
            self._suspects.append(index)

    def _finish_or_drop(self) -> None:
        """Give the cases in work the grace period; what is not finished then is dropped."""
        deadline = time.monotonic() + self._engine.grace_s
        while self._futures and (left := deadline - time.monotonic()) > 0:
            self._step(left)


_ONE_CASE = threading.Lock()


def _run_on_worker(function: bytes, payload: bytes) -> Ran:
    """On a worker: run one case, however many threads the worker has."""
    with _ONE_CASE:
        try:
            loaded: CaseFunction = pickle.loads(function)
            if "torch" in sys.modules:
                limit_torch(1)
            return run_case(loaded, pickle.loads(payload))
        except Exception as error:
            return Ran(0.0, None, error_parts(error))


def _distributed() -> Any:
    """The module; raises EnvironmentProblem where it is not installed."""
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise EnvironmentProblem(
            "--dask needs dask.distributed",
            found="it is not installed",
            fix="pip install 'iris-segmentation[dask]'",
        ) from error


@contextlib.contextmanager
def _connected(cluster: str) -> Iterator[Any]:
    """A client of the cluster, which is started and ended here where it is a local one."""
    distributed = _distributed()
    with contextlib.ExitStack() as stack:
        if cluster.startswith(_LOCAL):
            stack.enter_context(_failures_allowed())
            # Signals are for this process: workers, and threads that start workers, hold them back.
            with blocked():
                local = distributed.LocalCluster(
                    n_workers=int(cluster.removeprefix(_LOCAL)),
                    threads_per_worker=1,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    memory_limit=None,
                    silence_logs=logging.CRITICAL,
                )
            address = stack.enter_context(local)
        else:
            address = cluster if "://" in cluster else _address_in(Path(cluster))
        try:
            client = distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise _unreachable(cluster, error) from error
        yield stack.enter_context(client)


def _address_in(file: Path) -> str:
    """The address that a scheduler wrote; dask itself would wait for the file without a word."""
    written = read_json(file)
    address = written.get("address") if isinstance(written, dict) else None
    if not isinstance(address, str) or "://" not in address:
        raise DataRefused(
            "this file names no dask scheduler",
            file=file,
            expected='{"address": "tcp://..."}, as dask scheduler --scheduler-file writes it',
        )
    return address


@contextlib.contextmanager
def _failures_allowed() -> Iterator[None]:
    """A case is tried once more when its worker dies, as without dask."""
    config = importlib.import_module("dask").config
    with config.set({"distributed.scheduler.allowed-failures": _RETRIES}):
        yield


def _unreachable(cluster: str, error: Exception) -> IrisError:
    return EnvironmentProblem(
        "the dask scheduler cannot be reached",
        file=cluster if cluster.endswith(".json") else None,
        found=f"{cluster}: {type(error).__name__}: {error}".partition("\n")[0],
        fix="see that it runs, then run the same line again, which does what is missing",
    )


def _is_death(error: BaseException) -> bool:
    return any(kind.__name__ == "KilledWorker" for kind in type(error).__mro__)


def _died(error: Any) -> dict[str, Any]:
    """The error of a case whose workers died."""
    tries = error.allowed_failures + 1
    return {
        "problem": f"its dask workers died, {tries} of them while it ran alone",
        "file": None,
        "found": f"the last one was {error.last_worker.address}; its log has the reason",
        "expected": None,
        "fix": "give workers more memory; if it dies everywhere, report the case",
        "exit_code": SOME_FAILED,
        "kind": "WorkerDied",
    }


def _gone(workers: frozenset[str]) -> dict[str, Any]:
    """The error of a case whose workers went again and again."""
    return {
        "problem": f"its dask workers went, all that might do it, {_LOSSES} times",
        "file": None,
        "found": f"the last ones were {', '.join(sorted(workers)[:5])}; their logs have the reason",
        "expected": None,
        "fix": "give workers more memory; if they go everywhere, report the case",
        "exit_code": SOME_FAILED,
        "kind": "WorkerDied",
    }
