"""The exceptions of iris and the exit code each one ends a command with.

IrisError                     1   a defect in iris: please report it
├── UsageError                2   the command line asks for something that does not exist
├── SomeCasesFailed           3   some cases are done, some failed
├── DataRefused               4   nothing was done because of the data
├── EnvironmentProblem        5   disk, memory, permission, missing device or package
├── Diverged                  6   training produced non-finite numbers
├── Stopped                  75   stopped by a signal, everything saved: run the same line again
└── Interrupted             130   interrupted twice by the keyboard

A message has four parts: what is wrong, which file, what was found against what was expected,
and what to do. Every part after the first is optional, but a message about a file names it.
"""

from __future__ import annotations

from pathlib import Path


class IrisError(Exception):
    """Base of everything iris raises on purpose."""

    exit_code = 1

    def __init__(
        self,
        problem: str,
        *,
        file: Path | str | None = None,
        found: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.file = None if file is None else str(file)
        self.found = None if found is None else str(found)
        self.expected = None if expected is None else str(expected)
        self.fix = fix

    def __str__(self) -> str:
        parts = (
            ("file", self.file),
            ("found", self.found),
            ("expected", self.expected),
            ("fix", self.fix),
        )
        lines = [self.problem] + [f"  {name:<9} {text}" for name, text in parts if text]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders: keep the parts, not only the first argument.
        parts = {
            "file": self.file,
            "found": self.found,
            "expected": self.expected,
            "fix": self.fix,
        }
        return (_rebuild, (type(self), self.problem, parts))

    def to_json(self) -> dict[str, object]:
        """The four parts and the exit code, for `--json` and receipts."""
        return {
            "problem": self.problem,
            "file": self.file,
            "found": self.found,
            "expected": self.expected,
            "fix": self.fix,
            "exit_code": self.exit_code,
        }


def _rebuild(kind: type[IrisError], problem: str, parts: dict[str, str | None]) -> IrisError:
    return kind(problem, **parts)


class UsageError(IrisError, ValueError):
    """The command line or a Python argument asks for something that does not exist."""

    exit_code = 2


class SomeCasesFailed(IrisError):
    """Some cases are done, some failed; the message lists the failed ones."""

    exit_code = 3


class DataRefused(IrisError, ValueError):
    """The data cannot be used as they are; nothing was done with them."""

    exit_code = 4


class EnvironmentProblem(IrisError, OSError):
    """Disk, memory, permission, a missing device or package."""

    exit_code = 5


class Diverged(IrisError, ArithmeticError):
    """Training produced non-finite numbers too often; the last good checkpoint is intact."""

    exit_code = 6


class Stopped(IrisError):
    """A signal or `--stop-after` ended the work with everything saved."""

    exit_code = 75


class Interrupted(IrisError):
    """A second interrupt from the keyboard ended the work at once."""

    exit_code = 130
