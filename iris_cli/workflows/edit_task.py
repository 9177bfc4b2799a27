"""`iris task merge`, `split` and `rename`: task files from task files, without references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iris_cli.errors import UsageError
from iris_cli.inference.class_masks import mask_file
from iris_cli.task.combining import Grouping, NamedTask, apart, combine, rename, split
from iris_cli.task.task_file import TASK_ENDING, Task, read_task, write_task
from iris_cli.workflows.combined import read_tasks


@dataclass(frozen=True)
class WrittenTask:
    """A task file that was written."""

    path: Path
    task: Task

    def class_rows(self) -> list[tuple[str, int, int]]:
        """Name, label value, and number of the group of every class."""
        header = self.task.header
        place = {index: n for n, group in enumerate(header.groups, start=1) for index in group}
        return [(entry.name, entry.value, place[i]) for i, entry in enumerate(header.classes)]

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "task": str(self.path),
            "fingerprint": self.task.fingerprint(),
            "classes": {entry.name: entry.value for entry in self.task.header.classes},
            "groups": [list(group) for group in self.task.header.groups],
        }


def merge_tasks(
    paths: Sequence[Path],
    output: Path,
    *,
    grouping: Grouping = Grouping.APART,
    renumber: bool = False,
) -> WrittenTask:
    """Write several tasks as one; it predicts what `iris predict` with all of them predicts.

    raises UsageError where the output is one of them, else as `combining.combine`.
    """
    _refuse_replacing(paths, output)
    task = combine(read_tasks(paths), grouping=grouping, renumber=renumber)
    return WrittenTask(write_task(output, task), task)


def split_task(path: Path, folder: Path, *, every_class: bool = False) -> list[WrittenTask]:
    """Write the groups of a task as tasks of their own into a folder.

    every_class: every class instead, which is then decoded alone. A task of one class is named
    after it, another one after the file, with a number.
    raises UsageError where there is nothing to split or a file would be replaced.
    """
    task = read_task(path)
    parts = apart(task) if every_class else split(task)
    if len(parts) == 1:
        raise UsageError(
            "there is nothing to split",
            file=path,
            found=f"one group of {len(task.header.classes)} classes, decoded together",
            fix="add --every-class for one task per class; decoded alone, labels may differ",
        )
    stem = NamedTask.of_file(path, task).name
    targets = [folder / _part_name(part, stem, number) for number, part in enumerate(parts, 1)]
    for target in targets:
        if target.exists() or targets.count(target) > 1:
            raise UsageError("a task file would be replaced", file=target, fix="choose a folder")
    return [WrittenTask(write_task(t, part), part) for t, part in zip(targets, parts, strict=True)]


def rename_classes(
    path: Path, output: Path, names: Mapping[str, str], values: Mapping[str, int]
) -> WrittenTask:
    """Write a task with other class names (old -> new) and label values (old name -> value)."""
    _refuse_replacing([path], output)
    task = rename(read_task(path), names, values)
    return WrittenTask(write_task(output, task), task)


def _part_name(task: Task, stem: str, number: int) -> str:
    classes = task.header.classes
    only = mask_file(classes[0].name, TASK_ENDING)
    return only if len(classes) == 1 else f"{stem}-{number}{TASK_ENDING}"


def _refuse_replacing(paths: Sequence[Path], output: Path) -> None:
    if output.resolve() in {path.resolve() for path in paths}:
        raise UsageError(
            "the output would replace a task it is made of", file=output, fix="choose another name"
        )
