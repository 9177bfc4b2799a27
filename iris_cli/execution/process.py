"""A worker process as its supervisor sees it: started, given a case, heard, killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
import time
import types
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from iris_cli.errors import EnvironmentProblem
from iris_cli.execution.deaths import Death, Vital
from iris_cli.execution.memory import children_peak_bytes, oom_kills
from iris_cli.execution.signals import blocked
from iris_cli.execution.threads import configure
from iris_cli.execution.worker import worker_main


class WorkerProcess:
    """One worker process with its connection, and the case it has in work.

    number: among the workers of a job, from 0; one in the place of a dead one has its number.
    last: its last heartbeat within this case; heard_at: when that was.
    """

    def __init__(self, number: int, process: BaseProcess, connection: Connection) -> None:
        self.number = number
        self.process = process
        self.connection = connection
        self.is_ready = False
        self.index: int | None = None
        self.since = 0.0
        self.last = Vital()
        self.heard_at = 0.0
        self._kills_before: int | None = None
        self._peak_before: int | None = None

    @classmethod
    def start(
        cls, number: int, pickled_function: bytes, *, needs_main: bool, beat_s: float
    ) -> WorkerProcess:
        """Spawn one. needs_main: whether function or payloads are defined in the main module.

        raises EnvironmentProblem where the system has no room for another process.
        """
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=worker_main,
            args=(theirs, pickled_function, os.getpid(), beat_s),
            name="iris-worker",
            daemon=True,
        )
        with _worker_environment(), _main_module(needs_main), blocked():
            try:
                process.start()
            except OSError as error:
                raise EnvironmentProblem(
                    "a worker process cannot be started", found=str(error), fix="use fewer workers"
                ) from error
        theirs.close()
        return cls(number, process, ours)

    def elapsed(self) -> float:
        return time.monotonic() - self.since

    def silence(self) -> float:
        """Seconds since it last gave a sign of life."""
        return time.monotonic() - self.heard_at

    def give(self, index: int, pickled: bytes) -> None:
        self.index, self.since, self.heard_at = index, time.monotonic(), time.monotonic()
        self.last = Vital()
        self._kills_before, self._peak_before = oom_kills(), children_peak_bytes()
        # A worker that died meanwhile is found by its sentinel.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send_bytes(pickled)

    def beat(self, vital: Vital) -> None:
        """Note a heartbeat; the largest memory is kept, the others are the last ones."""
        most = max((v for v in (self.last.resident_bytes, vital.resident_bytes) if v), default=None)
        self.last = Vital(vital.stage, most)
        self.heard_at = time.monotonic()

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

    def death(self, needs_bytes: int | None) -> Death:
        """How it ended; waits for the process, which must be gone or going."""
        self.process.join()
        peak = children_peak_bytes()
        if peak is not None and self._peak_before is not None and peak > self._peak_before:
            # Between two heartbeats a process can take all there is.
            self.beat(Vital(self.last.stage, peak))
        return Death(self.process.exitcode, self._kills_before, needs_bytes, self.last)


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
