"""Being asked to stop: signals and time limits, noticed between steps.

SIGTERM (schedulers, Kubernetes), SIGUSR1 (Slurm `--signal=B:USR1@120`), SIGUSR2 (LSF, SGE) and
Ctrl-C only set a flag: whoever works finishes or drops its current step, saves, and raises
`Stopped` (exit 75). A second Ctrl-C raises KeyboardInterrupt at once, which becomes `Interrupted`
(exit 130) when it leaves the `StopRequest`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType, TracebackType
from typing import Any

from iris_cli.errors import Interrupted, Stopped

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


class StopRequest:
    """Whether the work was asked to stop, and why.

    Used as a context manager it handles the signals above; in another thread than the main one
    it only keeps the time limit (Python delivers signals to the main thread alone). It may be
    entered again while it is active: the inner uses change nothing.

    stop_after_s: ask to stop by itself after so many seconds from entering.
    """

    def __init__(self, stop_after_s: float | None = None) -> None:
        self._stop_after_s = stop_after_s
        self._deadline: float | None = None
        self._reason: str | None = None
        self._depth = 0
        self._previous: dict[int, Any] = {}
        self._wake_read = self._wake_write = -1

    @property
    def requested(self) -> bool:
        """Whether to stop at the next step."""
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """`SIGTERM`, `SIGINT`, ... or the time limit; None while nothing was asked."""
        if self._reason is None and self.remaining_s == 0.0:
            self._reason = f"--stop-after {self._stop_after_s:g} s"
        return self._reason

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the time limit, None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def request(self, reason: str) -> None:
        """Ask to stop from inside the process."""
        if self._reason is None:
            self._reason = reason
        self._wake()

    def raise_if_requested(self, progress: str = "everything so far is saved") -> None:
        """Raise Stopped if asked to; `progress` says what is saved."""
        if self.requested:
            raise Stopped(
                f"stopped by {self.reason}: {progress}", fix="run the same line again to go on"
            )

    def fileno(self) -> int:
        """A file descriptor that becomes readable when a signal comes, for waiting on it.

        -1 while the request is not entered.
        """
        return self._wake_read

    def __enter__(self) -> StopRequest:
        self._depth += 1
        if self._depth > 1:
            return self
        if self._stop_after_s is not None:
            self._deadline = time.monotonic() + self._stop_after_s
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._wake_read = self._wake_write = -1
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(
                "interrupted twice: the work in progress was dropped",
                fix="what was finished is saved; run the same line again to go on",
            ) from None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._reason == "SIGINT":
            raise KeyboardInterrupt
        self._reason = self._reason or signal.Signals(number).name
        if number == signal.SIGINT:
            # A Ctrl-C after a scheduler's signal counts as the first one.
            self._reason = "SIGINT"
        self._wake()

    def _wake(self) -> None:
        if self._wake_write >= 0:
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_write, b"!")


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Signals of this module are held back in this thread, and in processes started meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        # The first process that is spawned brings this one with it, which lets SIGINT and SIGTERM
        # in again when it has started: before the process itself has.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def unblock() -> None:
    """Let signals of this module in that the process was started with held back."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ignore_in_worker() -> None:
    """Leave the signals of this module to the supervisor; called first in a worker process.

    Ctrl-C reaches every process of the terminal, a scheduler's signal often every process of the
    job: the supervisor decides what becomes of the case in work.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    unblock()
