"""Raw data sets: nnU-Net v2 folders as they are, with what iris adds under "iris".

    <set>/dataset.json
    <set>/imagesTr/<case>_0000.nii.gz    one file per channel (names: see `layout`)
    <set>/labelsTr/<case>.nii.gz
    <set>/imagesTs/, <set>/labelsTs/     optional

Any nnU-Net raw folder is a raw data set, whatever it is called; a folder of the Medical
Segmentation Decathlon (version 1's dataset.json, plain names) is one too.

Roles: cases of imagesTr are `train`, cases of imagesTs are `test`, a case without label map in
imagesTr is `unlabelled`; `"iris".roles` overrides for single cases. The role is what counts: a
test case may lie in imagesTr (as an example of a set that nothing was trained on).

Reading checks names and files, and no voxel. What is wrong with single files (a missing channel
or label map) is collected, so that one report can list all of it (`preparation.integrity`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from iris_cli.dataset.classes import Channel, ClassLabel, ClassTable, Modality
from iris_cli.dataset.dataset_json import (
    FILE_NAME,
    AbsentMeans,
    DatasetJson,
    IrisSection,
    Role,
    channels,
    known_modality,
    read_dataset_json,
    write_dataset_json,
)
from iris_cli.dataset.layout import (
    ImageFiles,
    check_case_name,
    group_channels,
    list_volumes,
    split_channel,
)
from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.archive import safe_relative_path
from iris_cli.files.schema import nearest
from iris_cli.volume.reading import volume_name

__all__ = [
    "Case",
    "Channel",
    "ClassLabel",
    "DatasetJson",
    "RawDataset",
    "RawFinding",
    "Role",
    "read_raw_dataset",
    "write_dataset_json",
]


@dataclass(frozen=True)
class Case:
    """One case: one image per channel, and its label map where there is one.

    modality: per channel; the case's own where it is declared, else the channel's, None = guess.
    not_annotated: names of classes that were not contoured here; no voxel of them is background.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    subject: str
    role: Role
    modality: tuple[Modality | None, ...]
    not_annotated: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RawFinding:
    """Something wrong with the files of a raw data set.

    code: a word of `preparation.codes`, which says what follows from it.
    """

    code: str
    message: str
    case: str | None = None
    file: Path | None = None
    found: str | None = None
    expected: str | None = None
    fix: str | None = None


@dataclass(frozen=True)
class RawDataset:
    """A raw data set, read: what its names and its dataset.json say.

    findings: what is wrong with its files; empty after a strict reading.
    declared_training: numTraining of dataset.json, as it stands there.
    """

    folder: Path
    name: str
    channels: tuple[Channel, ...]
    table: ClassTable
    cases: tuple[Case, ...]
    absent_means: AbsentMeans = "background"
    mirror_pairs: tuple[tuple[str, str], ...] = ()
    held_out_classes: tuple[str, ...] = ()
    licence: str | None = None
    source: str | None = None
    citation: str | None = None
    findings: tuple[RawFinding, ...] = ()
    declared_training: int | None = None

    @property
    def classes(self) -> tuple[ClassLabel, ...]:
        return self.table.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.table.names

    @property
    def ignore_value(self) -> int | None:
        return self.table.ignore_value

    @cached_property
    def _by_name(self) -> dict[str, Case]:
        return {case.name: case for case in self.cases}

    def case(self, name: str) -> Case:
        """The case of this name; raises UsageError with the nearest known name."""
        if name in self._by_name:
            return self._by_name[name]
        guess = nearest(name, list(self._by_name))
        raise UsageError(
            f"there is no case {name!r}",
            file=self.folder,
            expected=f"one of its {len(self.cases)} cases",
            fix=f"did you mean {guess!r}?" if guess else "check the name",
        )


def read_raw_dataset(
    folder: Path, *, strict: bool = True, known: Mapping[str, Role] | None = None
) -> RawDataset:
    """Read the names, roles and classes of a raw data set; no voxel is read.

    strict: raise DataRefused with every finding; otherwise they are returned in `.findings`
    (a case with a missing channel or label map is then among the cases as far as it is there).
    known: cases with their roles, which count as cases and keep these where only their files are
    gone and dataset.json still names them.
    raises UsageError where there is no dataset.json, DataRefused where it contradicts itself or
    names cases or classes that do not exist.
    """
    path = folder / FILE_NAME
    parsed = read_dataset_json(path)
    table = parsed.class_table(path)
    reader = _Reader(folder, path, parsed, channels(parsed, path), table, known or {})
    dataset = reader.read()
    if strict and dataset.findings:
        raise _refusal(dataset)
    return dataset


def check_section(section: IrisSection, cases: set[str], classes: set[str], file: Path) -> None:
    """Raise DataRefused where the section "iris" names a case or class that does not exist."""
    for key in ("case_modality", "subjects", "not_annotated", "roles"):
        _check_known(key, getattr(section, key), cases, "case", file)
    _check_known("held_out_classes", section.held_out_classes, classes, "class", file)
    pairs = [name for pair in section.mirror_pairs for name in pair]
    _check_known("mirror_pairs", pairs, classes, "class", file)
    missing = [name for names in section.not_annotated.values() for name in names]
    _check_known("not_annotated", missing, classes, "class", file)


def _check_known(key: str, names: Iterable[str], known: set[str], what: str, file: Path) -> None:
    unknown = sorted(set(names) - known)
    if unknown:
        guess = nearest(unknown[0], sorted(known))
        raise DataRefused(
            f'"iris".{key} names a {what} that does not exist: {unknown[0]!r}',
            file=file,
            found=", ".join(unknown[:10]),
            expected=f"a {what} of this data set",
            fix=f"did you mean {guess!r}?" if guess else f"correct the {what} in dataset.json",
        )


def _refusal(dataset: RawDataset) -> DataRefused:
    findings = dataset.findings
    shown = [finding.message for finding in findings[:20]]
    if len(findings) > len(shown):
        shown.append(f"and {len(findings) - len(shown)} more")
    one = findings[0] if len(findings) == 1 else None
    return DataRefused(
        "; ".join(shown),
        file=one.file if one and one.file else dataset.folder,
        found=one.found if one else f"{len(findings)} findings",
        expected=one.expected if one else None,
        fix=one.fix if one else "correct the files named above",
    )


@dataclass(frozen=True)
class _Reader:
    folder: Path
    path: Path
    parsed: DatasetJson
    channels: tuple[Channel, ...]
    table: ClassTable
    known: Mapping[str, Role] = field(default_factory=dict)

    @property
    def section(self) -> IrisSection:
        return self.parsed.iris

    def read(self) -> RawDataset:
        findings: list[RawFinding] = []
        if self.parsed.dataset is not None:
            cases = self._referenced(findings)
        else:
            cases = self._split("Tr", "train", findings)
        cases += self._split("Ts", "test", findings)
        cases += self._without_files({case.name for case in cases}, findings)
        findings += _duplicates(cases)
        if not cases:
            findings.append(self._no_cases())
        names = {case.name for case in cases} | self._orphans(findings)
        check_section(self.section, names, set(self.table.names), self.path)
        section = self.section
        return RawDataset(
            folder=self.folder,
            # Not resolved: a link in the workspace has the name the user gave it.
            name=Path(os.path.abspath(self.folder)).name,
            channels=self.channels,
            table=self.table,
            cases=tuple(sorted(cases, key=lambda case: case.name)),
            absent_means=section.absent_means,
            mirror_pairs=tuple(section.mirror_pairs),
            held_out_classes=tuple(section.held_out_classes),
            licence=section.licence,
            source=section.source,
            citation=section.citation,
            findings=tuple(findings),
            declared_training=self.parsed.numTraining,
        )

    def _split(self, split: str, role: Role, findings: list[RawFinding]) -> list[Case]:
        """The cases of imagesTr or imagesTs."""
        images, labels = self.folder / f"images{split}", self.folder / f"labels{split}"
        ending = self.parsed.file_ending
        label_files = {volume_name(path): path for path in _volumes(labels, ending)}
        files = _volumes(images, ending)
        odd: list[DataRefused] = []
        groups = group_channels(files, len(self.channels), labelled=label_files, odd=odd)
        findings += [_odd_name(refusal, len(self.channels)) for refusal in odd]
        for name in sorted(set(label_files) - {group.case for group in groups}):
            findings.append(_label_without_image(name, label_files[name]))
        findings += self._other_endings(images, files)
        return [self._case(group, label_files.get(group.case), role, findings) for group in groups]

    def _referenced(self, findings: list[RawFinding]) -> list[Case]:
        """The cases that dataset.json lists with their files (nnU-Net's key "dataset")."""
        cases = []
        for name, files in (self.parsed.dataset or {}).items():
            check_case_name(name, file=self.path)
            images = [self.folder / safe_relative_path(i, archive=self.path) for i in files.images]
            label = files.label and self.folder / safe_relative_path(files.label, archive=self.path)
            present = {i: image for i, image in enumerate(images) if image.is_file()}
            there = label if label and label.is_file() else None
            cases.append(self._case(ImageFiles(name, present), there, "train", findings))
        return cases

    def _without_files(self, there: set[str], findings: list[RawFinding]) -> list[Case]:
        """The known cases of which only the word of dataset.json is left."""
        section = self.section
        named = {*section.roles, *section.subjects, *section.case_modality, *section.not_annotated}
        gone = sorted(named & set(self.known) - there)
        return [self._case(ImageFiles(n, {}), None, self.known[n], findings) for n in gone]

    def _case(
        self, group: ImageFiles, label: Path | None, role: Role, findings: list[RawFinding]
    ) -> Case:
        name, section = group.case, self.section
        role = section.roles.get(name, role)
        if label is None and role in ("train", "validate"):
            findings.append(_missing_label(name, self.folder))
            if self.known.get(name) not in ("train", "validate"):
                role = "unlabelled"  # a declared role cannot give it labels
        for channel in self.channels:
            if channel.index not in group.by_channel:
                findings.append(_missing_channel(name, channel, group))
        own = section.case_modality.get(name)
        modality = known_modality(own, self.path) if own else None
        return Case(
            name=name,
            images=tuple(group.by_channel.values()),
            label=label,
            subject=section.subjects.get(name, name),
            role=role,
            modality=tuple(modality or channel.modality for channel in self.channels),
            not_annotated=frozenset(section.not_annotated.get(name, ())),
        )

    def _other_endings(self, images: Path, files: list[Path]) -> list[RawFinding]:
        """Volumes that are there and would silently be left out."""
        others = sorted(set(_volumes(images, None)) - set(files))
        if not others:
            return []
        return [
            RawFinding(
                code="other-ending",
                message=f"{len(others)} images of {images.name} do not have the declared ending",
                file=others[0],
                found=others[0].name,
                expected=f"file_ending {self.parsed.file_ending}",
                fix="convert them, or correct file_ending in dataset.json",
            )
        ]

    def _no_cases(self) -> RawFinding:
        return RawFinding(
            code="no-cases",
            message="the data set has no images",
            file=self.folder / "imagesTr",
            found=f"no file ending in {self.parsed.file_ending or 'a known ending'}",
            expected="imagesTr/<case>_0000.nii.gz",
            fix="put the images into imagesTr",
        )

    def _orphans(self, findings: Iterable[RawFinding]) -> set[str]:
        return {finding.case for finding in findings if finding.case}


def _volumes(folder: Path, ending: str | None) -> list[Path]:
    return list_volumes(folder, ending) if folder.is_dir() else []


def _duplicates(cases: list[Case]) -> list[RawFinding]:
    seen: dict[str, Case] = {}
    findings = []
    for case in cases:
        if case.name in seen and case.images:
            findings.append(
                RawFinding(
                    code="case-twice",
                    message=f"case {case.name!r} is both in imagesTr and in imagesTs",
                    case=case.name,
                    file=case.images[0],
                    fix="rename or remove one of them",
                )
            )
        seen[case.name] = case
    return findings


def _odd_name(refusal: DataRefused, channels: int) -> RawFinding:
    parts = split_channel(volume_name(refusal.file)) if refusal.file else None
    code, message = "odd-file-name", refusal.problem
    if message.startswith("two files"):
        code = "channel-twice"
    elif parts and parts[1] >= channels:
        code, message = "extra-channel", f"dataset.json names no channel {parts[1]}"
    return RawFinding(
        code=code,
        case=parts[0] if parts and code != "odd-file-name" else None,
        message=message,
        file=Path(refusal.file) if refusal.file else None,
        found=refusal.found,
        expected=refusal.expected,
        fix=refusal.fix,
    )


def _missing_label(name: str, folder: Path) -> RawFinding:
    return RawFinding(
        code="missing-label",
        message=f"case {name!r} has no label map",
        case=name,
        file=folder / "labelsTr",
        expected=f"labelsTr/{name} with the ending of the images",
        fix='add it, or give the case the role "unlabelled" in "iris".roles',
    )


def _missing_channel(name: str, channel: Channel, group: ImageFiles) -> RawFinding:
    first = next(iter(group.by_channel.values()), None)
    return RawFinding(
        code="missing-channel" if group.by_channel else "missing-image",
        message=f"case {name!r} has no image for channel {channel.index} ({channel.name})",
        case=name,
        file=first,
        found=", ".join(path.name for path in group.by_channel.values()) or "no image",
        expected=f"{name}_{channel.index:04d}",
        fix="add the file, or remove the case",
    )


def _label_without_image(name: str, path: Path) -> RawFinding:
    return RawFinding(
        code="label-without-image",
        message=f"label map {path.name} has no image",
        case=name,
        file=path,
        expected=f"an image of case {name!r}",
        fix="add the image, or remove the label map",
    )
