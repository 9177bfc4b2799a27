"""`iris doctor`: what this machine offers, what is missing, how to get it."""

from __future__ import annotations

from pathlib import Path

import typer

from iris_cli.commands._options import Json, Quiet, Verbose
from iris_cli.commands._output import Output


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("doctor")(doctor)


def doctor(as_json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Check versions, devices, threads, memory, disk and the shipped model.

    Example: iris doctor
    """
    from iris_cli.workflows.doctor import State, examine, is_healthy

    output = Output.choose(as_json, verbose, quiet)
    output.explain(f"disk measured at {Path.cwd()}")
    checks = examine(Path.cwd())
    rows = [(check.topic, check.state.value, check.found, check.fix or "") for check in checks]
    output.table("iris doctor", ("what", "state", "found", "what to do"), rows)
    keys = ("topic", "state", "found", "fix")
    output.result([dict(zip(keys, row, strict=True)) for row in rows])
    if not is_healthy(checks):
        raise typer.Exit(5)
    if any(check.state is State.NOTE for check in checks):
        output.say("notes do not stop iris from working")
