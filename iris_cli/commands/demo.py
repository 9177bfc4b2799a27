"""`iris demo`: references, task, predictions, table and pictures, in two minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from iris_cli.commands._options import Device, Json, Model, Quiet, Verbose
from iris_cli.commands._output import Output
from iris_cli.commands._running import progress_of
from iris_cli.execution.signals import StopRequest


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("demo")(demo)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder.")] = Path("demo"),
    data: Annotated[
        str | None, typer.Option(help="Download a public set in place of phantoms: hippocampus.")
    ] = None,
    model: Model = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Segment generated phantoms from three examples, offline, and show what came out.

    Example: iris demo
    """
    from iris_cli.workflows.demo import run_demo
    from iris_cli.workflows.devices import choose_device

    out = Output.choose(as_json, verbose, quiet)
    began = time.monotonic()
    with StopRequest() as stop:
        report = run_demo(
            output,
            data=data,
            model=model,
            device=choose_device(device),
            on_stage=out.say,
            on_download=_Download(out),
            progress=progress_of(out),
            stop=stop,
        )
    rows = report.evaluation.class_rows()
    out.result(
        {
            **report.evaluation.to_json(),
            "task": str(report.task),
            "pictures": [str(path) for path in report.pictures],
        }
    )
    title = f"Dice of {len(report.pictures)} cases, three references"
    out.table(title, tuple(rows[0]), [tuple(row.values()) for row in rows])
    out.say(f"{time.monotonic() - began:.0f} s; everything is in {output}/, pictures in pictures/")
    out.say("next, with your own data:")
    out.say("  iris encode-task REFS -o my.task.pt     REFS holds images/ and labels/")
    out.say("  iris predict -t my.task.pt -i IN -o OUT")
    out.say(f"  iris info {report.task}")


class _Download:
    """A line every ten per cent of a download."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._said = -1

    def __call__(self, done: int, total: int | None) -> None:
        tenth = 10 * done // total if total else done >> 24
        if tenth != self._said:
            self._said = tenth
            of = f" of {total / 1e6:.0f}" if total else ""
            self._out.say(f"  {done / 1e6:.0f}{of} MB")
