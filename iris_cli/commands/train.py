"""`iris train`: one model over many sets; the same line resumes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from iris_cli.commands._options import Device, Json, Quiet, Verbose, Workspace
from iris_cli.commands._output import Output
from iris_cli.errors import UsageError
from iris_cli.execution.signals import StopRequest

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("train")(train)


def train(
    run: Annotated[str, typer.Argument(help="Name or folder of the run.")] = "default",
    workspace: Workspace = Path(),
    plan: Annotated[
        Path | None,
        typer.Option("--plan", "-p", help="Plan; default plans/default.json."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, as training.steps=1000.")
    ] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Checkpoint or model to start a new run from.")
    ] = None,
    stop_after: Annotated[
        str | None, typer.Option(help="Stop with everything saved after 90s, 45m or 11.5h.")
    ] = None,
    validate_cases: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Validation cases per set; 0 validates nothing. Default 2, or what the run was "
            "begun with.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-j", min=0, help="Processes that make episodes.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the computation; default all cores.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train a model by a plan, or go on with a run that was stopped.

    Example: iris train my-run -w workspace --stop-after 11.5h
    """
    out = Output.choose(as_json, verbose, quiet)
    limit = None if stop_after is None else _seconds(stop_after)
    from iris_cli.execution.threads import limit_torch
    from iris_cli.workflows.devices import choose_device
    from iris_cli.workflows.train import train as run_training
    from iris_cli.workflows.validation import InContextValidation

    if threads is not None:
        limit_torch(threads)
    with StopRequest(limit) as stop:
        report = run_training(
            run,
            workspace=workspace,
            plan=plan,
            overrides=overrides or (),
            init_from=init_from,
            device=choose_device(device),
            workers=workers,
            validation=None
            if validate_cases is None
            else InContextValidation(cases_per_set=validate_cases),
            stop=stop,
        )
    out.result(report.to_json())
    outcome = report.outcome
    out.line(f"trained {outcome.steps} steps; model of step {report.exported_step}: {report.model}")
    if outcome.best_score is not None:
        out.line(f"best validation Dice {outcome.best_score:.3f} at step {outcome.best_step}")
    out.say(f"curves: {report.folder / 'progress.png'}")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None:
        raise UsageError(
            "not a duration", found=text, expected="a number with s, m or h, as 90s, 45m, 11.5h"
        )
    return float(match[1]) * _UNITS[match[2] or "s"]
