"""`iris encode-task`: references into a task file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iris_cli.dataset.classes import (
    ClassLabel,
    Modality,
    parse_class_arguments,
    pick_classes,
)
from iris_cli.dataset.references import References, find_references, references_from_pairs
from iris_cli.errors import DataRefused, IrisError, UsageError
from iris_cli.execution.progress import Progress, SilentProgress
from iris_cli.files.publish import publish_json, remove_leftovers
from iris_cli.files.schema import read_json
from iris_cli.model.bank import load_bank
from iris_cli.model.model import Model, load_model
from iris_cli.network.precision import choose_precision
from iris_cli.task.encoding import Reference, encode_references
from iris_cli.task.from_bank import task_from_bank
from iris_cli.task.task_file import TASK_ENDING, Task, read_task, write_task
from iris_cli.volume.reading import AssumedSpacing, read_labels


@dataclass(frozen=True)
class ReferenceSource:
    """Where references come from: a folder, or pairs of image and label map.

    names: `name=value` arguments. labels_file: JSON with class names. cases: names of the cases
    of the folder to use, default all; pairs are chosen by giving them.
    """

    folder: Path | None = None
    pairs: tuple[tuple[Path, Path], ...] = ()
    names: tuple[str, ...] = ()
    labels_file: Path | None = None
    cases: tuple[str, ...] | None = None

    def find(self, channel: int = 0, assume_spacing: AssumedSpacing = None) -> References:
        """The references with all classes they declare; label maps are read only if they must.

        raises UsageError where both or neither of folder and pairs are given, or cases of pairs.
        """
        if (self.folder is None) == (not self.pairs):
            raise UsageError(
                "references are one folder, or pairs of image and label map",
                found="both" if self.pairs else "neither",
                fix="give REFS, or --image A --label B once for each reference",
            )
        if self.folder is None:
            if self.cases is not None:
                raise UsageError(
                    "cases are chosen from a folder of references, and here are pairs",
                    found=", ".join(self.cases) or "no name",
                    fix="leave --cases out, and give only the pairs to use",
                )
            found = references_from_pairs(
                self.pairs, labels_file=self.labels_file, names=self.names, channel=channel
            )
        else:
            found = find_references(
                self.folder,
                labels_file=self.labels_file,
                names=self.names,
                cases=self.cases,
                channel=channel,
            )
        if found.classes is None:
            values: set[int] = set()
            for pair in found.pairs:
                labels = read_labels(pair.label, assume_spacing=assume_spacing)
                values |= {int(value) for value in np.unique(labels.array)}
            found = found.with_values(values)
        return found


@dataclass(frozen=True)
class EncodeReport:
    """The task, where it was written, and the references in the order its warnings number them."""

    task: Task
    path: Path
    references: tuple[str, ...]

    def class_rows(self) -> list[dict[str, Any]]:
        """One row per class for a table."""
        header = self.task.header
        if header.bank:
            return [
                {
                    "class": entry.name,
                    "value": entry.value,
                    "from the memory bank": source.name,
                    "episodes": source.episodes,
                }
                for entry, source in zip(header.classes, header.bank, strict=True)
            ]
        return [
            {
                "class": entry.name,
                "value": entry.value,
                "references": entry.references,
                "crops": entry.crops,
                "voxels": entry.voxels,
                "coverage": f"{entry.coverage:.0%}",
            }
            for entry in header.classes
        ]

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "task": str(self.path),
            "fingerprint": self.task.fingerprint(),
            "references": list(self.references),
            "header": self.task.header.model_dump(mode="json"),
        }


def encode_task(
    source: ReferenceSource,
    output: Path,
    *,
    model: Model | str | Path | None = None,
    classes: Sequence[str] | None = None,
    modality: Modality | None = None,
    spacing_mm: float | None = None,
    channel: int = 0,
    assume_spacing: AssumedSpacing = None,
    licence: str | None = None,
    device: str = "cpu",
    precision: str = "auto",
    progress: Progress | None = None,
    reuse: bool = False,
) -> EncodeReport:
    """Encode references and publish the task file.

    model: a loaded model, a name or a folder; None is the one that ships. classes: names to keep.
    modality, spacing_mm, channel, licence: as `task.encoding.encode_references`; a modality that
    the references declare is used unless one is given. assume_spacing: mm, for files that do not
    say where their voxels are. precision: auto, fp32, bf16 or fp16. reuse: keep the task at
    `output` where a call with `reuse` made it of the same: tokens differ in their last digits with
    the number of threads, and all that is predicted by them would count as of another task.
    raises UsageError, DataRefused as `find_references` and `encode_references` do.
    """
    _check_ending(output)
    references = source.find(channel, assume_spacing)
    known = _KnownTask(output) if reuse else None
    task = encode_found(
        references,
        model if isinstance(model, Model) else load_model(model, device=device),
        classes=classes,
        modality=modality,
        spacing_mm=spacing_mm,
        assume_spacing=assume_spacing,
        licence=licence,
        device=device,
        precision=precision,
        progress=progress,
        find_known=None if known is None else known.find,
    )
    names = tuple(pair.name for pair in references.pairs)
    if known is not None and known.task is not None:
        return EncodeReport(task, output, names)
    if known is None:  # a job of several processes, which alone reuses, holds no claim on it
        remove_leftovers(output.parent, output.name)
    path = write_task(output, task)
    if known is not None:
        known.record(task)
    return EncodeReport(task, path, names)


def encode_from_bank(
    names: Sequence[str],
    output: Path,
    *,
    model: str | Path | None = None,
    modality: Modality | None = None,
    channel: int = 0,
) -> EncodeReport:
    """Publish a task of classes that the model remembers from its training; no references needed.

    names: entries of the model's memory bank, `<set>/<class>`, or `<set>/<class>=VALUE`; values
    count from 1 where none is given. model: as `load_model`. modality: only where the images of a
    set are of both.
    raises UsageError where the model has no bank or no such entry, or the entries do not go
    together (`task.from_bank`).
    """
    _check_ending(output)
    loaded = load_model(model)
    bank = load_bank(model, loaded)
    if bank is None:
        raise UsageError(
            f"model {loaded.card.name!r} has no memory bank",
            found="no bank.safetensors beside its weights",
            fix="use a model folder that `iris train` made, or encode a task from references",
        )
    wanted, values = _names_and_values(names)
    task = task_from_bank(
        loaded.card, bank.pick(wanted), values, modality=modality, channel=channel
    )
    remove_leftovers(output.parent, output.name)
    return EncodeReport(task, write_task(output, task), ())


def _names_and_values(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Values where all names have one, else 1, 2, ..."""
    given = [text for text in texts if text.rpartition("=")[2].isdecimal() and "=" in text]
    if not given:
        return list(texts), list(range(1, len(texts) + 1))
    table = parse_class_arguments(texts)
    values = [value for value in table.values() if isinstance(value, int) and value > 0]
    if len(values) < len(table):
        raise UsageError(
            "a class of the memory bank gets one label value, above 0",
            found=", ".join(texts),
            fix="write for example Set/liver=1",
        )
    return list(table), values


def _check_ending(output: Path) -> None:
    if not output.name.endswith(TASK_ENDING) or output.name == TASK_ENDING:
        raise UsageError(
            "a task file has another ending",
            file=output,
            expected=f"NAME{TASK_ENDING}",
            fix=f"call it {output.name.partition('.')[0] or 'task'}{TASK_ENDING}",
        )


class _KnownTask:
    """A task that may be there already, and beside it the note of what it was made of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.note = path.with_name(path.name.removesuffix(TASK_ENDING) + ".inputs")
        self.inputs = ""
        self.task: Task | None = None

    def find(self, inputs: str) -> Task | None:
        """The task if it was made of `inputs` and is whole."""
        self.inputs = inputs
        # Where nothing is there, or nothing that can be believed, the task is encoded anew.
        with contextlib.suppress(IrisError, OSError):
            task = read_task(self.path)
            if read_json(self.note) == self._noted(task):
                self.task = task
        return self.task

    def record(self, task: Task) -> None:
        """Note what the task now at `path` was made of."""
        publish_json(self.note, self._noted(task))

    def _noted(self, task: Task) -> dict[str, str]:
        return {"inputs": self.inputs, "task": task.fingerprint()}


def encode_found(
    references: References,
    model: Model,
    *,
    classes: Sequence[str] | None = None,
    modality: Modality | None = None,
    spacing_mm: float | None = None,
    assume_spacing: AssumedSpacing = None,
    licence: str | None = None,
    device: str = "cpu",
    precision: str = "auto",
    progress: Progress | None = None,
    find_known: Callable[[str], Task | None] | None = None,
) -> Task:
    """Encode references that were found; nothing is written.

    find_known: as `task.encoding.encode_references`; a task that it returns is returned as it is.
    """
    declared = references.classes or ()
    progress = progress or SilentProgress()
    names = [pair.name for pair in references.pairs]

    def on_reference(done: int, total: int) -> None:
        progress.advance(names[done - 1], "done")

    found: list[Task] = []

    def known(inputs: str) -> Task | None:
        task = None if find_known is None else find_known(inputs)
        found.extend([] if task is None else [task])
        return task

    progress.start(len(names), "encode")
    try:
        task = encode_references(
            model,
            [
                Reference(pair.image, pair.label, pair.not_annotated, assume_spacing)
                for pair in references.pairs
            ],
            _pick(declared, classes, references),
            ignore_value=references.ignore_value,
            other_values=[value for label in declared for value in label.values],
            modality=modality,
            declared=None if modality else _declared_modality(references),
            spacing_mm=spacing_mm,
            channel=references.channel,
            licence=licence,
            device=device,
            precision=choose_precision(precision, device),
            on_reference=on_reference,
            find_known=known,
        )
        if any(task is one for one in found):
            return task
        warnings = (*references.notes, *task.header.warnings)
        return Task(task.header.model_copy(update={"warnings": warnings}), task.tokens)
    finally:
        progress.finish()


def _pick(
    declared: Sequence[ClassLabel], classes: Sequence[str] | None, references: References
) -> Sequence[ClassLabel]:
    if classes:
        return pick_classes(declared, classes)
    if not declared:
        raise DataRefused(
            "the label maps of the references hold no class",
            file=", ".join(str(pair.label) for pair in references.pairs),
            found="nothing but zeros",
            expected="at least one value above 0",
            fix="choose other references",
        )
    return declared


def _declared_modality(references: References) -> Modality | None:
    """What the references say they are; None leaves it to the voxels."""
    declared = {pair.modality for pair in references.pairs if pair.modality is not None}
    if len(declared) > 1:
        raise DataRefused(
            "the references are declared to be of different modalities",
            found=", ".join(f"{pair.name}: {pair.modality}" for pair in references.pairs),
            expected="ct for all of them, or other for all of them",
            fix="say which it is with --modality, or encode one task for each",
        )
    return references.modality
