"""Why a worker is gone, in words, with the evidence there is."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

from iris_cli.execution.memory import gigabytes, memory_limit, oom_kills
from iris_cli.execution.outcomes import SOME_FAILED

_CAUSES = {
    "SIGSEGV": "a crash in native code",
    "SIGBUS": "a crash in native code, or a file that shrank",
    "SIGABRT": "native code gave up",
    "SIGILL": "native code for another processor",
    "SIGXCPU": "the limit of computing time",
}


@dataclass(frozen=True)
class Vital:
    """What a worker says of itself with every heartbeat."""

    stage: str | None = None
    resident_bytes: int | None = None


@dataclass(frozen=True)
class Death:
    """A worker that ended with a case in work.

    exit_code: of the process, negative for a signal. kills_before: `oom_kills()` when the case was
    given to it. needs_bytes: what the case was expected to need. last: its last heartbeat.
    """

    exit_code: int | None
    kills_before: int | None
    needs_bytes: int | None = None
    last: Vital = Vital()

    def reason(self) -> str:
        """One line: out of memory with numbers where kernel or estimate say so, else the signal."""
        if self.exit_code is None or self.exit_code >= 0:
            return f"the worker process ended (exit status {self.exit_code})"
        name = _signal_name(-self.exit_code)
        if name != "SIGKILL":
            return f"killed ({name}{_after(_CAUSES.get(name))})"
        kills = oom_kills()
        limit = memory_limit()
        if kills is not None and self.kills_before is not None and kills > self.kills_before:
            return f"killed (out of memory: {self._numbers(limit)})"
        if self.needs_bytes is not None and limit is not None and self.needs_bytes > limit:
            return f"killed (out of memory: {self._numbers(limit)})"
        if kills is None:
            return (
                "killed (SIGKILL; out of memory is the usual cause, and this system keeps no "
                "count of it)"
            )
        return "killed (SIGKILL, not by the kernel for memory: a scheduler, or a person)"

    def _numbers(self, limit: int | None) -> str:
        used = self.last.resident_bytes
        if self.needs_bytes is not None:
            needed = f"needed about {gigabytes(self.needs_bytes)}"
        elif used is not None:
            needed = f"needed more than {gigabytes(used)}"
        else:
            needed = "what it needed is not known"
        return needed + ("" if limit is None else f", had {gigabytes(limit)} for all workers")


def died(death: Death) -> dict[str, Any]:
    """The error of a case whose worker died twice."""
    reason = death.reason()
    is_memory = "out of memory" in reason
    return {
        "problem": reason,
        "file": None,
        "found": "the worker process died, and died again when the case ran alone",
        "expected": None,
        "fix": "give it more memory, or fewer workers"
        if is_memory
        else "run the line again; if it dies everywhere, report the case",
        "exit_code": SOME_FAILED,
        "kind": "WorkerDied",
        **_stage(death.last),
    }


def overdue(limit_s: float, last: Vital) -> dict[str, Any]:
    """The error of a case that took longer than its limit."""
    return {
        "problem": f"took longer than {limit_s:g} s",
        "file": None,
        "found": "the worker was killed at the time limit",
        "expected": None,
        "fix": "raise the time limit (--case-timeout)",
        "exit_code": SOME_FAILED,
        "kind": "TimeLimit",
        **_stage(last),
    }


def silent(limit_s: float, last: Vital) -> dict[str, Any]:
    """The error of a case whose worker gave no sign of life."""
    return {
        "problem": f"hung: no sign of life for {limit_s:g} s",
        "file": None,
        "found": "the process was there but did not run: a disk that does not answer, a deadlock",
        "expected": None,
        "fix": "look at the disk of the case's files, then run the same line again",
        "exit_code": SOME_FAILED,
        "kind": "Hung",
        **_stage(last),
    }


def _stage(last: Vital) -> dict[str, Any]:
    return {} if last.stage is None else {"stage": last.stage}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _after(cause: str | None) -> str:
    return f"; {cause}" if cause else ""
