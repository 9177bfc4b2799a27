"""What commands that work through many cases have in common: progress, failures, exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from iris_cli.commands._output import Detail, Output
from iris_cli.execution.progress import Progress, SilentProgress, TerminalProgress

if TYPE_CHECKING:
    from iris_cli.execution.jobs import RunSummary


def progress_of(output: Output) -> Progress:
    """Bars on a terminal, plain lines elsewhere, nothing with `-q`."""
    return SilentProgress() if output.detail is Detail.QUIET else TerminalProgress()


def show_failures(output: Output, run: RunSummary) -> None:
    """Every failed case with its reason, at the end where it is seen."""
    for outcome in run.failed:
        error = outcome.error or {}
        output.say(f"failed: {outcome.name}: {error.get('problem', 'no reason is known')}")
        for part in ("file", "found", "expected", "fix"):
            if error.get(part):
                output.say(f"  {part:<9} {error[part]}")
    if run.ended_by is not None:
        output.say(f"ended at {run.ended_by.name}: cases that are not listed were not begun")


def leave_with(exit_code: int) -> None:
    """End the command with this exit code unless it is 0."""
    if exit_code:
        raise typer.Exit(exit_code)
