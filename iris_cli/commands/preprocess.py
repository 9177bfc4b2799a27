"""`iris preprocess`: the cases of a plan, normalised and resampled, as blosc2 chunks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from iris_cli.commands._options import (
    CaseTimeout,
    Dask,
    Json,
    NumParts,
    OnlyFailed,
    PartId,
    Quiet,
    Strict,
    Verbose,
    Workers,
    Workspace,
    parse_bytes,
    refuse_beside_dask,
)
from iris_cli.commands._output import Output
from iris_cli.commands._running import leave_with, progress_of, show_failures
from iris_cli.execution.parts import choose_part
from iris_cli.execution.signals import StopRequest


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("preprocess")(preprocess)


def preprocess(
    sets: Annotated[
        list[str] | None, typer.Argument(help="Sets of the plan; none means all.")
    ] = None,
    workspace: Workspace = Path(),
    plan: Annotated[
        Path | None, typer.Option("--plan", "-p", help="Plan; by default plans/default.json.")
    ] = None,
    workers: Workers = 0,
    dask: Dask = None,
    max_ram: Annotated[
        str | None,
        typer.Option(
            "--max-ram",
            help="Memory for all processes together, as 8G; by default what the machine has. As "
            "many workers work as fit.",
        ),
    ] = None,
    num_parts: NumParts = None,
    part_id: PartId = None,
    only_failed: OnlyFailed = False,
    strict: Strict = False,
    case_timeout: CaseTimeout = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Preprocess the training and validation cases of a plan; a rerun does what is missing.

    Example: iris preprocess -w workspace -j 2 --max-ram 8G
    """
    from iris_cli.workflows.preprocess import preprocess as run_preprocess

    out = Output.choose(as_json, verbose, quiet)
    beside = {"-j": workers > 0, "--max-ram": bool(max_ram), "--case-timeout": bool(case_timeout)}
    refuse_beside_dask(dask, beside)
    with StopRequest() as stop:
        report = run_preprocess(
            plan or workspace / "plans" / "default.json",
            workspace=workspace,
            sets=sets or (),
            workers=workers,
            max_ram=None if max_ram is None else parse_bytes(max_ram),
            case_timeout_s=case_timeout,
            part=choose_part(num_parts, part_id, os.environ),
            only_failed=only_failed,
            strict=strict,
            dask=dask,
            progress=progress_of(out),
            stop=stop,
        )
    out.result(report.to_json())
    for note in report.notes():
        out.say(f"note: {note}")
    rows = [{k: v for k, v in row.items() if k != "folder"} for row in report.set_rows()]
    if rows:
        out.table("preprocessed", tuple(rows[0]), [tuple(row.values()) for row in rows])
    for name, folder in report.folders.items():
        out.explain(f"{name}: {folder}")
    show_failures(out, report.run)
    leave_with(report.exit_code)
