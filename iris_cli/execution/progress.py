"""Progress: what a job says while it runs, to stderr.

On a terminal a bar with rate and time left (rich); elsewhere plain lines, one per few seconds at
most, so that a log of a thousand cases stays readable; or nothing.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """Told by a job how far it is. `status` is done, kept or failed."""

    def start(self, total: int, label: str) -> None: ...

    def advance(self, name: str, status: str) -> None: ...

    def finish(self) -> None: ...


class SilentProgress:
    """Says nothing."""

    def start(self, total: int, label: str) -> None:
        return

    def advance(self, name: str, status: str) -> None:
        return

    def finish(self) -> None:
        return


class PlainProgress:
    """Lines like `predict 12/60, 1 failed, 0.8/s, 1 min left (case_012)`.

    every_s: at least so many seconds between two lines; the last one always comes.
    """

    def __init__(self, stream: TextIO | None = None, *, every_s: float = 5.0) -> None:
        self._stream = stream
        self._every_s = every_s
        self._tally = Tally("", 0)
        self._last = 0.0

    def start(self, total: int, label: str) -> None:
        self._tally = Tally(label, total)
        self._last = time.monotonic()

    def advance(self, name: str, status: str) -> None:
        self._tally.count(status)
        now = time.monotonic()
        is_last = self._tally.finished == self._tally.total
        if is_last or now - self._last >= self._every_s:
            self._last = now
            stream = self._stream or sys.stderr
            stream.write(f"{self._tally.line()} ({name})\n")
            stream.flush()

    def finish(self) -> None:
        return


class TerminalProgress:
    """A bar with rate and time left on a terminal, plain lines elsewhere."""

    def __init__(self, stream: TextIO | None = None, *, every_s: float = 5.0) -> None:
        self._stream = stream or sys.stderr
        self._plain = None if self._stream.isatty() else PlainProgress(stream, every_s=every_s)
        self._tally = Tally("", 0)
        self._bar: Any = None
        self._task: Any = None

    def start(self, total: int, label: str) -> None:
        if self._plain is not None:
            self._plain.start(total, label)
            return
        self._tally = Tally(label, total)
        self._bar = _bar(self._stream)
        self._task = self._bar.add_task(label, total=total, state="")
        self._bar.start()

    def advance(self, name: str, status: str) -> None:
        if self._plain is not None:
            self._plain.advance(name, status)
            return
        self._tally.count(status)
        self._bar.update(self._task, advance=1, state=f"{self._tally.state()} ({name})")

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Tally:
    """Counts of a job and what follows from them. Kept cases take no time and no part in it."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total = label, total
        self.done = self.kept = self.failed = 0
        self._started = time.monotonic()

    @property
    def finished(self) -> int:
        return self.done + self.kept + self.failed

    def count(self, status: str) -> None:
        """Count one case with its status: done, kept or failed."""
        setattr(self, status, getattr(self, status) + 1)

    def per_second(self) -> float | None:
        """Cases computed per second, None before there is one."""
        elapsed = time.monotonic() - self._started
        computed = self.done + self.failed
        return computed / elapsed if computed and elapsed > 0 else None

    def left_s(self) -> float | None:
        """Seconds the remaining cases take at this rate, None before there is a rate."""
        rate = self.per_second()
        return None if rate is None else (self.total - self.finished) / rate

    def state(self) -> str:
        """Counts, rate and time left."""
        parts = []
        if self.kept:
            parts.append(f"{self.kept} kept")
        if self.failed:
            parts.append(f"{self.failed} failed")
        rate, left = self.per_second(), self.left_s()
        if rate is not None and left is not None:
            parts.append(f"{rate:.2g}/s" if rate >= 0.1 else f"{1 / rate:.0f} s each")
            if self.finished < self.total:
                parts.append(f"{duration(left)} left")
        return ", ".join(parts)

    def line(self) -> str:
        """The whole state in one line."""
        state = self.state()
        return f"{self.label} {self.finished}/{self.total}" + (f", {state}" if state else "")


def duration(seconds: float) -> str:
    """Seconds as people say them: 8 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bar(stream: TextIO) -> Any:
    # rich costs 50 ms to import, which `iris --help` need not pay.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        console=Console(file=stream),
        refresh_per_second=2,
    )
