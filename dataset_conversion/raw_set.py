"""What converters hand over: cases with their files, written as one raw data set.

The folder appears under its name whole or not at all (`iris_cli.dataset.building`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from iris_cli.dataset.building import TransferMode, building_folder, place
from iris_cli.dataset.dataset_json import Role, write_dataset_json
from iris_cli.errors import DataRefused

# Files of the source's own description are kept beside the data, licence and citation with them.
SOURCE_DESCRIPTION = "source_info.json"


class Split(StrEnum):
    """Which image folder a case lies in: nnU-Net trains on `imagesTr` and predicts `imagesTs`."""

    TRAINING = "Tr"
    TEST = "Ts"


@dataclass(frozen=True)
class SourceCase:
    """One case of the source. `images` holds one file per channel, or what writes that file."""

    name: str
    images: tuple[Path | Callable[[Path], object], ...]
    label: Path | None
    role: Role
    split: Split
    subject: str
    modality: str | None = None
    not_annotated: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawSet:
    """A raw data set to be written. `labels` is nnU-Net's table, without background."""

    channel_names: tuple[str, ...]
    labels: Mapping[str, int | list[int]]
    cases: Sequence[SourceCase]
    file_ending: str
    regions_class_order: list[int] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    description: Path | None = None


@dataclass(frozen=True)
class Conversion:
    """The raw data sets that a converter made, and what it has to say about them."""

    folders: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def write_raw_set(target: Path, raw: RawSet, mode: TransferMode) -> Path:
    """Write a raw data set; returns its folder.

    raises UsageError where `target` exists, DataRefused where a subject has cases in several
    roles (a leak between training and test), EnvironmentProblem on a full disk.
    """
    _refuse_leaks(target, raw.cases)
    with building_folder(target) as folder:
        for split in Split:
            if any(case.split is split for case in raw.cases):
                (folder / f"images{split}").mkdir()
        for case in raw.cases:
            _write_case(folder, case, raw.file_ending, mode)
        if raw.description is not None:
            place(raw.description, folder / SOURCE_DESCRIPTION, mode)
        write_dataset_json(
            folder,
            channel_names={str(i): name for i, name in enumerate(raw.channel_names)},
            labels=raw.labels,
            num_training=sum(case.split is Split.TRAINING for case in raw.cases),
            file_ending=raw.file_ending,
            regions_class_order=raw.regions_class_order,
            iris=_section(raw),
            extra=raw.extra,
        )
    return target


def _write_case(folder: Path, case: SourceCase, ending: str, mode: TransferMode) -> None:
    for channel, image in enumerate(case.images):
        path = folder / f"images{case.split}" / f"{case.name}_{channel:04d}{ending}"
        if isinstance(image, Path):
            place(image, path, mode)
        else:
            image(path)
    if case.label is not None:
        place(case.label, folder / f"labels{case.split}" / f"{case.name}{ending}", mode)


def _section(raw: RawSet) -> dict[str, Any]:
    """The section "iris": only what says more than its default."""
    default: dict[Split, Role] = {Split.TRAINING: "train", Split.TEST: "test"}
    modalities = {case.modality for case in raw.cases}
    section: dict[str, Any] = {
        "case_modality": {c.name: c.modality for c in raw.cases if c.modality}
        if len(modalities) > 1
        else {},
        "subjects": {c.name: c.subject for c in raw.cases if c.subject != c.name},
        "roles": {c.name: c.role for c in raw.cases if c.role != default[c.split]},
        "not_annotated": {c.name: list(c.not_annotated) for c in raw.cases if c.not_annotated},
        **raw.facts,
    }
    return {key: value for key, value in section.items() if value}


def _refuse_leaks(target: Path, cases: Sequence[SourceCase]) -> None:
    roles: dict[str, SourceCase] = {}
    for case in cases:
        other = roles.setdefault(case.subject, case)
        if other.role != case.role:
            raise DataRefused(
                f"subject {case.subject!r} has cases in several roles",
                file=target,
                found=f"{other.name} is {other.role}, {case.name} is {case.role}",
                expected="all cases of a subject in one role",
                fix="correct the split of the source",
            )
