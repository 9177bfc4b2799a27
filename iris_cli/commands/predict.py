"""`iris predict`: label maps for a folder, a file or a list of volumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iris_cli.commands._options import (
    AssumeSpacing,
    CaseTimeout,
    Device,
    Json,
    MaxRam,
    MaxVram,
    Model,
    Precision,
    Quiet,
    Verbose,
    Workers,
    parse_bytes,
)
from iris_cli.commands._output import Output
from iris_cli.commands._references import (
    Cases,
    Classes,
    LabelsFile,
    comma_separated,
    reference_source,
)
from iris_cli.commands._running import leave_with, progress_of, show_failures
from iris_cli.errors import UsageError
from iris_cli.execution.signals import StopRequest

if TYPE_CHECKING:
    from iris_cli.workflows.predict import PredictEstimate, PredictReport


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("predict")(predict)


def predict(
    inputs: Annotated[
        list[Path], typer.Option("--input", "-i", help="Folder, volume, or text file of paths.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the label maps.")],
    task: Annotated[Path | None, typer.Option("--task", "-t", help="Task file.")] = None,
    references: Annotated[
        Path | None, typer.Option("--refs", help="References in place of a task.")
    ] = None,
    labels_file: LabelsFile = None,
    cases: Cases = None,
    classes: Classes = None,
    assume_spacing: AssumeSpacing = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what, how long and how much memory; do nothing.")
    ] = False,
    model: Model = None,
    device: Device = "auto",
    precision: Precision = "auto",
    skip_empty: Annotated[
        bool,
        typer.Option(
            "--skip-empty/--no-skip-empty",
            help="Leave out windows without anything bright in or around them.",
        ),
    ] = False,
    max_ram: MaxRam = None,
    max_vram: MaxVram = None,
    workers: Workers = 0,
    case_timeout: CaseTimeout = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Segment volumes by a task; a rerun computes only what is missing.

    Example: iris predict -t liver.task.pt -i scans/ -o segmentations/ -j 2
    """
    from iris_cli.inference.memory import Limits
    from iris_cli.workflows import predict as workflow
    from iris_cli.workflows.devices import choose_device

    out = Output.choose(as_json, verbose, quiet)
    if task is not None and references is None:
        _refuse_options_of_references(labels_file, cases)
    settings = workflow.PredictSettings(
        model=model,
        classes=tuple(comma_separated(classes)) if classes else None,
        device=choose_device(device),
        precision=precision,
        skip_empty=skip_empty,
        limits=Limits(
            *(None if size is None else parse_bytes(size) for size in (max_ram, max_vram))
        ),
        workers=workers,
        case_timeout_s=case_timeout,
        assume_spacing=assume_spacing,
    )
    source = reference_source(references, (), (), (), labels_file, cases) if references else None
    if dry_run:
        _show_estimate(
            out,
            workflow.dry_run(inputs, output, task=task, references=source, settings=settings),
        )
        return
    with StopRequest() as stop:
        report = workflow.predict(
            inputs,
            output,
            task=task,
            references=source,
            settings=settings,
            progress=progress_of(out),
            stop=stop,
        )
    _show_report(out, report)
    leave_with(report.exit_code)


def _refuse_options_of_references(labels_file: Path | None, cases: str | None) -> None:
    given = {"--labels": labels_file, "--cases": cases}
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise UsageError(
            "a task has its classes and references already",
            found=" and ".join(names),
            expected="these options with --refs only",
            fix="leave them out, or give --refs REFS in place of the task",
        )


def _show_report(out: Output, report: PredictReport) -> None:
    out.result(report.to_json())
    rows = report.case_rows()
    if rows:
        out.table(str(report.output), tuple(rows[0]), [tuple(row.values()) for row in rows])
    for note in report.notes:
        out.say(f"note: {note}")
    for case, flags in report.flags().items():
        for flag in flags:
            out.say(f"flag: {case}: {flag}")
    show_failures(out, report.run)


def _show_estimate(out: Output, estimate: PredictEstimate) -> None:
    out.result(estimate.to_json())
    rows = [
        (case.case, case.windows, round(case.seconds, 1), round(case.memory_mb), case.problem or "")
        for case in estimate.cases
    ]
    for note in estimate.notes:
        out.say(f"note: {note}")
    out.table("dry run", ("case", "windows", "seconds", "memory MB", "problem"), rows)
    out.line(
        f"{len(rows)} cases, {len(estimate.classes)} classes at "
        f"{estimate.task.header.spacing_mm:.4g} mm: about {estimate.seconds:.0f} s and "
        f"{estimate.memory_mb:.0f} MB"
    )
