"""What becomes of the cases of a job, and the exit code that follows."""

from __future__ import annotations

import errno
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iris_cli.errors import (
    DataRefused,
    EnvironmentProblem,
    IrisError,
    SomeCasesFailed,
)

Status = Literal["done", "kept", "failed"]
DEFECT, DATA, ENVIRONMENT, SOME_FAILED = 1, 4, 5, 3
_ENVIRONMENT_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_PERMISSION_ERRNO = (errno.EACCES, errno.EPERM)
# Of torch and CUDA, which raise RuntimeError for it; torch is not imported to ask.
_MEMORY_WORDS = ("DefaultCPUAllocator", "out of memory")


@dataclass(frozen=True)
class CaseJob:
    """One case of a job: its name, and what the case function needs (picklable).

    needs_bytes: memory it is expected to take, where that is known; said when it is killed for it.
    """

    name: str
    payload: Any
    needs_bytes: int | None = None


@dataclass(frozen=True)
class CaseResult:
    """What a case function returns: `kept` where a matching receipt was there already."""

    status: Literal["done", "kept"]
    receipt: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one case. `error` has the parts of an IrisError, and the exit code."""

    name: str
    status: Status
    seconds: float
    error: dict[str, Any] | None = None
    result: CaseResult | None = None


@dataclass(frozen=True)
class RunSummary:
    """The outcomes of a job in the order of its cases.

    ended_by: the failed case that ended a strict job, whose other cases are not all among these.
    """

    outcomes: tuple[Outcome, ...]
    ended_by: Outcome | None = None

    def with_more(self, later: RunSummary) -> RunSummary:
        """These outcomes, and those of another job after them."""
        return RunSummary((*self.outcomes, *later.outcomes), self.ended_by or later.ended_by)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    @property
    def exit_code(self) -> int:
        """0 nothing failed, 3 some cases failed, and where all failed or all would: 4, 5 or 1.

        5: the environment failed (disk, an output that may not be written), with which the other
        cases stand or fall, or every case ran out of memory. 4: every case was refused because of
        its data (an input that may not be read, too). 1: every case failed by a defect of iris.
        Where a failed case ended the job, its own: 4 for its data, 3 for its death or its memory.
        """
        if self.ended_by is not None:
            return int((self.ended_by.error or {}).get("exit_code", DEFECT))
        codes = {int((outcome.error or {}).get("exit_code", DEFECT)) for outcome in self.failed}
        if not codes:
            return 0
        if ENVIRONMENT in codes:
            return ENVIRONMENT
        if len(self.failed) < len(self.outcomes) or len(codes) > 1:
            return SOME_FAILED
        code = codes.pop()
        return ENVIRONMENT if code == SOME_FAILED else code

    def raise_for_failures(self) -> None:
        """Raise what the exit code stands for, with every failed case named."""
        code = self.exit_code
        if code == 0:
            return
        failed, total = self.failed, len(self.outcomes)
        kinds: dict[int, type[IrisError]] = {
            SOME_FAILED: SomeCasesFailed,
            DATA: DataRefused,
            ENVIRONMENT: EnvironmentProblem,
            DEFECT: IrisError,
        }
        lines = [f"{o.name}: {(o.error or {}).get('problem')}" for o in failed[:20]]
        if len(failed) > len(lines):
            lines.append(f"and {len(failed) - len(lines)} more")
        errors = [outcome.error or {} for outcome in failed]
        one = errors[0] if len({str(error.get("problem")) for error in errors}) == 1 else {}
        raise kinds.get(code, SomeCasesFailed)(
            f"{len(failed)} of {total} cases failed\n  " + "\n  ".join(lines),
            file=one.get("file"),
            found=one.get("found"),
            expected=one.get("expected"),
            fix=one.get("fix") or "correct what is named above and run the same line again",
        )


def error_parts(error: BaseException) -> dict[str, Any]:
    """An exception as JSON: the parts of an IrisError, or type and message of another one.

    The traceback is under "debug" and for nothing else; messages of foreign exceptions are kept
    short, because they may quote what they were given.
    """
    if isinstance(error, IrisError):
        parts: dict[str, Any] = dict(error.to_json())
        if isinstance(error, EnvironmentProblem) and is_out_of_memory(error.__cause__):
            parts["exit_code"] = SOME_FAILED  # of this case: smaller ones may well fit
    elif is_out_of_memory(error):
        parts = {
            "problem": "not enough memory",
            "file": None,
            "found": _shortened(error),
            "expected": None,
            "fix": "give it more memory, or use fewer workers",
            "exit_code": SOME_FAILED,
        }
    else:
        code, fix = _foreign_code(error)
        parts = {
            "problem": _shortened(error),
            "file": _file_of(error),
            "found": None,
            "expected": None,
            "fix": fix,
            "exit_code": code,
        }
    parts["kind"] = type(error).__name__
    stage, stage_file = getattr(error, "stage", None), getattr(error, "stage_file", None)
    if stage is not None:
        parts["stage"] = str(stage)
    if stage_file is not None:
        parts["file"] = parts["file"] or str(stage_file)
    parts["debug"] = "".join(traceback.format_exception(error))
    return parts


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception of Python, the system, torch or CUDA means that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    is_of_torch = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return is_of_torch or any(words in str(error) for words in _MEMORY_WORDS)


def _shortened(error: BaseException) -> str:
    message = str(error).strip().partition("\n")[0][:300]
    kind = type(error).__name__
    return f"{kind}: {message}" if message else kind


def _file_of(error: BaseException) -> str | None:
    name = getattr(error, "filename", None)
    return str(name) if name else None


def _foreign_code(error: BaseException) -> tuple[int, str]:
    number = error.errno if isinstance(error, OSError) else None
    if number in _ENVIRONMENT_ERRNO or (number in _PERMISSION_ERRNO and _is_of_writing(error)):
        return ENVIRONMENT, "free space or correct the permissions, then run the line again"
    if number in _PERMISSION_ERRNO:
        return DATA, "make the file readable for your user, then run the line again"
    return DEFECT, "a defect in iris: please report it, with the output of --debug"


def _is_of_writing(error: BaseException) -> bool:
    """Whether a refused permission is one to write: the same error comes from reading.

    An output that may not be written fails every case, an input that may not be read only its own.
    """
    name = getattr(error, "filename", None)
    if not isinstance(name, str | bytes):
        return False
    path = Path(os.fsdecode(name))
    if not os.path.exists(path):
        return not os.access(path.parent, os.W_OK)
    may_be_written = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return os.access(path, os.R_OK) and not may_be_written
