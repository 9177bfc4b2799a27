"""Class names beside data that is no raw data set: arguments, a labels file, labels.json."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from iris_cli.dataset.classes import (
    IGNORE,
    ClassLabel,
    ClassTable,
    LabelTable,
    class_table,
    parse_class_arguments,
)
from iris_cli.dataset.dataset_json import FILE_NAME, labels_by_name, parse_dataset_json
from iris_cli.errors import DataRefused
from iris_cli.files.schema import read_json

LABELS_FILE = "labels.json"


def named_classes(
    folder: Path | None, labels_file: Path | None, names: Sequence[str]
) -> ClassTable | None:
    """The class table the user gave, or the one in the folder; None for none.

    raises UsageError for a malformed argument or a missing file, DataRefused for a file that
    holds no table or one that contradicts itself.
    """
    if names:
        labels = parse_class_arguments(names)
        return _table_of(labels, None)
    if labels_file is not None:
        return read_labels_file(labels_file)
    if folder is None:
        return None
    for name in (FILE_NAME, LABELS_FILE):
        if (folder / name).is_file():
            return read_labels_file(folder / name)
    return None


def read_labels_file(path: Path) -> ClassTable:
    """A table name -> value(s), alone or under "labels" as in dataset.json."""
    content = read_json(path)
    labels = content.get("labels", content) if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not labels:
        raise DataRefused(
            "the file holds no class names",
            file=path,
            expected='{"liver": 1, "tumour": [2, 3]}',
            fix="write the names and their values",
        )
    table = _label_table(labels, path)
    order = content.get("regions_class_order") if "labels" in content else None
    return (
        class_table(table, regions_class_order=order, file=path)
        if order
        else _table_of(table, path)
    )


def order_of_overlaps(labels: LabelTable) -> list[int] | None:
    """Output values for classes that overlap; None where each label value has one class.

    nnU-Net wants `regions_class_order` for such a table, because it paints regions in that order;
    iris lets the largest score win, so that any numbers do. These read like the label maps: a
    class with one value keeps it; a region takes the one of its values that the fewest classes
    have and none took, small regions first; only where all of them are taken, an unused number.
    """
    classes = {
        name: [value] if isinstance(value, int) else list(value)
        for name, value in labels.items()
        if name != IGNORE and value not in (0, [0], (0,))
    }
    owners = Counter(value for numbers in classes.values() for value in set(numbers))
    has_regions = any(len(numbers) > 1 for numbers in classes.values())
    if not has_regions or max(owners.values()) == 1:
        return None
    ignore = labels.get(IGNORE)
    taken: dict[str, int] = {}
    for name, numbers in sorted(classes.items(), key=lambda item: len(item[1])):
        own = [number for number in numbers if number not in taken.values()]
        used = {*owners, *taken.values(), ignore}
        free = next(number for number in count(1) if number not in used)
        taken[name] = min(own, key=lambda number: (owners[number], number), default=free)
    return [taken[name] for name in classes]


def _table_of(labels: LabelTable, path: Path | None) -> ClassTable:
    """The class table of names without an order, and what was chosen for regions that overlap."""
    order = order_of_overlaps(labels)
    table = class_table(labels, regions_class_order=order, file=path)
    if order is None:
        return table
    return dataclasses.replace(
        table, has_given_order=False, notes=(note_on_overlaps(table.classes, order),)
    )


def note_on_overlaps(classes: Sequence[ClassLabel], values: Sequence[int]) -> str:
    """Says the values that outputs hold for regions of classes that overlap."""
    regions = [
        f"{label.name} = {value}"
        for label, value in zip(classes, values, strict=True)
        if label.is_region
    ]
    return "classes overlap, outputs hold one value for each region: " + ", ".join(regions)


def _label_table(labels: dict[str, Any], path: Path) -> LabelTable:
    values = list(labels.values())
    if all(key.isdecimal() for key in labels) and all(isinstance(v, str) for v in values):
        return labels_by_name(labels, path)
    parsed = parse_dataset_json({"channel_names": {"0": "image"}, "labels": labels}, path)
    return parsed.labels
