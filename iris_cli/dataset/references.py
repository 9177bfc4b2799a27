"""What users hand over: references (images with label maps) and queries (images to segment).

References are a folder in one of these layouts, looked for in this order, or explicit pairs:

    imagesTr/ + labelsTr/    a raw data set; with dataset.json its classes, subjects and notes
    images/ + labels/        equal names; the label map may also end in _seg, _label or _mask
    x.nii.gz + x_seg.nii.gz  (or x_label, x_mask) side by side

Class names come from `name=value` arguments, else from a labels file, else from dataset.json or
labels.json in the folder (`{"liver": 1, "tumour": [2, 3]}`); without any of them each value is
its own name, which is known only when the label maps are read (`References.with_values`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iris_cli.dataset.classes import (
    ClassLabel,
    Modality,
    classes_from_values,
    pick_classes,
)
from iris_cli.dataset.dataset_json import (
    FILE_NAME,
    SECTION,
    AbsentMeans,
    DatasetJson,
    channels,
    known_modality,
    parse_dataset_json,
)
from iris_cli.dataset.label_files import named_classes, read_labels_file
from iris_cli.dataset.layout import ImageFiles, channel_file, check_file, list_volumes
from iris_cli.dataset.pairing import flat_pairs, group_images, pair_by_name
from iris_cli.dataset.queries import QueryVolume, find_queries, find_volumes
from iris_cli.dataset.raw import Case, RawDataset, check_section, read_raw_dataset
from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.schema import nearest, read_json
from iris_cli.volume.reading import volume_name

__all__ = [
    "QueryVolume",
    "ReferencePair",
    "References",
    "find_queries",
    "find_references",
    "find_volumes",
    "references_from_pairs",
    "references_from_raw",
]

_LAYOUTS = "images/ + labels/, imagesTr/ + labelsTr/, or x.nii.gz beside x_seg.nii.gz"


@dataclass(frozen=True)
class ReferencePair:
    """One reference: the image of the task's channel and its label map.

    images: all channels of the case. not_annotated: classes that were not contoured here.
    modality: declared for this case and channel; None = guess.
    """

    name: str
    image: Path
    label: Path
    images: tuple[Path, ...]
    subject: str
    modality: Modality | None = None
    not_annotated: frozenset[str] = frozenset()


@dataclass(frozen=True)
class References:
    """References and the classes of their label maps.

    classes: None where nothing names them: each value found is then a class (`with_values`).
    picked: class names chosen before the values are known. notes: what the user should hear.
    """

    pairs: tuple[ReferencePair, ...]
    classes: tuple[ClassLabel, ...] | None
    channel: int = 0
    ignore_value: int | None = None
    absent_means: AbsentMeans = "background"
    mirror_pairs: tuple[tuple[str, str], ...] = ()
    picked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def modality(self) -> Modality | None:
        """The declared modality where all pairs agree on one, else None."""
        declared = {pair.modality for pair in self.pairs}
        return declared.pop() if len(declared) == 1 else None

    def with_values(self, values: Iterable[int]) -> References:
        """The same references with classes: each of `values` is one, unless they are named."""
        if self.classes is not None:
            return self
        classes = classes_from_values(set(values) - {self.ignore_value})
        if self.picked:
            classes = pick_classes(classes, self.picked)
        return dataclasses.replace(self, classes=classes, picked=())


def find_references(
    folder: Path,
    *,
    labels_file: Path | None = None,
    names: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    cases: Collection[str] | None = None,
    channel: int = 0,
) -> References:
    """Find the references in a folder; no voxel is read.

    labels_file: a JSON file with class names. names: `name=value` arguments.
    classes: names of the classes to keep. cases: names of the cases to keep (of a raw data set:
    of any of its cases with a label map). channel: the channel of the task.
    raises UsageError where the folder has no known layout, a named case, class or channel does
    not exist; DataRefused where images and label maps do not go together.
    """
    if not folder.is_dir():
        raise UsageError("no such folder", file=folder, expected="a folder with " + _LAYOUTS)
    is_raw = (folder / FILE_NAME).is_file() and (folder / "imagesTr").is_dir()
    if is_raw:
        references = references_from_raw(
            read_raw_dataset(folder, strict=False), cases=cases, channel=channel
        )
    else:
        found = _pairs_of_folder(folder)
        pairs = [_channel_pair(files, label, channel) for files, label in found]
        references = _declared(References(tuple(pairs), None, channel), folder)
        chosen = _chosen(references.pairs, cases, folder)
        references = dataclasses.replace(references, pairs=chosen)
    table = named_classes(None if is_raw else folder, labels_file, names)
    if table is not None:
        references = dataclasses.replace(
            references, classes=table.classes, ignore_value=table.ignore_value, notes=table.notes
        )
    return _picked(references, classes, folder)


def references_from_raw(
    dataset: RawDataset, *, cases: Collection[str] | None = None, channel: int = 0
) -> References:
    """References out of a raw data set: the named cases, else all of imagesTr with label maps.

    raises UsageError where a named case does not exist or has no label map, DataRefused where
    files of a chosen case are missing.
    """
    if channel not in range(len(dataset.channels)):
        raise UsageError(
            f"there is no channel {channel}",
            file=dataset.folder,
            expected=", ".join(f"{c.index} ({c.name})" for c in dataset.channels),
        )
    if cases is None:
        chosen = [c for c in dataset.cases if c.label is not None and _in_training_folder(c)]
    else:
        chosen = [dataset.case(name) for name in cases]
    pairs = tuple(_raw_pair(dataset, case, channel) for case in chosen)
    if not pairs:
        raise DataRefused(
            "no case with a label map", file=dataset.folder, fix="give references with label maps"
        )
    return References(
        pairs=pairs,
        classes=dataset.classes or None,
        channel=channel,
        ignore_value=dataset.ignore_value,
        absent_means=dataset.absent_means,
        mirror_pairs=dataset.mirror_pairs,
    )


def references_from_pairs(
    pairs: Sequence[tuple[Path, Path]],
    *,
    labels_file: Path | None = None,
    names: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    channel: int = 0,
) -> References:
    """References from explicit pairs of an image and its label map.

    channel: which channel the images are; noted, and taken of queries.
    Equal file names (`a/image.nii.gz`, `b/image.nii.gz`) get the names of their folders before.
    raises UsageError where a file does not exist or is given twice.
    """
    if not pairs:
        raise UsageError("no reference is given", fix="give --image A --label B")
    for path in (path for pair in pairs for path in pair):
        check_file(path)
    stems = _unique_names([image for image, _ in pairs])
    found = [
        ReferencePair(stem, image, label, (image,), stem)
        for stem, (image, label) in zip(stems, pairs, strict=True)
    ]
    table = named_classes(None, labels_file, names)
    references = References(
        tuple(found),
        table.classes if table else None,
        channel,
        ignore_value=table.ignore_value if table else None,
        notes=table.notes if table else (),
    )
    return _picked(references, classes, None)


def _pairs_of_folder(folder: Path) -> list[tuple[ImageFiles, Path]]:
    for image_folder, label_folder in (("imagesTr", "labelsTr"), ("images", "labels")):
        images, labels = folder / image_folder, folder / label_folder
        if images.is_dir() and labels.is_dir():
            by_name = {volume_name(path): path for path in list_volumes(labels)}
            return pair_by_name(group_images(list_volumes(images), by_name), by_name, folder)
    pairs = flat_pairs(folder)
    if not pairs:
        raise UsageError(
            "no references are found here",
            file=folder,
            found=f"{len(list_volumes(folder))} volumes without label maps",
            expected=_LAYOUTS,
            fix="arrange the files like this, or give --image A --label B",
        )
    return pairs


def _channel_pair(files: ImageFiles, label: Path, channel: int) -> ReferencePair:
    images = tuple(files.by_channel.values())
    return ReferencePair(files.case, channel_file(files, channel), label, images, files.case)


def _declared(references: References, folder: Path) -> References:
    """The references with what a dataset.json in their folder says beside class names."""
    path = folder / FILE_NAME
    content = read_json(path) if path.is_file() else None
    if not isinstance(content, dict):
        return references
    parsed = _channels_and_section(content, len(references.pairs[0].images), path)
    section, known = parsed.iris, channels(parsed, path)
    if "labels" in content:
        classes = set(read_labels_file(path).names)
        check_section(section, {pair.name for pair in references.pairs}, classes, path)
    modality = known[references.channel].modality if references.channel < len(known) else None
    pairs = tuple(
        dataclasses.replace(
            pair,
            subject=section.subjects.get(pair.name, pair.subject),
            modality=known_modality(section.case_modality[pair.name], path)
            if pair.name in section.case_modality
            else modality,
            not_annotated=frozenset(section.not_annotated.get(pair.name, ())),
        )
        for pair in references.pairs
    )
    return dataclasses.replace(
        references,
        pairs=pairs,
        absent_means=section.absent_means,
        mirror_pairs=tuple(section.mirror_pairs),
    )


def _channels_and_section(content: dict[str, Any], count: int, path: Path) -> DatasetJson:
    """The channels and the section "iris"; either may be missing beside references."""
    names = content.get("channel_names", content.get("modality"))
    if not isinstance(names, dict) or not names:
        names = {str(index): "image" for index in range(count)}
    section = {SECTION: content[SECTION]} if SECTION in content else {}
    return parse_dataset_json({"channel_names": names, "labels": {}, **section}, path)


def _in_training_folder(case: Case) -> bool:
    return not case.images or case.images[0].parent.name != "imagesTs"


def _raw_pair(dataset: RawDataset, case: Case, channel: int) -> ReferencePair:
    if case.label is None:
        raise UsageError(
            f"case {case.name!r} has no label map",
            file=dataset.folder,
            fix="choose references with label maps",
        )
    findings = [f for f in dataset.findings if f.case == case.name and f.code.startswith("missing")]
    if findings:
        raise DataRefused(findings[0].message, file=findings[0].file, fix=findings[0].fix)
    return ReferencePair(
        name=case.name,
        image=case.images[channel],
        label=case.label,
        images=case.images,
        subject=case.subject,
        modality=case.modality[channel],
        not_annotated=case.not_annotated,
    )


def _chosen(
    pairs: Sequence[ReferencePair], cases: Collection[str] | None, folder: Path
) -> tuple[ReferencePair, ...]:
    if cases is None:
        return tuple(pairs)
    by_name = {pair.name: pair for pair in pairs}
    for name in cases:
        if name not in by_name:
            guess = nearest(name, list(by_name))
            raise UsageError(
                f"there is no case {name!r}",
                file=folder,
                expected=f"one of its {len(by_name)} cases",
                fix=f"did you mean {guess!r}?" if guess else "check the name",
            )
    return tuple(by_name[name] for name in dict.fromkeys(cases))


def _picked(references: References, classes: Sequence[str] | None, file: Path | None) -> References:
    if not classes:
        return references
    if references.classes is None:
        return dataclasses.replace(references, picked=tuple(classes))
    picked = pick_classes(references.classes, classes, file=file)
    return dataclasses.replace(references, classes=picked)


def _unique_names(images: Sequence[Path]) -> list[str]:
    names = [volume_name(image) for image in images]
    if len(set(names)) < len(names):
        names = [f"{image.absolute().parent.name}_{volume_name(image)}" for image in images]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(
            f"two references are called {twice[0]!r}", fix="rename one, or give each only once"
        )
    return names
