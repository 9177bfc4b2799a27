"""`iris info`: what a file or folder is and holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from iris_cli.commands._options import Json
from iris_cli.commands._output import Output


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("info")(info)


def info(
    path: Annotated[Path, typer.Argument(help="Volume, task, model, plan, receipt, set or run.")],
    as_json: Json = False,
) -> None:
    """Describe a file or folder that iris reads or writes.

    Example: iris info liver.task.pt
    """
    from iris_cli.workflows.info import describe

    found = describe(path)
    output = Output(as_json)
    output.result(
        {
            "kind": found.kind,
            "path": str(found.path),
            "facts": dict(found.facts),
            "tables": {title: list(rows) for title, rows in found.tables.items()},
        }
    )
    rows = [(name, _text(value)) for name, value in found.facts.items() if value not in (None, [])]
    output.table(f"{found.kind}: {found.path}", ("what", "value"), rows)
    for title, lines in found.tables.items():
        output.table(title, tuple(lines[0]), [[_text(v) for v in line.values()] for line in lines])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
