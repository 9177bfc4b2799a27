"""`iris convert`: data sets into raw folders; one subcommand per form of the source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from iris_cli.commands._options import Json, Quiet, Verbose, Workspace
from iris_cli.commands._output import Output
from iris_cli.commands._references import LabelsFile

Target = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Raw folder to make; default <workspace>/raw/<name>."),
]
Link = Annotated[bool, typer.Option("--link/--copy", help="Link to the files, or copy them.")]

_SOURCES = {
    "info_json": "A set, or a folder of sets, of images/, labels/ and info.json.",
    "msd": "A task of the Medical Segmentation Decathlon: its .tar, or the extracted folder.",
}


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(
        name="convert", help="Make a raw data set out of what you have.", no_args_is_help=True
    )
    group.command("list")(list_converters)
    group.command("pairs")(pairs)
    for name, summary in _SOURCES.items():
        group.command(name, help=f"{summary}\n\nExample: iris convert {name} SOURCE -o raw/NAME")(
            _converter(name)
        )
    app.add_typer(group)


def list_converters(as_json: Json = False) -> None:
    """List the forms of data that can be converted.

    Example: iris convert list
    """
    from dataset_conversion.registry import CONVERTERS

    rows = [(c.name, c.summary) for c in CONVERTERS.values()]
    rows.append(("pairs", "a folder of images and a folder of label maps, or pairs side by side"))
    out = Output(as_json)
    out.result([{"name": name, "source": summary} for name, summary in rows])
    out.table("converters", ("name", "source"), rows)


def pairs(
    images: Annotated[Path, typer.Argument(help="Folder of images.")],
    labels: Annotated[
        Path | None, typer.Argument(help="Folder of label maps; none: they lie beside the images.")
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
    workspace: Workspace = Path(),
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make an nnU-Net raw folder out of images and label maps with equal names.

    Example: iris convert pairs images/ labels/ -c liver=1 -c spleen=2 -o raw/Dataset001_Abdomen
    """
    from iris_cli.dataset.building import TransferMode
    from iris_cli.dataset.classes import parse_modality
    from iris_cli.dataset.pairs import convert_pairs

    conversion = convert_pairs(
        images,
        labels,
        output or workspace / "raw" / images.resolve().parent.name,
        mode=TransferMode.LINK if link else TransferMode.COPY,
        names=classes or (),
        labels_file=labels_file,
        channel_names=channels or (),
        modality=parse_modality(modality),
        keep_values=keep_values,
    )
    out = Output.choose(as_json, verbose, quiet)
    _show(out, (conversion.folder,), conversion.notes)


def _converter(name: str) -> Callable[..., None]:
    def command(
        source: Annotated[Path, typer.Argument(help="The data as they were published.")],
        output: Target = None,
        link: Link = False,
        workspace: Workspace = Path(),
        as_json: Json = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
    ) -> None:
        from dataset_conversion.registry import convert
        from iris_cli.dataset.building import TransferMode

        mode = TransferMode.LINK if link else TransferMode.COPY
        target = output or workspace / "raw" / source.resolve().name.partition(".")[0]
        conversion = convert(name, source, target, mode=mode)
        _show(Output.choose(as_json, verbose, quiet), conversion.folders, conversion.notes)

    return command


def _show(out: Output, folders: tuple[Path, ...], notes: tuple[str, ...]) -> None:
    out.result({"folders": [str(folder) for folder in folders], "notes": list(notes)})
    for note in notes:
        out.say(f"note: {note}")
    for folder in folders:
        out.line(f"made {folder}")
    out.say("next: iris plan")
