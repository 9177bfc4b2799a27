"""The task of a call: one file for one task, and one made of several for several.

What several tasks make together is a task file as any other, kept in OUT/.iris under its
fingerprint, so that every worker reads the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iris_cli.errors import UsageError
from iris_cli.model.registry import find_by_name
from iris_cli.task.combining import Grouping, NamedTask, combine
from iris_cli.task.task_file import TASK_ENDING, Task, TaskHeader, read_task, write_task


@dataclass(frozen=True)
class TaskOfCall:
    """A task file, and the fingerprints of the tasks it was made of (none where it is their own).

    joint: all their classes are decoded together.
    """

    path: Path
    parts: tuple[str, ...] = ()
    joint: bool = False


def task_of_call(
    paths: Sequence[Path],
    folder: Path,
    *,
    grouping: Grouping = Grouping.APART,
    renumber: bool = False,
) -> TaskOfCall:
    """The file of these tasks; `folder` receives it where they have to be put together.

    raises as `read_tasks` and `combine`.
    """
    joint = grouping is Grouping.JOINT
    if len(paths) == 1 and not (joint or renumber):
        return TaskOfCall(paths[0])
    tasks = read_tasks(paths)
    together = combine(tasks, grouping=grouping, renumber=renumber)
    path = folder / _file_name(together)
    parts = tuple(one.task.fingerprint() for one in tasks)
    return TaskOfCall(write_task(path, together), parts, joint)


def under_fingerprint(path: Path, folder: Path) -> Path:
    """The file of a task in `folder` under its fingerprint, which no later task replaces."""
    task = read_task(path)
    return write_task(folder / _file_name(task), task)


def _file_name(task: Task) -> str:
    return f"{task.fingerprint()[:12]}{TASK_ENDING}"


def read_tasks(paths: Sequence[Path]) -> list[NamedTask]:
    """Several task files under their names.

    raises UsageError for a file that is named twice, else as `read_task`.
    """
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise UsageError("a task is given twice", file=path, fix="name it once")
        seen.add(path.resolve())
    return [NamedTask.of_file(path, read_task(path)) for path in paths]


def own_model(header: TaskHeader, task: Path) -> str:
    """The shipped or registered model that a task was made with."""
    if find_by_name(header.model.name) is not None:
        return header.model.name
    raise UsageError(
        f"the task was encoded with model {header.model.name!r} {header.model.version}, "
        "which neither ships with iris nor is registered",
        file=task,
        expected="that model, with --model",
        fix="give its folder with --model, or encode the task again with one of `iris model list`",
    )
