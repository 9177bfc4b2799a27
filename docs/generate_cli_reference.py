"""Write docs/cli-reference.md from the commands themselves; a test compares the two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from iris_cli.commands.app import app

_HEAD = """# Command reference

Made from the commands by `python docs/generate_cli_reference.py`. Every command also takes
`--debug`, which shows the traceback of an error.

Exit codes: 0 done, 1 defect in iris, 2 usage, 3 some cases failed (the rest are done), 4 the data
are refused, 5 environment (disk, memory, permission, missing device), 6 training diverged,
75 stopped by a signal with everything saved (run the same line again), 130 interrupted.
"""


def commands(
    group: Any = None, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its words, in the order of registration."""
    group = typer.main.get_command(app) if group is None else group
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def command_names() -> list[tuple[str, ...]]:
    """The words of every command."""
    return [path for path, _ in commands()]


def reference() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(_section(path, command) for path, command in commands())])


def _section(path: tuple[str, ...], command: Any) -> str:
    lines = [f"## iris {' '.join(path)}", ""]
    for paragraph in (command.help or "").strip().split("\n\n"):
        text = " ".join(line.strip() for line in paragraph.splitlines())
        example = text.removeprefix("Example: ")
        lines += [f"Example: `{example}`" if example != text else text, ""]
    rows = [_row(parameter) for parameter in command.params]
    lines += ["| | default | |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        words = (*parameter.opts, *parameter.secondary_opts)
        name = ", ".join(f"`{word}`" for word in words)
    if parameter.required:
        default = "required"
    elif parameter.default is False or parameter.default in (None, (), [], ""):
        default = ""  # compared with `is`: 0 equals False, and is a default to show
    else:
        default = f"`{parameter.default}`"
    return f"| {name} | {default} | {getattr(parameter, 'help', '') or ''} |"


if __name__ == "__main__":
    Path(__file__).with_name("cli-reference.md").write_text(reference(), encoding="utf-8")
