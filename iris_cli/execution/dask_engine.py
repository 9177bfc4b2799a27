"""Cases on the workers of dask.distributed: one scheduler, any number of machines.

Only paths, other small values and receipts travel: the workers read and write the same folders,
under the same paths. This process keeps the schedule and the claims, has as many cases in work as
there are workers, and asks again every few seconds how many those are. A worker has one case at a
time, with one computing thread. The case of a worker that dies is given to another one by dask's
scheduler, as often as its `allowed-failures` says. The scheduler blames all cases that such a
worker had or was going to have; so what it gives up is tried once more, alone, when all others are
finished, and then it has failed.

`distributed` is imported when a job begins, and not before.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

from iris_cli import __version__
from iris_cli.errors import DataRefused, EnvironmentProblem, IrisError, UsageError
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
        self._futures: dict[int, Any] = {}
        self._suspects: list[int] = []
        self._retried: set[int] = set()
        self._finished: SimpleQueue[int] = SimpleQueue()
        self._greeted: set[str] = set()
        self._seen_at = time.monotonic()

    def __enter__(self) -> _Dispatcher:
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(Exception):  # a scheduler that is gone has nothing to cancel
            self._client.cancel(list(self._futures.values()))
        self._futures.clear()
        os.close(self._wake_read)
        # A callback that comes later finds it closed.
        wake, self._wake_write = self._wake_write, -1
        os.close(wake)

    def run(self) -> None:
        while self._schedule.has_more or self._futures or self._suspects:
            if self._stop.requested:
                self._finish_or_drop()
                raise_if_stopped(self._schedule, self._stop)
            self._hand_out(self._count_workers())
            look_s = min(_LOOK_S, self._engine.no_worker_s)
            wait_s = self._schedule.wait_s()
            self._step(look_s if wait_s is None else min(look_s, wait_s))

    def _count_workers(self) -> int:
        """How many there are; new ones are asked first whether they can do what is wanted."""
        try:
            workers = set(self._client.nthreads())
        except (OSError, TimeoutError) as error:
            raise _unreachable(self._engine.cluster, error) from error
        if workers:
            self._seen_at = time.monotonic()
        elif time.monotonic() - self._seen_at >= self._engine.no_worker_s:
            raise EnvironmentProblem(
                "there is no dask worker",
                found=f"none for {self._engine.no_worker_s:g} s at {self._engine.cluster}",
                fix="start workers, then run the same line again",
            )
        self._greet(workers - self._greeted)
        return len(workers)

    def _greet(self, workers: set[str]) -> None:
        if not workers:
            return
        answers = self._client.run(
            _greeting, str(self._engine.folder), workers=sorted(workers), on_error="return"
        )
        refusals = {worker: why for worker, said in answers.items() if (why := _misfit(said))}
        if refusals:
            named = [f"{worker}: {why}" for worker, why in sorted(refusals.items())[:5]]
            raise EnvironmentProblem(
                f"{len(refusals)} dask workers cannot do these cases",
                found="; ".join(named),
                expected=f"{_environment_here()}, and {self._engine.folder}",
                fix="start the workers in the same environment, where they see the same folders",
            )
        self._greeted |= workers

    def _hand_out(self, workers: int) -> None:
        while len(self._futures) < workers and (index := self._next()) is not None:
            try:
                payload = pickle.dumps(self._schedule.jobs[index].payload)
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                self._schedule.record(index, Ran(0.0, None, error_parts(error)))
                continue
            key = f"iris-{self._job}-{index}-{'alone' if index in self._retried else 'first'}"
            future = self._client.submit(
                _run_on_worker, self._function, payload, key=key, pure=False
            )
            self._futures[index] = future
            future.add_done_callback(lambda _, index=index: self._wake(index))

    def _next(self) -> int | None:
        index = self._schedule.take()
        if index is None and self._suspects and not self._futures:
            index = self._suspects.pop(0)
            self._retried.add(index)
        return index

    def _wake(self, index: int) -> None:
        self._finished.put(index)
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"!")

    def _step(self, timeout_s: float) -> None:
        """Wait until a case has ended, for a signal, or `timeout_s`."""
        if wait_for([self._wake_read], self._stop, timeout_s):
            os.read(self._wake_read, 4096)
        while not self._finished.empty():
            index = self._finished.get()
            future = self._futures.pop(index, None)
            if future is not None:
                self._end(index, future)

    def _end(self, index: int, future: Any) -> None:
        if future.status == "finished":
            self._schedule.record(index, future.result())
        elif future.status != "error":
            raise _unreachable(self._engine.cluster, ConnectionError("its cases were cancelled"))
        elif not _is_death(error := future.exception()):
            self._schedule.record(index, Ran(0.0, None, error_parts(error)))
        elif index in self._retried:
            self._schedule.record(index, Ran(0.0, None, _died(error)))
        else:
            self._suspects.append(index)

    def _finish_or_drop(self) -> None:
        """Give the cases in work the grace period; what is not finished then is dropped."""
        deadline = time.monotonic() + self._engine.grace_s
        while self._futures and (left := deadline - time.monotonic()) > 0:
            self._step(left)


_ONE_CASE = threading.Lock()


def _environment_here() -> str:
    return f"iris {__version__} on Python {sys.version_info.major}.{sys.version_info.minor}"


def _greeting(folder: str) -> tuple[str, str | None]:
    """On a worker: its environment, and what is missing of what it has to see."""
    return _environment_here(), None if Path(folder).is_dir() else f"{folder} is not there"


def _misfit(said: object) -> str | None:
    """Why a worker that gave this greeting cannot do the cases; None where it can."""
    if isinstance(said, OSError):
        return None  # it has gone, or comes again
    if isinstance(said, BaseException):
        return f"iris cannot be loaded ({type(said).__name__}: {said})"
    environment, missing = cast(tuple[str, str | None], said)
    return missing if environment == _environment_here() else environment


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
