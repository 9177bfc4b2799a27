"""`iris encode-task`: references, once, into a task file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iris_cli.commands._options import (
    AssumeSpacing,
    Device,
    Json,
    Model,
    Precision,
    Quiet,
    Verbose,
)
from iris_cli.commands._output import Output
from iris_cli.commands._references import (
    Cases,
    Classes,
    Images,
    LabelMaps,
    LabelsFile,
    comma_separated,
    reference_source,
)
from iris_cli.commands._running import progress_of
from iris_cli.errors import UsageError

if TYPE_CHECKING:
    from iris_cli.workflows.encode_task import EncodeReport


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("encode-task")(encode_task)


def encode_task(
    references: Annotated[
        Path | None,
        typer.Argument(help="images/ + labels/, imagesTr/ + labelsTr/, or pairs."),
    ] = None,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Names of label values.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Task file, NAME.task.pt.")] = Path(
        "default.task.pt"
    ),
    images: Images = None,
    labels: LabelMaps = None,
    labels_file: LabelsFile = None,
    cases: Cases = None,
    classes: Classes = None,
    modality: Annotated[
        str | None, typer.Option(help="ct or other; by default declared or guessed.")
    ] = None,
    spacing: Annotated[
        float | None, typer.Option(min=1e-6, help="Working spacing in mm; by default by the rule.")
    ] = None,
    assume_spacing: AssumeSpacing = None,
    channel: Annotated[int, typer.Option(min=0, help="Channel of the images.")] = 0,
    from_bank: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET/CLASS...",
            help="Classes that the model remembers from its training, instead of references.",
        ),
    ] = None,
    model: Model = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Encode a task from reference images with label maps, or from a model's memory bank.

    With --from-bank Set/liver Set/spleen -m runs/my-run/model no references are needed.

    Example: iris encode-task refs/ liver=1 spleen=2 -o abdomen.task.pt
    """
    out = Output.choose(as_json, verbose, quiet)
    if from_bank:
        needless = {
            "--image": images,
            "--label": labels,
            "--labels": labels_file,
            "--cases": cases,
            "--classes": classes,
            "--spacing": spacing,
            "--assume-spacing": assume_spacing,
        }
        _refuse_with_bank([name for name, value in needless.items() if value is not None])
        words = [] if references is None else [str(references)]
        _from_bank(out, [*from_bank, *words, *(names or [])], output, model, modality, channel)
        return
    from iris_cli.dataset.classes import parse_modality
    from iris_cli.workflows.devices import choose_device
    from iris_cli.workflows.encode_task import encode_task as encode

    folder, names = _folder_or_name(references, names or [])
    report = encode(
        reference_source(folder, images, labels, names, labels_file, cases),
        output,
        model=model,
        classes=comma_separated(classes) if classes else None,
        modality=parse_modality(modality),
        spacing_mm=spacing,
        channel=channel,
        assume_spacing=assume_spacing,
        device=choose_device(device),
        precision=precision,
        progress=progress_of(out),
    )
    _show(out, report)


def _from_bank(
    out: Output,
    names: list[str],
    output: Path,
    model: str | None,
    modality: str | None,
    channel: int,
) -> None:
    """A task of classes that the model remembers."""
    from iris_cli.dataset.classes import parse_modality
    from iris_cli.workflows.encode_task import encode_from_bank

    report = encode_from_bank(
        names, output, model=model, modality=parse_modality(modality), channel=channel
    )
    _show(out, report)


def _show(out: Output, report: EncodeReport) -> None:
    out.result(report.to_json())
    rows = report.class_rows()
    out.table(str(report.path), tuple(rows[0]), [tuple(row.values()) for row in rows])
    header = report.task.header
    out.line(f"modality {header.modality}; working spacing {header.spacing_reason}")
    for number, name in enumerate(report.references, start=1):
        out.explain(f"reference {number}: {name}")
    for warning in header.warnings:
        out.say(f"warning: {warning}")
    out.say(f"next: iris predict -t {report.path} -i IN -o OUT")


def _refuse_with_bank(given: list[str]) -> None:
    if given:
        raise UsageError(
            "a task from the memory bank has no references",
            found=", ".join(given),
            fix="leave these options out, or --from-bank",
        )


def _folder_or_name(folder: Path | None, names: list[str]) -> tuple[Path | None, list[str]]:
    """With --image and --label the first word may already be a name=value."""
    if folder is not None and "=" in folder.name and not folder.exists():
        return None, [str(folder), *names]
    return folder, names
