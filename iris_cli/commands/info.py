"""`iris info`: what a file or folder is and holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from iris_cli.commands._options import AssumeSpacing, Json, Quiet, Verbose
from iris_cli.commands._output import Detail, Output


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("info")(info)


def info(
    path: Annotated[
        Path, typer.Argument(help="Volume, task, model, checkpoint, plan, receipt, set or run.")
    ],
    assume_spacing: AssumeSpacing = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Describe a file or folder that iris reads or writes.

    Example: iris info liver.task.pt
    """
    from iris_cli.workflows.info import describe

    output = Output.choose(as_json, verbose, quiet)
    found = describe(path, assume_spacing=assume_spacing)
    output.result(
        {
            "kind": found.kind,
            "path": str(found.path),
            "facts": dict(found.facts),
            "tables": {title: list(rows) for title, rows in found.tables.items()},
        }
    )
    everything = output.detail is Detail.VERBOSE
    rows = [
        (name, _text(value))
        for name, value in found.facts.items()
        if everything or value not in (None, [])
    ]
    output.table(f"{found.kind}: {found.path}", ("what", "value"), rows)
    for title, lines in found.tables.items():
        if not lines:
            output.line(f"{title}: none")
            continue
        output.table(title, tuple(lines[0]), [[_text(v) for v in line.values()] for line in lines])


def _text(value: Any) -> str | float:
    """Numbers and words as they are, everything else as JSON."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    return json.dumps(value, ensure_ascii=False)
