"""`iris convert`: data sets into raw folders, by the name of a public set or of a form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from iris_cli.commands._options import Json, Quiet, Verbose, Workers, Workspace
from iris_cli.commands._output import Output
from iris_cli.commands._references import LabelsFile
from iris_cli.commands._running import leave_with, progress_of, show_failures

if TYPE_CHECKING:
    from dataset_conversion.runner import ConversionReport, PlannedConversion

Target = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Raw folder to make; default: below <workspace>/raw."),
]
Link = Annotated[bool, typer.Option("--link/--copy", help="Link to the files, or copy them.")]

BY_NAME = "NAME"


class _ByName(TyperGroup):
    """Any other word than a command's is the name of a converter.

    The names stand in the registry of `dataset_conversion`, which is imported only when one is
    used, so that a new data set is one line there and none here.
    """

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        return found or super().get_command(ctx, BY_NAME)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(
        name="convert",
        help="Make a raw data set out of what you have.",
        no_args_is_help=True,
        cls=_ByName,
    )
    group.command("list")(list_converters)
    group.command("pairs")(pairs)
    group.command(BY_NAME)(by_name)
    app.add_typer(group)


def list_converters(as_json: Json = False) -> None:
    """List what can be converted: public data sets by name, and forms of data.

    Example: iris convert list
    """
    from iris_cli.workflows.convert import list_converters as listed

    rows = listed()
    out = Output(as_json)
    out.result(rows)
    for row in rows:
        out.line(f"{row['name']:<20} {row['title']}")
        for line in _about(row):
            out.line(f"{'':<20} {line}")
    out.say("layouts, sources, subject rules, known defects: iris convert list --json")


def by_name(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="The data as they were published, extracted.")],
    output: Target = None,
    link: Link = False,
    split: Annotated[
        str | None,
        typer.Option(
            help="author, subject-5fold, or a .json file of lists; default: as published."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made.")] = False,
    workers: Workers = 0,
    workspace: Workspace = Path(),
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert a public data set, or a form, by its NAME in `iris convert list`.

    A killed run goes on when the same line is run again; a bad case is named at the end.

    Example: iris convert NAME SOURCE -o raw/NAME -j 4
    """
    from iris_cli.execution.signals import StopRequest
    from iris_cli.workflows.convert import convert, plan_conversion

    name, out = str(context.info_name), Output.choose(as_json, verbose, quiet)
    if dry_run:
        _show_plan(out, plan_conversion(name, source, split=split))
        return
    with StopRequest() as stop:
        report = convert(
            name,
            source,
            output,
            workspace=workspace,
            link=link,
            split=split,
            workers=workers,
            progress=progress_of(out),
            stop=stop,
        )
    _show_report(out, report)


def pairs(
    images: Annotated[Path, typer.Argument(help="Folder of images.")],
    labels: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of label maps, or of masks (CASE/CLASS or CASE_CLASS); none: they lie "
            "beside the images."
        ),
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", "-c", help="name=value; may be repeated.")
    ] = None,
    labels_file: LabelsFile = None,
    channels: Annotated[
        list[str] | None, typer.Option("--channel", help="Channel name; may be repeated.")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="ct or other (MR, PET, microscopy).")] = None,
    keep_values: Annotated[
        bool,
        typer.Option(help="Keep values other than 1, 2, 3, ... (nnU-Net refuses them)."),
    ] = False,
    output: Target = None,
    link: Link = False,
    workers: Workers = 0,
    workspace: Workspace = Path(),
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make an nnU-Net raw folder out of images and label maps with equal names.

    Example: iris convert pairs images/ labels/ -c liver=1 -c spleen=2 -o raw/Dataset001_Abdomen
    """
    from dataset_conversion.pairs import PairsOptions, convert_pairs
    from iris_cli.dataset.building import TransferMode
    from iris_cli.dataset.classes import parse_modality
    from iris_cli.execution.signals import StopRequest

    out = Output.choose(as_json, verbose, quiet)
    options = PairsOptions(
        names=classes or (),
        labels_file=labels_file,
        channel_names=channels or (),
        modality=parse_modality(modality),
        keep_values=keep_values,
    )
    with StopRequest() as stop:
        report = convert_pairs(
            images,
            labels,
            output or workspace / "raw" / images.resolve().parent.name,
            options,
            mode=TransferMode.LINK if link else TransferMode.COPY,
            workers=workers,
            progress=progress_of(out),
            stop=stop,
        )
    _show_report(out, report)


def _about(row: dict[str, Any]) -> list[str]:
    """What is known of a public set, in lines; nothing for a form."""
    if "licence" not in row:
        return []
    classes = ", ".join(row["labels"]) or "as the source names them"
    return [
        f"{', '.join(row['modality'])}; classes: {classes}",
        f"in the paper: {row['paper']}; layout compared with: {row['verified']}",
        f"licence: {row['licence']}",
        row["page"],
    ]


def _show_plan(out: Output, planned: PlannedConversion) -> None:
    rows, notes = planned.rows(), [str(deviation) for deviation in planned.deviations]
    out.result({"set": planned.facts.name, "cases": rows, "notes": notes})
    columns = tuple(rows[0])
    out.table(planned.facts.title, columns, [tuple(row.values()) for row in rows])
    for note in notes:
        out.say(f"note: {note}")
    out.say(f"{len(rows)} cases would be made; nothing was written")


def _show_report(out: Output, report: ConversionReport) -> None:
    notes = [str(deviation) for deviation in report.deviations]
    failed = {outcome.name: outcome.error for outcome in report.run.failed}
    out.result(
        {
            "folders": [str(folder) for folder in report.folders],
            "notes": notes,
            **({"failed": failed} if failed else {}),
        }
    )
    for note in notes:
        out.say(f"note: {note}")
    for folder in report.folders:
        out.line(f"made {folder}")
    if report.folders:
        out.say("next: iris plan")
    show_failures(out, report.run)
    if failed:
        out.say("what is done is kept: run the same line again when the files are corrected")
    leave_with(report.exit_code)
