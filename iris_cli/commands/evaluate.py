"""`iris evaluate`: predictions against label maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iris_cli.commands._options import AssumeSpacing, Json, Quiet, Verbose, Workers
from iris_cli.commands._output import Output
from iris_cli.commands._references import Classes, LabelsFile, comma_separated
from iris_cli.commands._running import leave_with, progress_of


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("evaluate")(evaluate)


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted label maps.")],
    truth: Annotated[Path, typer.Argument(help="Folder of true label maps.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Names of label values.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: PREDICTIONS/summary.json.")
    ] = None,
    labels_file: LabelsFile = None,
    classes: Classes = None,
    cases: Annotated[
        str | None, typer.Option("--cases", help="Names of cases to score, comma-separated.")
    ] = None,
    assume_spacing: AssumeSpacing = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    workers: Workers = 0,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Score label maps: Dice per class and case, summary.json with nnU-Net's keys, and a CSV.

    Example: iris evaluate segmentations/ labels/
    """
    from iris_cli.workflows.evaluate import evaluate as run_evaluation

    out = Output.choose(as_json, verbose, quiet)
    report = run_evaluation(
        predictions,
        truth,
        output=output,
        labels_file=labels_file,
        names=names or (),
        classes=comma_separated(classes) if classes else None,
        cases=comma_separated(cases) if cases else None,
        assume_spacing=assume_spacing,
        seed=seed,
        workers=workers,
        progress=progress_of(out),
    )
    out.result(report.to_json())
    rows = report.class_rows()
    out.table("Dice on native grids", tuple(rows[0]), [tuple(row.values()) for row in rows])
    for note in report.notes:
        out.say(f"note: {note}")
    for case, reason in (report.summary.failed or {}).items():
        out.say(f"failed: {case}: {reason}")
    for case in report.summary.missing:
        out.say(f"failed: {case}: there is no prediction")
    out.say(f"wrote {report.path}")
    leave_with(report.exit_code)
