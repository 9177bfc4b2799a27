"""`iris task`: task files from task files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iris_cli.commands._options import Json, Quiet, Verbose
from iris_cli.commands._output import Output
from iris_cli.errors import UsageError

if TYPE_CHECKING:
    from iris_cli.workflows.edit_task import WrittenTask

TaskFile = Annotated[Path, typer.Argument(help="Task file.")]
OutputFile = Annotated[Path, typer.Option("--output", "-o", help="Task file, NAME.task.pt.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(name="task", help="Merge, split and rename tasks.", no_args_is_help=True)
    group.command("merge")(merge)
    group.command("split")(split)
    group.command("rename")(rename)
    app.add_typer(group)


def merge(
    tasks: Annotated[list[Path], typer.Argument(help="Task files.")],
    output: OutputFile,
    joint: Annotated[
        bool, typer.Option("--joint", help="Decode the classes of all tasks together.")
    ] = False,
    renumber: Annotated[
        bool, typer.Option("--renumber", help="Label values 1, 2, ... in the order of the tasks.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write several tasks as one.

    Example: iris task merge liver.task.pt spleen.task.pt -o abdomen.task.pt
    """
    from iris_cli.task.combining import Grouping
    from iris_cli.workflows.edit_task import merge_tasks

    grouping = Grouping.JOINT if joint else Grouping.APART
    written = merge_tasks(tasks, output, grouping=grouping, renumber=renumber)
    _show(Output.choose(as_json, verbose, quiet), [written])


def split(
    task: TaskFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the task files.")],
    every_class: Annotated[
        bool, typer.Option("--every-class", help="Every class alone, not every group.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write the groups of a task as tasks of their own.

    Example: iris task split abdomen.task.pt -o parts/
    """
    from iris_cli.workflows.edit_task import split_task

    written = split_task(task, output, every_class=every_class)
    _show(Output.choose(as_json, verbose, quiet), written)


def rename(
    task: TaskFile,
    changes: Annotated[
        list[str],
        typer.Argument(metavar="OLD=NEW...", help="New name of a class, or its new label value."),
    ],
    output: OutputFile,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a task with other class names or label values; a number is a label value.

    Example: iris task rename abdomen.task.pt liver=Liver spleen=7 -o renamed.task.pt
    """
    from iris_cli.workflows.edit_task import rename_classes

    names, values = _changes(changes)
    _show(Output.choose(as_json, verbose, quiet), [rename_classes(task, output, names, values)])


def _changes(words: Sequence[str]) -> tuple[dict[str, str], dict[str, int]]:
    """New names and new label values, by old name."""
    names: dict[str, str] = {}
    values: dict[str, int] = {}
    for word in words:
        old, sign, new = word.partition("=")
        if not (old and sign and new):
            raise UsageError(f"{word!r} is no change", expected="OLD=NEW or NAME=VALUE")
        if new.isascii() and new.isdecimal():
            values[old] = int(new)
        else:
            names[old] = new
    return names, values


def _show(out: Output, written: Sequence[WrittenTask]) -> None:
    out.result([one.to_json() for one in written])
    for one in written:
        out.table(str(one.path), ("class", "value", "group"), one.class_rows())
