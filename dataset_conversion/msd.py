"""The Medical Segmentation Decathlon: `TaskNN_Name/` with a dataset.json of nnU-Net's version 1.

Layout (medicaldecathlon.com): `imagesTr/liver_001.nii.gz` (4-D where there are several channels),
`labelsTr/liver_001.nii.gz`, `imagesTs/`; the archives hold `._*` companions, which are left out.

- Names get `_0000`; a 4-D image is split into one file per channel, the only files written anew.
- `dataset.json` is the list of cases; what it lists and the folder lacks is left out and said.
- Subjects: a number is a subject, except in Task04 Hippocampus, where cases 2k-1 and 2k are the
  two sides of one. The archive does not say so; it was found from the data (the medians of such
  pairs differ by 3 %, those of other neighbours by 24 %). The official test images, published
  without label maps, are the other side of training subjects in part: this is said, and such a
  test case stands as a subject of its own.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dataset_conversion.raw_set import Conversion, RawSet, SourceCase, Split, write_raw_set
from iris_cli.dataset.building import TransferMode, scratch_folder
from iris_cli.dataset.dataset_json import DatasetJson, channels, is_version_1, parse_dataset_json
from iris_cli.dataset.layout import check_case_name
from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.archive import extract_tar, safe_relative_path
from iris_cli.files.schema import read_json
from iris_cli.volume.reading import volume_ending, volume_name

DATASET_JSON = "dataset.json"


def convert(source: Path, target: Path, *, mode: TransferMode = TransferMode.COPY) -> Conversion:
    """Convert a task of the Decathlon into the raw data set `target`.

    source: the extracted folder, or the archive (`Task04_Hippocampus.tar`), which is extracted
    beside `target` for the time of the conversion; its files cannot be linked to.
    raises UsageError where there is no such task, DataRefused for a damaged one.
    """
    if source.is_dir():
        return _convert_folder(_task_folder(source), target, mode)
    if not source.is_file():
        raise UsageError("no such file or folder", file=source, fix="check the path")
    if mode is TransferMode.LINK:
        raise UsageError(
            "links into an archive are not possible", file=source, fix="extract it, or use --copy"
        )
    with scratch_folder(target) as folder:
        extract_tar(source, folder)
        return _convert_folder(_task_folder(folder), target, mode)


def _task_folder(folder: Path) -> Path:
    """The folder with dataset.json: this one, or the only one in it."""
    if (folder / DATASET_JSON).is_file():
        return folder
    inside = sorted(entry for entry in folder.iterdir() if (entry / DATASET_JSON).is_file())
    if len(inside) != 1:
        raise UsageError(
            "this is no task of the Decathlon",
            file=folder,
            found=f"{len(inside)} folders with {DATASET_JSON}",
            expected="TaskNN_Name with dataset.json, imagesTr and labelsTr",
            fix="give the folder of one task",
        )
    return inside[0]


def _convert_folder(source: Path, target: Path, mode: TransferMode) -> Conversion:
    path = source / DATASET_JSON
    content = read_json(path)
    if not isinstance(content, dict) or not is_version_1(content):
        raise DataRefused(
            "dataset.json is not in the Decathlon's form",
            file=path,
            expected='"modality" and "labels" from value to name',
            fix="a raw folder of nnU-Net needs no conversion",
        )
    parsed = parse_dataset_json(content, path)
    notes: list[str] = []
    cases = _cases(source, content, len(channels(parsed, path)), notes)
    if not any(case.label for case in cases):
        raise DataRefused("no training case is there", file=source, fix="download it again")
    raw = RawSet(
        channel_names=tuple(channel.name for channel in channels(parsed, path)),
        labels=parsed.labels,
        cases=cases,
        file_ending=_ending(source, content),
        facts=_facts(content),
        extra=_extra(content, parsed, notes),
        description=path,
    )
    return Conversion((write_raw_set(target, raw, mode),), tuple(notes))


def _cases(
    source: Path, content: Mapping[str, Any], count: int, notes: list[str]
) -> list[SourceCase]:
    cases, absent = [], []
    for entry in _entries(content, "training", source):
        image, label = (_listed(source, entry.get(key)) for key in ("image", "label"))
        if image is None or label is None:
            absent.append(str(entry.get("image")))
        else:
            cases.append(_case(image, label, count, Split.TRAINING))
    for entry in _entries(content, "test", source):
        image = _listed(source, entry.get("image"))
        if image is None:
            absent.append(str(entry.get("image")))
        else:
            cases.append(_case(image, None, count, Split.TEST))
    if absent:
        notes.append(f"{len(absent)} listed cases are not there and left out: {_some(absent)}")
    return _separated(sorted(cases, key=lambda case: case.name), notes)


def _separated(cases: list[SourceCase], notes: list[str]) -> list[SourceCase]:
    """Test cases of training subjects as subjects of their own: the official split has them."""
    trained = {case.subject for case in cases if case.split is Split.TRAINING}
    shared = [c.name for c in cases if c.split is Split.TEST and c.subject in trained]
    if shared:
        notes.append(
            f"{len(shared)} official test images show subjects of the training images; a score "
            f"on them is not one on unseen subjects: {_some(shared)}"
        )
    return [replace(c, subject=c.name) if c.name in shared else c for c in cases]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _entries(content: Mapping[str, Any], key: str, source: Path) -> list[dict[str, Any]]:
    """The cases of a list; test cases may be listed as bare paths."""
    entries = content.get(key, [])
    if not isinstance(entries, list):
        raise DataRefused(f'"{key}" is not a list', file=source / DATASET_JSON)
    return [entry if isinstance(entry, dict) else {"image": entry} for entry in entries]


def _listed(source: Path, name: object) -> Path | None:
    """The file a list names, None where it is not there."""
    if not isinstance(name, str):
        return None
    path = source / safe_relative_path(name, archive=source / DATASET_JSON)
    return path if path.is_file() else None


def _case(image: Path, label: Path | None, count: int, split: Split) -> SourceCase:
    name = check_case_name(volume_name(image), file=image)
    images: tuple[Path | Callable[[Path], object], ...] = (image,)
    if count > 1:
        images = tuple(partial(write_channel, image, channel, count) for channel in range(count))
    return SourceCase(
        name=name,
        images=images,
        label=label,
        role="train" if split is Split.TRAINING else "test",
        split=split,
        subject=subject_of(name),
    )


def subject_of(case: str) -> str:
    """The subject of a case: its own name, except for the two sides of a hippocampus."""
    number = re.fullmatch(r"hippocampus_(\d+)", case)
    if number is None:
        return case
    return f"hippocampus_subject_{(int(number[1]) + 1) // 2:03d}"


def write_channel(source: Path, channel: int, count: int, target: Path) -> None:
    """Write one channel of a 4-D NIfTI file as a 3-D one, with its header and equal voxels."""
    # nibabel here, because volume/ reads 3-D volumes only and drops what it does not need.
    import nibabel

    image: Any = nibabel.load(source)
    if len(image.shape) != 4 or image.shape[3] != count:
        raise DataRefused(
            "an image does not hold the channels that dataset.json declares",
            file=source,
            found=f"shape {image.shape}",
            expected=f"4-D with {count} channels",
        )
    array = np.asarray(image.dataobj[..., channel])
    header = image.header.copy()
    header.set_data_dtype(array.dtype)
    frame = nibabel.Nifti1Image(array, None, header)
    packed = io.BytesIO()
    # No time stamp, so that equal voxels give equal files.
    with gzip.GzipFile("", "wb", compresslevel=1, fileobj=packed, mtime=0) as stream:
        stream.write(frame.to_bytes())
    target.write_bytes(packed.getvalue())


def _ending(source: Path, content: Mapping[str, Any]) -> str:
    for entry in _entries(content, "training", source):
        return volume_ending(str(entry.get("image"))) or ".nii.gz"
    return ".nii.gz"


def _facts(content: Mapping[str, Any]) -> dict[str, str]:
    """Licence and source as the archive states them."""
    stated = {
        "licence": content.get("licence") or content.get("license"),
        "source": content.get("reference"),
        "citation": "Antonelli M. et al., The Medical Segmentation Decathlon, Nature "
        "Communications 13:4128 (2022)",
    }
    return {key: str(value) for key, value in stated.items() if value}


def _extra(content: Mapping[str, Any], parsed: DatasetJson, notes: Sequence[str]) -> dict[str, str]:
    texts = [str(content.get("description") or ""), *notes]
    stated = {"name": parsed.name, "description": "; ".join(text for text in texts if text)}
    return {key: str(value) for key, value in stated.items() if value}
