"""`iris evaluate`: predictions against label maps, into summary.json and summary.csv."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from iris_cli.dataset.classes import (
    ClassLabel,
    ClassTable,
    classes_from_values,
    pick_classes,
)
from iris_cli.dataset.dataset_json import FILE_NAME, DatasetJson, read_dataset_json
from iris_cli.dataset.label_files import LABELS_FILE, named_classes, read_labels_file
from iris_cli.errors import DataRefused, UsageError
from iris_cli.evaluation.summary import (
    Summary,
    evaluate_folders,
    require_folder,
    table_path,
    write_summary,
)
from iris_cli.execution.progress import Progress
from iris_cli.volume.reading import AssumedSpacing, is_volume, read_labels

SUMMARY = "summary.json"


@dataclass(frozen=True)
class EvaluateReport:
    """The summary, where it was written, and what should be known about the choice of classes."""

    summary: Summary
    path: Path
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return self.summary.exit_code

    def class_rows(self) -> list[dict[str, Any]]:
        """One row per class for a table, the headline last."""
        found = self.summary.to_json()["iris"]
        rows = [
            {
                "class": name,
                "Dice": item["dice"]["mean"],
                "low": item["dice"]["low"],
                "high": item["dice"]["high"],
                "cases": item["cases_with_class"],
                "absent": item["cases_without_class"],
                "false positives": item["false_positive_rate"],
            }
            for name, item in found["classes"].items()
        ]
        headline = found["headline_dice"]
        last = {"class": "mean", "Dice": headline["mean"], "low": headline["low"]}
        last |= {"high": headline["high"], "cases": found["cases"]}
        return [*rows, {**last, "absent": None, "false positives": None}]

    def to_json(self) -> dict[str, Any]:
        """The section `iris` of the summary, and where all of it stands; JSON values only."""
        found: dict[str, Any] = self.summary.to_json()["iris"]
        # `found` has "notes" of its own: those of single cases.
        return {"summary": str(self.path), "class_notes": list(self.notes), **found}


def evaluate(
    predictions: Path,
    truth: Path,
    *,
    output: Path | None = None,
    labels_file: Path | None = None,
    names: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    assume_spacing: AssumedSpacing = None,
    seed: int = 0,
    workers: int = 0,
    progress: Progress | None = None,
) -> EvaluateReport:
    """Score the label maps of one folder against those of another.

    output: the summary, by default summary.json among the predictions.
    names, labels_file: class names, as for references; by default those of dataset.json or
    labels.json in or above `truth`, else of labels.json among the predictions, else every value of
    the truth is a class. Of classes found by default, those that the predictions' labels.json does
    not know are left out, with a note; `classes` picks otherwise. cases: names of those to score.
    Subjects, ignored value and classes that were not contoured come from dataset.json.
    assume_spacing: mm, for label maps that do not say where their voxels are.
    raises DataRefused where no case can be scored, no class occurs anywhere (unless dataset.json
    or labels.json say so and the maps are empty) or the two tables give a class other values or a
    value another name; UsageError for a folder or case that is not there.
    """
    target = _summary_path(predictions, output)
    for folder in (predictions, truth):
        require_folder(folder)
    dataset = _dataset_json(truth)
    table, given = _class_table(predictions, truth, dataset, labels_file, names, assume_spacing)
    chosen, notes = _choose(table, predictions, classes, given)
    section = None if dataset is None else dataset.iris
    summary = evaluate_folders(
        predictions,
        truth,
        chosen,
        ignore_value=table.ignore_value,
        subjects=None if section is None else section.subjects,
        not_annotated=None
        if section is None
        else {case: frozenset(names) for case, names in section.not_annotated.items()},
        absent_is_background=section is None or section.absent_means == "background",
        assume_spacing=assume_spacing,
        predicted_as=_predicted_as(table, chosen, predictions),
        cases=cases,
        seed=seed,
        workers=workers,
        progress=progress,
    )
    notes += _undeclared(summary, table, predictions, truth, given)
    return EvaluateReport(summary, write_summary(target, summary), notes)


def _summary_path(predictions: Path, output: Path | None) -> Path:
    path = output or predictions / SUMMARY
    if path.is_dir():
        raise UsageError(
            "the summary is a file, and this is a folder",
            file=path,
            fix=f"give the file, as --output {path / SUMMARY}",
        )
    if table_path(path).name.lower() == path.name.lower():
        raise UsageError(
            "the summary would be the file of the table that is written beside it",
            file=path,
            expected="a name that does not end in .csv",
            fix=f"call it {path.with_suffix('.json').name}",
        )
    return path


def _dataset_json(truth: Path) -> DatasetJson | None:
    for folder in (truth, truth.absolute().parent):
        if (folder / FILE_NAME).is_file():
            return read_dataset_json(folder / FILE_NAME)
    return None


def _class_table(
    predictions: Path,
    truth: Path,
    dataset: DatasetJson | None,
    labels_file: Path | None,
    names: Sequence[str],
    assume_spacing: AssumedSpacing,
) -> tuple[ClassTable, bool]:
    """The classes of the truth, and whether the user gave them."""
    given = named_classes(None, labels_file, names)
    if given is not None:
        ignore = given.ignore_value
        if ignore is None and dataset is not None:
            ignore = dataset.class_table().ignore_value
        return dataclasses.replace(given, ignore_value=ignore), True
    if dataset is not None:
        return dataset.class_table(), False
    for folder in (truth, truth.absolute().parent, predictions):
        if (folder / LABELS_FILE).is_file():
            return read_labels_file(folder / LABELS_FILE), False
    return ClassTable(classes_from_values(_values(truth, assume_spacing))), False


def _values(folder: Path, assume_spacing: AssumedSpacing) -> set[int]:
    found: set[int] = set()
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in paths:
        if path.is_file() and is_volume(path):
            labels = read_labels(path, assume_spacing=assume_spacing)
            found |= {int(value) for value in np.unique(labels.array)}
    if not found - {0}:
        raise DataRefused(
            "the label maps hold no class", file=folder, fix="check the folder of the truth"
        )
    return found


def _choose(
    table: ClassTable, predictions: Path, classes: Sequence[str] | None, given: bool
) -> tuple[tuple[ClassLabel, ...], tuple[str, ...]]:
    chosen = pick_classes(table.classes, classes) if classes else table.classes
    path = predictions / LABELS_FILE
    if not path.is_file():
        return chosen, ()
    predicted = {label.name: label for label in read_labels_file(path).classes}
    for label in chosen:
        other = predicted.get(label.name)
        if other is not None and not (
            set(other.values) <= set(label.values) or _is_output(table, label, other)
        ):
            raise DataRefused(
                f"class {label.name!r} has another value in the predictions than in the truth",
                file=path,
                found=f"{label.name} = {', '.join(map(str, other.values))}",
                expected=f"{label.name} = {', '.join(map(str, label.values))}",
                fix="bring both to one table; scoring them as they are would compare other classes",
            )
    left_out = [label.name for label in chosen if label.name not in predicted]
    notes: tuple[str, ...] = ()
    if not (given or classes) and 0 < len(left_out) < len(chosen):
        notes = (
            f"not scored, because the predictions were not asked for it: {', '.join(left_out)}",
        )
        chosen = tuple(label for label in chosen if label.name in predicted)
    others = {
        label.name: []
        if label.name in predicted and _is_output(table, label, predicted[label.name])
        else _other_names(label, predicted.values())
        for label in chosen
    }
    for label in chosen:
        if others[label.name] and not label.is_region:
            _refuse_other_name(label, others[label.name], path)
    declared = set(table.names)
    notes += tuple(
        f"{label.name} is scored over values that the predictions call {', '.join(names)}"
        for label in chosen
        if (names := [name for name in others[label.name] if name not in declared])
    )
    return chosen, notes


def _is_output(table: ClassTable, label: ClassLabel, other: ClassLabel) -> bool:
    """Whether the predictions have a class under its value of `regions_class_order`."""
    return table.has_given_order and other.values == (label.value,)


def _predicted_as(
    table: ClassTable, chosen: Sequence[ClassLabel], predictions: Path
) -> dict[str, tuple[int, ...]]:
    """Values in the predictions of classes whose output is none of their values in the truth.

    A label map holds one value per voxel: where a class that is part of a region won, the voxel
    belongs to the region, too.
    """
    path = predictions / LABELS_FILE
    if not (table.has_given_order and path.is_file()):
        return {}
    predicted = {label.name: label for label in read_labels_file(path).classes}
    outputs = [
        c for c in table.classes if c.name in predicted and _is_output(table, c, predicted[c.name])
    ]
    found: dict[str, tuple[int, ...]] = {}
    for label in chosen:
        if any(c.value not in c.values for c in outputs):
            parts = tuple(c.value for c in outputs if set(c.values) <= set(label.values))
            found |= {label.name: parts} if parts else {}
    return found


def _other_names(label: ClassLabel, predicted: Iterable[ClassLabel]) -> list[str]:
    """What the predictions call the values of a class, where they do not know it by its name.

    A name that is just a number says nothing about what a value means.
    """
    names = [other.name for other in predicted if set(other.values) & set(label.values)]
    if label.name.isdecimal() or _plain(label.name) in map(_plain, names):
        return []
    return [name for name in names if not name.isdecimal()]


def _plain(name: str) -> str:
    """A name without what two spellings of it differ in."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _refuse_other_name(label: ClassLabel, names: Sequence[str], path: Path) -> NoReturn:
    value = label.values[0]
    raise DataRefused(
        f"value {value} is {label.name!r} in the truth and another class in the predictions",
        file=path,
        found=f"{', '.join(names)} = {value}",
        expected=f"{label.name} = {value}",
        fix="compare label maps of the same classes; where both names mean one class, call it the "
        "same in both tables",
    )


def _undeclared(
    summary: Summary, table: ClassTable, predictions: Path, truth: Path, given: bool
) -> tuple[str, ...]:
    """A note on values that no class declares; refused where no class has a voxel anywhere.

    Maps that are empty are refused only where the user gave the names: of a data set they may be
    the cases that show nothing, and the false positives in them count.
    """
    known = {0, *(value for label in table.classes for value in label.values)}
    known |= set() if table.ignore_value is None else {table.ignore_value}
    held = {value for score in summary.scores for value in score.truth_values}
    predicted = {value for score in summary.scores for value in score.predicted_values}
    declared = known | _predicted_classes(predictions)
    found = {"truth": sorted(held - known), "predictions": sorted(predicted - declared)}
    text = "; ".join(
        f"{where} {', '.join(map(str, values[:20]))}{', ...' if values[20:] else ''}"
        for where, values in found.items()
        if values
    )
    scored = {value for label in summary.classes for value in label.values}
    if not scored & (held | predicted) and (given or text):
        raise DataRefused(
            "no class has a voxel in any truth or prediction",
            file=truth,
            found=text or "nothing but zeros",
            expected=", ".join(
                f"{label.name} = {', '.join(map(str, label.values))}" for label in summary.classes
            ),
            fix="give the values that the label maps hold, as name=value",
        )
    return (f"values that no class declares count as background: {text}",) if text else ()


def _predicted_classes(predictions: Path) -> set[int]:
    """The values that the predictions' own labels.json declares."""
    path = predictions / LABELS_FILE
    classes = read_labels_file(path).classes if path.is_file() else ()
    return {value for label in classes for value in label.values}
