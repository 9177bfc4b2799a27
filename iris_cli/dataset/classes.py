"""Channels and classes: what dataset.json says about the meaning of voxels.

A *class* is a name for one label value, or for several (a *region*: whole tumour = 1, 2, 3). Its
`values` are what label maps hold, its `value` is what iris writes for it: the label value itself,
or a region's entry in `regions_class_order`, as in nnU-Net. Background is no class.

A *modality* is `ct` (Hounsfield units, one fixed window) or `other` (everything whose intensities
have no unit: MR, PET, ultrasound, microscopy).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.schema import nearest

Modality = Literal["ct", "other"]
LabelTable = Mapping[str, int | Sequence[int]]

BACKGROUND = "background"
IGNORE = "ignore"
LARGEST_VALUE = 2**31 - 1
LONGEST_NAME = 200

_CT_WORDS = {"ct", "cta", "cect", "ncct", "cbct"}
_OTHER_WORDS = {
    *("other", "mr", "mri", "mra", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "pd"),
    *("adc", "dwi", "swi", "dce", "mprage", "cine", "pet", "pt", "suv", "fdg", "spect", "us"),
    *("ultrasound", "oct", "microscopy", "fluorescence", "confocal", "electron", "em", "xray"),
}


@dataclass(frozen=True)
class Channel:
    """One image channel: index in the file names, name as declared, None = to be guessed."""

    index: int
    name: str
    modality: Modality | None


@dataclass(frozen=True)
class ClassLabel:
    """A class: the values it has in label maps, and the one value iris writes for it."""

    name: str
    values: tuple[int, ...]
    value: int

    @property
    def is_region(self) -> bool:
        """Whether several label values together are this class."""
        return len(self.values) > 1


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set in the order they were declared, and the ignored value.

    has_given_order: whether the output values were given (`regions_class_order`), not chosen.
    notes: what was chosen and should be said.
    """

    classes: tuple[ClassLabel, ...]
    ignore_value: int | None = None
    has_given_order: bool = field(default=False, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.classes)

    @property
    def legal_values(self) -> frozenset[int]:
        """Every value a label map may hold, background and ignore included."""
        values = {0}.union(*(label.values for label in self.classes))
        return frozenset(values if self.ignore_value is None else values | {self.ignore_value})

    @property
    def has_overlaps(self) -> bool:
        """Whether a value belongs to more than one class, so that regions overlap."""
        values = [value for label in self.classes for value in label.values]
        return len(values) != len(set(values))


def parse_modality(text: str | None) -> Modality | None:
    """A modality given as a word, ct or other in any case; raises UsageError for another word."""
    match text and text.strip().lower():
        case None:
            return None
        case "ct":
            return "ct"
        case "other":
            return "other"
    raise UsageError(
        "no such modality",
        found=text,
        expected="ct, or other (MR, PET, microscopy)",
        fix="write ct for images in Hounsfield units, other for all others",
    )


def read_modality(text: str) -> Modality | None:
    """The modality a free text names first ("CT (HU), from PET/CT" is ct), None if it names none.

    Own choice of words: those of nnU-Net's channel names and of DICOM, so that `CT`, `MRI`,
    `T1w`, `PET`, `ADC` are understood and `image` or `channel 0` are left to be guessed.
    """
    for word in re.findall(r"[a-z0-9]+", text.lower()):
        if word in _CT_WORDS:
            return "ct"
        if word in _OTHER_WORDS:
            return "other"
    return None


def class_table(
    labels: LabelTable,
    *,
    regions_class_order: Sequence[int] | None = None,
    file: Path | str | None = None,
) -> ClassTable:
    """Check a label table in the form of nnU-Net's dataset.json (name -> value or values).

    `background` (or any name with value 0) and `ignore` are taken out; the others become classes
    in the order of the table.
    regions_class_order: the value each class gets in outputs, one for each class, as in nnU-Net;
    required where regions overlap, otherwise a region gets its smallest value.
    raises DataRefused where the table contradicts itself.
    """
    ignore = labels.get(IGNORE)
    if ignore is not None and not isinstance(ignore, int):
        raise DataRefused("the ignore label must be one value", file=file, found=ignore)
    values = {
        _checked_name(name, file): _values(name, value, file)
        for name, value in labels.items()
        if name != IGNORE and value not in (0, [0], (0,))
    }
    order = _output_values(values, regions_class_order, file)
    classes = tuple(
        ClassLabel(name, numbers, output)
        for (name, numbers), output in zip(values.items(), order, strict=True)
    )
    if ignore is not None and any(ignore in label.values for label in classes):
        raise DataRefused("the ignore value is also the value of a class", file=file, found=ignore)
    if ignore is not None and not 0 < ignore <= LARGEST_VALUE:
        raise DataRefused("the ignore value is out of range", file=file, found=ignore)
    has_regions = any(label.is_region for label in classes)
    return ClassTable(classes, ignore, has_regions and regions_class_order is not None)


def classes_from_values(values: Iterable[int]) -> tuple[ClassLabel, ...]:
    """Classes of a label map without a table: each value but 0 is its own name."""
    return tuple(ClassLabel(str(value), (value,), value) for value in sorted(set(values) - {0}))


def sharing_values(names: Iterable[str], classes: Mapping[str, Sequence[int]]) -> frozenset[str]:
    """Those of `classes` that share a label value with one of these names, which are among them.

    A class that is held out takes all of these with it: a region or a union would show its voxels.
    """
    values = {value for name in names for value in classes.get(name, ())}
    return frozenset(name for name, own in classes.items() if values & set(own))


def pick_classes(
    classes: Sequence[ClassLabel], names: Sequence[str], *, file: Path | str | None = None
) -> tuple[ClassLabel, ...]:
    """The named classes in the order of `names`; raises UsageError with the nearest known name."""
    known = {label.name: label for label in classes}
    missing = [name for name in names if name not in known]
    if missing:
        guess = nearest(missing[0], list(known))
        raise UsageError(
            f"there is no class {missing[0]!r}",
            file=file,
            found=", ".join(missing),
            expected="one of " + ", ".join(known),
            fix=f"did you mean {guess!r}?" if guess else "pick from the classes above",
        )
    return tuple(known[name] for name in dict.fromkeys(names))


def parse_class_arguments(texts: Sequence[str]) -> dict[str, int | list[int]]:
    """A label table from arguments like `liver=1` or `tumour=2,3`; raises UsageError."""
    table: dict[str, int | list[int]] = {}
    for text in texts:
        name, equals, numbers = text.rpartition("=")
        parts = [part.strip() for part in numbers.split(",")]
        if not equals or not name.strip() or not all(part.isdecimal() for part in parts):
            raise UsageError(
                f"{text!r} is not a class",
                expected="name=value, or name=value,value for a region",
                fix="write for example liver=1",
            )
        if unfit := _unfit_name(name.strip()):
            raise UsageError("this cannot be the name of a class", found=unfit, fix=_FIX_NAME)
        if name.strip() in table:
            raise UsageError(f"the class {name.strip()!r} is given twice")
        values = [int(part) for part in parts]
        table[name.strip()] = values[0] if len(values) == 1 else values
    return table


_FIX_NAME = f"choose a name of printable characters, {LONGEST_NAME} at most"


def _unfit_name(name: str) -> str | None:
    """What keeps a name out of tables, colour files and headers; None for a fit one."""
    if len(name) > LONGEST_NAME:
        return f"{len(name)} characters: {name[:40]!r}..."
    return None if name.isprintable() else f"characters that cannot be printed: {name!r}"


def _checked_name(name: str, file: Path | str | None) -> str:
    if unfit := _unfit_name(name):
        raise DataRefused(
            "this cannot be the name of a class", file=file, found=unfit, fix=_FIX_NAME
        )
    return name


def _values(name: str, value: int | Sequence[int], file: Path | str | None) -> tuple[int, ...]:
    numbers = (value,) if isinstance(value, int) else tuple(value)
    bad = [number for number in numbers if not 0 < number <= LARGEST_VALUE]
    if bad or not numbers or not name.strip():
        raise DataRefused(
            f"class {name!r} has no usable label value",
            file=file,
            found=str(list(numbers)),
            expected=f"whole numbers from 1 to {LARGEST_VALUE}; only background is 0",
            fix="correct the labels in dataset.json",
        )
    return tuple(dict.fromkeys(numbers))


def _output_values(
    values: Mapping[str, tuple[int, ...]],
    order: Sequence[int] | None,
    file: Path | str | None,
) -> list[int]:
    has_regions = any(len(numbers) > 1 for numbers in values.values())
    if order is None or not has_regions:
        _refuse_shared_values(values, has_regions, file)
        return [min(numbers) for numbers in values.values()]
    if len(order) != len(values) or min(order) < 1 or len(set(order)) != len(order):
        raise DataRefused(
            "regions_class_order does not fit the labels",
            file=file,
            found=list(order),
            expected=f"{len(values)} different values above 0, one for each of "
            + ", ".join(values),
            fix="correct regions_class_order in dataset.json",
        )
    return list(order)


def _refuse_shared_values(
    values: Mapping[str, tuple[int, ...]], has_regions: bool, file: Path | str | None
) -> None:
    owners = sorted((number, name) for name, numbers in values.items() for number in numbers)
    shared = [(a, b) for a, b in pairwise(owners) if a[0] == b[0]]
    if shared:
        (value, first), (_, second) = shared[0]
        raise DataRefused(
            f"classes {first!r} and {second!r} share the label value {value}",
            file=file,
            expected="regions_class_order beside the labels"
            if has_regions
            else "one value for one class",
            fix="add regions_class_order to dataset.json (nnU-Net's key)"
            if has_regions
            else "correct the labels in dataset.json",
        )
