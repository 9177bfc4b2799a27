"""`iris model`: the models that have a name, where they come from, and which one is the default."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iris_cli.commands._options import Json, Quiet, Verbose
from iris_cli.commands._output import Output
from iris_cli.errors import UsageError

if TYPE_CHECKING:
    from iris_cli.model.released import Copy
    from iris_cli.workflows.models import ImportReport

Registry = Annotated[
    Path | None,
    typer.Option(help="Folder of the registered models; by default in your data folder."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(name="model", help="Import, list and choose models.", no_args_is_help=True)
    group.command("list")(list_models)
    group.command("info")(info)
    group.command("use")(use)
    group.command("import")(import_model)
    group.command("export")(export)
    group.command("download")(download)
    app.add_typer(group)


def list_models(
    registry: Registry = None, as_json: Json = False, verbose: Verbose = False, quiet: Quiet = False
) -> None:
    """List the models that ship and those you registered; * marks the default.

    Example: iris model list
    """
    from iris_cli.workflows.models import list_models as listed

    out = Output.choose(as_json, verbose, quiet)
    models = listed(registry)
    out.result([model.to_json() for model in models])
    rows = [
        (
            f"{model.name} *" if model.is_default else model.name,
            "ships" if model.ships else "registered",
            model.card.profile if model.card else "-",
            f"{model.card.s0:g} mm, {model.card.patch} voxels" if model.card else "-",
            model.card.licence if model.card else f"cannot be used: {model.problem}",
        )
        for model in models
    ]
    out.table("models", ("name", "from", "profile", "spacing and window", "licence"), rows)
    for model in models:
        out.explain(f"{model.name}: {model.folder}")


def info(
    name: Annotated[str, typer.Argument(help="Name, folder or file of a model.")],
    registry: Registry = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Check a model as a whole and show its card.

    Example: iris model info iris-small-3
    """
    from iris_cli.commands.info import info as describe
    from iris_cli.model.registry import find_model

    describe(find_model(name, registry), None, as_json, verbose, quiet)


def use(
    name: Annotated[str, typer.Argument(help="Name of a shipped or registered model.")],
    registry: Registry = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a model the default, which is used where no --model is given.

    Example: iris model use mass-base
    """
    from iris_cli.model.registry import choose_default

    out = Output.choose(as_json, False, quiet)
    folder = choose_default(name, registry)
    out.result({"default": name, "folder": str(folder)})
    out.line(f"the default is now {name}: {folder}")


def import_model(
    source: Annotated[
        Path, typer.Argument(help="mass_base.pth, a model folder, or a .safetensors file.")
    ],
    name: Annotated[str, typer.Option("--name", "-n", help="Name to register it under.")],
    weights: Annotated[
        str | None,
        typer.Option(help="Of released weights: ema (averaged; taken if there) or model."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of released weights, for the card.")
    ] = None,
    registry: Registry = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Register released weights, or a model of your own, under a name.

    Every tensor must be there in the right shape, and no other; nothing is guessed.

    Example: iris model import mass_base.pth --name mass-base
    """
    from iris_cli.workflows.models import import_model as run_import

    out = Output.choose(as_json, False, quiet)
    copy = _copy(weights)
    _show(out, run_import(source, name, weights=copy, licence=licence, registry=registry))


def export(
    name: Annotated[str, typer.Argument(help="Name, folder or file of a model.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help=".pth (as the published code reads), .safetensors, or a folder."
        ),
    ],
    registry: Registry = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model to a file or folder, to copy or to share it.

    Example: iris model export mass-base -o weights.pth
    """
    from iris_cli.workflows.models import export_model

    out = Output.choose(as_json, False, quiet)
    path = export_model(name, output, registry=registry)
    out.result({"model": name, "output": str(path)})
    out.line(f"written: {path}")


def download(
    name: Annotated[str, typer.Argument(help="mass-base.")],
    registry: Registry = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch published weights from the Hugging Face hub and register them.

    Example: iris model download mass-base
    """
    from iris_cli.workflows.models import download_model

    out = Output.choose(as_json, False, quiet)
    _show(out, download_model(name, registry=registry))


def _show(out: Output, report: ImportReport) -> None:
    out.result(report.to_json())
    card = report.card
    done = "is registered already" if report.known else "is registered"
    out.line(f"{card.name} {done}: {report.folder}")
    out.line(f"{report.parameters:,} parameters, profile {card.profile}, licence: {card.licence}")
    if card.source is not None:
        out.line(f"{card.source.weights} weights of {card.source.file}, {card.source.sha256[:12]}")
    if card.notes:
        out.say(f"note: {card.notes}")
    out.say(f"next: iris model use {card.name}, or --model {card.name}")


def _copy(weights: str | None) -> Copy | None:
    from iris_cli.model.released import Copy

    if weights is None or weights in set(Copy):
        return None if weights is None else Copy(weights)
    raise UsageError("no such copy of weights", found=weights, expected="ema or model")
