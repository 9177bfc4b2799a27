"""`iris plan`: integrity, fingerprint, splits, plan, with every reason printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iris_cli.commands._options import Json, Quiet, Verbose, Workers, Workspace
from iris_cli.commands._output import Output
from iris_cli.commands._running import progress_of
from iris_cli.execution.signals import StopRequest


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("plan")(plan)


def plan(
    sets: Annotated[
        list[str] | None, typer.Argument(help="Raw sets by name or folder; none means all.")
    ] = None,
    workspace: Workspace = Path(),
    name: Annotated[str, typer.Option(help="Name of the plan.")] = "default",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it here.")] = None,
    preset: Annotated[
        str, typer.Option(help="Network size: tiny (tests), small (laptop), base (paper).")
    ] = "small",
    hold_out: Annotated[
        list[str] | None, typer.Option(help="A set never to train on; may be repeated.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, as training.steps=1000.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split by subject.")] = 0,
    workers: Workers = 0,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Check raw data sets and write the plan of a training run.

    Example: iris plan Dataset004_Hippocampus Dataset009_Spleen --preset small
    """
    from iris_cli.workflows.plan import plan as make_plan

    out = Output.choose(as_json, verbose, quiet)
    with StopRequest() as stop:
        report = make_plan(
            sets or (),
            workspace=workspace,
            output=output,
            name=name,
            preset_name=preset,
            held_out_sets=hold_out or (),
            overrides=overrides or (),
            seed=seed,
            workers=workers,
            progress=progress_of(out),
            stop=stop,
        )
    rows = report.set_rows()
    out.result(report.to_json())
    out.table("sets", tuple(rows[0]), [tuple(row.values()) for row in rows])
    reasons = report.plan.reasons.items()
    out.table("reasons", ("key", "why"), [(k, v) for k, v in reasons if not k.startswith("sets.")])
    for integrity in report.integrity:
        for finding in integrity.findings:
            where = finding.case or integrity.set
            out.line(f"{finding.severity.value}: {where}: {finding.message}")
    out.say(f"wrote {report.path}; next: iris preprocess -w {workspace}")
