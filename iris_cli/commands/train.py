"""`iris train`: one model over many sets; the same line resumes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iris_cli.commands._options import Device, Json, Quiet, Verbose, Workspace
from iris_cli.commands._output import Output
from iris_cli.errors import UsageError
from iris_cli.execution.signals import StopRequest

if TYPE_CHECKING:
    from iris_cli.training.observers import Observer

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
        Path | None, typer.Option(help="Checkpoint, model folder or name to start a new run from.")
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
    devices: Annotated[
        str | None,
        typer.Option(help="One process for each of these: 0,1 or cuda:0,cuda:1 or cpu,cpu."),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train a model by a plan, or go on with a run that was stopped.

    Example: iris train my-run -w workspace --devices 0,1 --stop-after 11.5h
    """
    out = Output.choose(as_json, verbose, quiet)
    limit = None if stop_after is None else _seconds(stop_after)
    from iris_cli.execution.threads import limit_torch
    from iris_cli.training.distributed import Place
    from iris_cli.workflows.devices import choose_device, choose_devices, choose_rank_device
    from iris_cli.workflows.train import TrainOptions, train_on
    from iris_cli.workflows.train import train as run_training
    from iris_cli.workflows.validation import InContextValidation

    place = Place.of_this_process()
    if place is not None:
        _check_launch(devices, stop_after if place.restarts else None)
    options = TrainOptions(
        workspace,
        plan,
        tuple(overrides or ()),
        init_from,
        workers,
        None if validate_cases is None else InContextValidation(cases_per_set=validate_cases),
        partial(_view, out),
    )
    with StopRequest(limit) as stop:
        if devices is not None:
            several = choose_devices(devices)
            report = train_on(several, run, options, stop=stop, threads=threads)
        else:
            if threads is not None:
                limit_torch(threads)
            chosen = choose_rank_device(device, place.local) if place else choose_device(device)
            report = run_training(run, options, device=chosen, stop=stop)
    if place is not None and place.rank > 0:
        return  # rank 0 speaks for all
    out.result(report.to_json())
    outcome = report.outcome
    out.line(f"trained {outcome.steps} steps; model of step {report.exported_step}: {report.model}")
    if outcome.best_score is not None:
        out.line(f"best validation Dice {outcome.best_score:.3f} at step {outcome.best_step}")
    out.say(f"curves: {report.folder / 'progress.png'}")


def _view(out: Output, folder: Path) -> Sequence[Observer]:
    """Say what a step will take; then the panel looks on."""
    from iris_cli.commands._panel import training_view
    from iris_cli.workflows.manifest import predicted_memory

    memory = predicted_memory(folder)
    if memory is not None:
        out.say(f"memory of the largest step: {memory}")
    return training_view(out, folder)


def _check_launch(devices: str | None, stop_after: str | None) -> None:
    """Refuse what does not go together with torchrun."""
    if devices is not None:
        raise UsageError(
            "torchrun has started the ranks already",
            found=f"--devices {devices}",
            fix="leave out --devices, or torchrun",
        )
    if stop_after is not None:
        raise UsageError(
            "torchrun would start a run that stops by itself again and again",
            found=f"--stop-after {stop_after} with --max-restarts",
            fix="leave out one of them",
        )


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None:
        raise UsageError(
            "not a duration", found=text, expected="a number with s, m or h, as 90s, 45m, 11.5h"
        )
    return float(match[1]) * _UNITS[match[2] or "s"]
