"""`iris predict`: label maps for a folder, a file or a list of volumes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iris_cli.commands._options import (
    AssumeSpacing,
    CaseTimeout,
    Dask,
    Device,
    Json,
    MaxRam,
    MaxVram,
    Model,
    NumParts,
    OnlyFailed,
    PartId,
    Precision,
    Quiet,
    Strict,
    Verbose,
    Workers,
    parse_bytes,
    refuse_beside_dask,
)
from iris_cli.commands._output import Output
from iris_cli.commands._outputs import (
    CheckTokens,
    Format,
    KeepLargest,
    MinVolume,
    Multilabel,
    Previews,
    Probabilities,
    outputs_of,
)
from iris_cli.commands._references import (
    Cases,
    Classes,
    LabelsFile,
    comma_separated,
    reference_source,
)
from iris_cli.commands._running import leave_with, progress_of, show_failures
from iris_cli.errors import IrisError, UsageError
from iris_cli.execution.parts import WHOLE, choose_part
from iris_cli.execution.signals import StopRequest

if TYPE_CHECKING:
    from iris_cli.workflows.encode_task import ReferenceSource
    from iris_cli.workflows.predict import PredictEstimate, PredictReport, PredictSettings


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("predict")(predict)


def predict(
    inputs: Annotated[
        list[Path],
        typer.Option(
            "--input", "-i", help="Folder, volume, text file of paths, or - for paths on stdin."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the label maps.")],
    tasks: Annotated[
        list[Path] | None,
        typer.Option("--task", "-t", help="Task file; several share one pass over each query."),
    ] = None,
    references: Annotated[
        Path | None, typer.Option("--refs", help="References in place of a task.")
    ] = None,
    labels_file: LabelsFile = None,
    cases: Cases = None,
    classes: Classes = None,
    joint: Annotated[
        bool, typer.Option("--joint", help="Decode the classes of all tasks together.")
    ] = False,
    renumber: Annotated[
        bool, typer.Option("--renumber", help="Label values 1, 2, ... in the order of the tasks.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Wait for volumes that arrive in the folder -i.")
    ] = False,
    watch_seconds: Annotated[
        float,
        typer.Option(min=0.01, help="With --watch, how long a file has to keep still."),
    ] = 5.0,
    assume_spacing: AssumeSpacing = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what, how long and how much memory; do nothing.")
    ] = False,
    model: Model = None,
    device: Device = "auto",
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            help="Devices of workers, as cuda:0,cuda:1: one worker each, or -j in turn.",
        ),
    ] = None,
    precision: Precision = "auto",
    skip_empty: Annotated[
        bool,
        typer.Option(
            "--skip-empty/--no-skip-empty",
            help="Leave out windows without anything bright in or around them.",
        ),
    ] = False,
    file_format: Format = "nii.gz",
    probabilities: Probabilities = None,
    multilabel: Multilabel = False,
    previews: Previews = False,
    check_tokens: CheckTokens = False,
    keep_largest: KeepLargest = None,
    min_volume: MinVolume = None,
    max_ram: MaxRam = None,
    max_vram: MaxVram = None,
    workers: Workers = 0,
    dask: Dask = None,
    num_parts: NumParts = None,
    part_id: PartId = None,
    only_failed: OnlyFailed = False,
    strict: Strict = False,
    case_timeout: CaseTimeout = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Segment volumes by a task; a rerun computes only what is missing.

    Example: iris predict -t liver.task.pt -i scans/ -o segmentations/ -j 2
    """
    from iris_cli.inference.memory import Limits
    from iris_cli.task.combining import Grouping
    from iris_cli.workflows import predict as workflow
    from iris_cli.workflows.devices import choose_device, choose_devices

    out = Output.choose(as_json, verbose, quiet)
    if tasks and references is None:
        _refuse_options_of_references(labels_file, cases)
    refuse_beside_dask(
        dask,
        {
            "-j": workers > 0,
            "--devices": devices is not None,
            "--case-timeout": case_timeout is not None,
        },
    )
    several = choose_devices(devices) if devices is not None else ()
    if several and device != "auto":
        raise UsageError("--device and --devices say the same", fix="leave one of them out")
    settings = workflow.PredictSettings(
        model=model,
        grouping=Grouping.JOINT if joint else Grouping.APART,
        renumber=renumber,
        classes=tuple(comma_separated(classes)) if classes else None,
        device=several[0] if several else choose_device(device),
        devices=several,
        precision=precision,
        skip_empty=skip_empty,
        limits=Limits(
            *(None if size is None else parse_bytes(size) for size in (max_ram, max_vram))
        ),
        workers=workers or len(several),
        dask=dask,
        case_timeout_s=case_timeout,
        assume_spacing=assume_spacing,
        outputs=outputs_of(
            file_format,
            probabilities,
            keep_largest,
            min_volume,
            previews=previews,
            multilabel=multilabel,
            check_tokens=check_tokens,
        ),
        # What arrives in a watched folder is one case or two at a time: no share of it is even.
        part=WHOLE if watch else choose_part(num_parts, part_id, os.environ),
        only_failed=only_failed,
        strict=strict,
    )
    source = reference_source(references, (), (), (), labels_file, cases) if references else None
    if watch:
        asked = {
            "--dry-run": dry_run,
            "--num-parts": num_parts is not None,
            "--part-id": part_id is not None,
            "--only-failed": only_failed,
            "--strict": strict,
        }
        _refuse_with_watch(inputs, [option for option, given in asked.items() if given])
        _watch(out, inputs[0], output, tasks or [], source, settings, watch_seconds)
        return
    inputs = volumes_on_stdin(inputs, sys.stdin)
    if dry_run:
        _show_estimate(
            out,
            workflow.dry_run(inputs, output, task=tasks, references=source, settings=settings),
        )
        return
    with StopRequest() as stop:
        report = workflow.predict(
            inputs,
            output,
            task=tasks,
            references=source,
            settings=settings,
            progress=progress_of(out),
            stop=stop,
        )
    _show_report(out, report)
    leave_with(report.exit_code)


def volumes_on_stdin(inputs: list[Path], stream: Iterable[str]) -> list[Path]:
    """The inputs with the paths of a stream, one a line, in the place of `-`."""
    if Path("-") not in inputs:
        return inputs
    lines = [line.strip() for line in stream]
    listed = [Path(line) for line in lines if line and not line.startswith("#")]
    if not listed:
        raise UsageError("no path came on stdin", fix="ls scans/*.nii.gz | iris predict -i - ...")
    at = inputs.index(Path("-"))
    return [*inputs[:at], *listed, *(path for path in inputs[at + 1 :] if path != Path("-"))]


def _watch(
    out: Output,
    folder: Path,
    output: Path,
    tasks: list[Path],
    source: ReferenceSource | None,
    settings: PredictSettings,
    seconds: float,
) -> None:
    from iris_cli.workflows.watch import Watched, watch

    def refused(path: Path, error: IrisError) -> None:
        out.say(f"refused: {path}: {error.problem}")

    watched = Watched(folder, seconds, lambda report: _show_report(out, report), refused)
    out.say(f"watching {folder}; a signal or Ctrl-C ends it")
    with StopRequest() as stop:
        watch(
            watched,
            output,
            tasks=tasks,
            references=source,
            settings=settings,
            progress=progress_of(out),
            stop=stop,
        )


def _refuse_with_watch(inputs: list[Path], given: list[str]) -> None:
    if len(inputs) != 1 or given:
        raise UsageError(
            "--watch waits for the volumes of one folder, and takes all of them",
            found=" and ".join(given) or f"{len(inputs)} inputs",
            fix=f"leave out {' and '.join(given)}" if given else "give one folder with -i",
        )


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
    if report.parts:
        values = [(entry.name, entry.value) for entry in report.classes]
        out.table("label values", ("class", "value"), values)
    for note in (*report.notes, *report.share.notes()):
        out.say(f"note: {note}")
    for line in report.flag_summary():
        out.say(f"flag: {line}")
    for line in report.quality_summary():
        out.say(f"quality: {line}")
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
