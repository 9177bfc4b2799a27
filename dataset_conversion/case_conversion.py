"""One case: read and checked whole, repaired where its set says so, placed, with a receipt.

The receipt (`<set>/.iris/convert/<case>.json`) is written last; a case whose receipt speaks of the
same files and rules, and whose outputs are there, is not done again.
"""

from __future__ import annotations

import dataclasses
import errno
import gzip
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset_conversion.facts import LabelGrid, SetFacts
from dataset_conversion.recipes import resample_labels, stored
from dataset_conversion.scan import FoundCase, Recipe, Source, described
from iris_cli.dataset.building import TransferMode
from iris_cli.errors import DataRefused, EnvironmentProblem
from iris_cli.execution.outcomes import CaseResult
from iris_cli.execution.receipts import Receipt, matches, read_receipt, write_receipt
from iris_cli.files.hashing import hash_json
from iris_cli.files.publish import publish, remove_leftovers
from iris_cli.volume.grid import GridMatch
from iris_cli.volume.reading import Volume, read_image, read_labels, volume_ending
from iris_cli.volume.writing import write_image, write_labels

VERSION = 2
"""Raised where the conversion of equal files comes to another result."""

ENDING = ".nii.gz"
RECEIPTS = Path(".iris/convert")

REPACKED = "files without compression, written as .nii.gz with equal voxels"
COPIED_GEOMETRY = "label geometry copied from the image"
RESAMPLED = "label map resampled to the grid of its image (largest linear weight)"
REORDERED = "label map stored in another axis order than its image, written anew"

# What a disk or network says when it has gone, however often one asks.
_LOST = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO)


@dataclass(frozen=True)
class Extracted:
    """An archive, and the folder where its content is for the time of the conversion.

    Its files are known by the archive and their names in it: folder and times are new each time.
    """

    archive: Path
    folder: Path


@dataclass(frozen=True)
class ConvertPayload:
    """What `convert_case` needs of one case, picklable.

    folder: of the raw set. extracted: where the files are, if they come out of an archive.
    """

    folder: Path
    case: FoundCase
    facts: SetFacts
    mode: TransferMode
    extracted: Extracted | None = None

    @property
    def receipt_path(self) -> Path:
        return self.folder / RECEIPTS / f"{self.case.name}.json"

    @property
    def label_path(self) -> Path:
        return self.folder / f"labels{self.case.split}" / f"{self.case.name}{ENDING}"

    def image_path(self, channel: int) -> Path:
        return self.folder / f"images{self.case.split}" / f"{self.case.name}_{channel:04d}{ENDING}"

    def remove_leftovers(self) -> None:
        """Remove what a killed process left half written of this case."""
        images = [self.image_path(channel) for channel in range(len(self.case.images))]
        for path in (*images, self.label_path, self.receipt_path):
            if path.parent.is_dir():
                remove_leftovers(path.parent, path.name)

    def inputs(self) -> dict[str, Any]:
        """What the outputs depend on: files by path, size and times, making, rules."""
        case, facts = self.case, self.facts
        sources = [*case.images, *([case.label] if case.label else [])]
        repair = None if case.repair is None else described(case.repair)
        rules = [sorted(facts.legal_values), str(facts.label_grid), list(facts.drop_values)]
        return {
            "version": VERSION,
            "set": facts.name,
            "split": str(case.split),
            "mode": str(self.mode),
            "labelled": case.label is not None,
            "sources": [_identity(source, self.extracted) for source in sources],
            "rules": [*rules, repair, list(case.notes)],
        }


def convert_case(payload: ConvertPayload) -> CaseResult:
    """Convert one case; `kept` where its receipt matches.

    raises DataRefused for a file that is damaged or does not fit its set, EnvironmentProblem
    where the source is gone or the target cannot be written.
    """
    try:
        inputs = payload.inputs()
        receipt = read_receipt(payload.receipt_path)
        if receipt and matches(receipt, inputs) and outputs_are_there(payload.folder, receipt):
            return CaseResult("kept", receipt.content)
        if receipt:
            remove_outputs(payload.folder, receipt)
        payload.remove_leftovers()
        content = {"inputs": inputs, **_Conversion(payload).run()}
    except OSError as error:
        lost = _lost_source(error)
        if lost is None:
            raise
        raise lost from error
    write_receipt(payload.receipt_path, Receipt(case=payload.case.name, content=content))
    return CaseResult("done", content)


def outputs_are_there(folder: Path, receipt: Receipt) -> bool:
    """Whether every output of a receipt exists with its size."""
    outputs: dict[str, int] = receipt.content.get("outputs", {})
    return all(_size(folder / name) == size for name, size in outputs.items())


def remove_outputs(folder: Path, receipt: Receipt) -> None:
    """Remove what a receipt speaks of, then nothing proves it any more."""
    (folder / RECEIPTS / f"{receipt.case}.json").unlink(missing_ok=True)
    for name in receipt.content.get("outputs", {}):
        (folder / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Loaded:
    """A volume and, where its voxels are those of a file, that file."""

    volume: Volume
    file: Path | None


class _Conversion:
    """The work on one case; `changes` collects what was done to it."""

    def __init__(self, payload: ConvertPayload) -> None:
        self._payload = payload
        self._case = payload.case
        self._facts = payload.facts
        self._changes: list[str] = list(payload.case.notes)
        self._values: dict[int, int] = {}

    def run(self) -> dict[str, Any]:
        images = [self._load(source, label=False) for source in self._case.images]
        self._check_channels(images)
        label = None if self._case.label is None else self._load(self._case.label, label=True)
        if label is not None:
            label = self._fitted(label, images[0].volume)
            self._changes += wrong_sides(label.volume, self._facts)
        outputs = [
            self._place(image, self._payload.image_path(channel), label=False)
            for channel, image in enumerate(images)
        ]
        if label is not None:
            outputs.append(self._place(label, self._payload.label_path, label=True))
        folder = self._payload.folder
        return {
            "outputs": {str(path.relative_to(folder)): path.stat().st_size for path in outputs},
            "changes": list(dict.fromkeys(self._changes)),
            "absent": [] if label is None else self._absent(),
        }

    def _load(self, source: Source, *, label: bool) -> _Loaded:
        if isinstance(source, Recipe):
            loaded = _Loaded(source.make(source.files), None)
        else:
            read = read_labels if label else read_image
            loaded = _Loaded(read(source), source)
        if self._case.repair is None:
            return loaded
        repaired, said = self._case.repair(loaded.volume)
        if said is not None:
            self._changes.append(said)
        return loaded if repaired is loaded.volume else _Loaded(repaired, None)

    def _check_channels(self, images: Sequence[_Loaded]) -> None:
        first = images[0].volume
        for other in (image.volume for image in images[1:]):
            if other.grid.compare(first.grid) is GridMatch.DIFFERENT:
                raise DataRefused(
                    "the channels of a case are on different grids",
                    file=other.path,
                    found=f"size {other.grid.shape_xyz}, spacing {other.grid.spacing_xyz}",
                    expected=f"size {first.grid.shape_xyz}, spacing {first.grid.spacing_xyz}",
                )

    def _fitted(self, label: _Loaded, image: Volume) -> _Loaded:
        """The label map with legal values, on the grid of the image and in its axis order."""
        label = self._on_image_grid(self._legal(label), image)
        if label.volume.native.orientation != image.native.orientation:
            self._changes.append(REORDERED)
            label = self._as_image(label.volume.array, label.volume, image)
        return label

    def _legal(self, label: _Loaded) -> _Loaded:
        volume = label.volume
        values, counts = np.unique(volume.array, return_counts=True)
        self._values = dict(zip(values.tolist(), counts.tolist(), strict=True))
        dropped = [value for value in self._values if value in self._facts.drop_values]
        wrong = [
            value for value in self._values if value not in {*self._facts.legal_values, *dropped}
        ]
        if wrong:
            raise DataRefused(
                "the label map holds values that the table of this set does not have",
                file=volume.path,
                found=", ".join(f"{v} ({self._values[v]} voxels)" for v in wrong[:10]),
                expected=", ".join(map(str, sorted(self._facts.legal_values)[:40])),
                fix="check that this is the file of this set",
            )
        if not dropped:
            return label
        for value in dropped:
            self._changes.append(f"label value {value} is set to background")
            del self._values[value]
        array = np.where(np.isin(volume.array, dropped), 0, volume.array).astype(volume.array.dtype)
        return _Loaded(dataclasses.replace(volume, array=array), None)

    def _on_image_grid(self, label: _Loaded, image: Volume) -> _Loaded:
        volume, policy = label.volume, self._facts.label_grid
        if volume.grid.compare(image.grid) is not GridMatch.DIFFERENT:
            return label
        same_shape = volume.native.grid.shape_zyx == image.native.grid.shape_zyx
        if policy is LabelGrid.COPY and same_shape:
            self._changes.append(COPIED_GEOMETRY)
            array = image.native.orientation.apply_array(stored(volume))
            return self._as_image(array, volume, image)
        if policy is LabelGrid.RESAMPLE:
            self._changes.append(RESAMPLED)
            return self._as_image(resample_labels(volume, image), volume, image)
        raise DataRefused(
            "the label map is not on the grid of its image",
            file=volume.path,
            found=f"size {volume.grid.shape_xyz}, affine {volume.native.grid.affine.tolist()}",
            expected=f"size {image.grid.shape_xyz}, affine {image.native.grid.affine.tolist()}",
            fix="copy both files again, or leave the case out",
        )

    def _as_image(self, array: Any, label: Volume, image: Volume) -> _Loaded:
        return _Loaded(Volume(array, image.grid, image.native, label.path), None)

    def _place(self, loaded: _Loaded, path: Path, *, label: bool) -> Path:
        ending = loaded.file and volume_ending(loaded.file)
        if loaded.file is not None and ending == ENDING:
            return place_file(loaded.file, path, self._payload.mode)
        if loaded.file is not None and ending == ".nii":
            self._changes.append(REPACKED)
            return compress(loaded.file, path)
        volume = loaded.volume
        if label:
            return write_labels(path, volume.array, volume.native)
        return write_image(path, volume.array, volume.native, dtype=volume.array.dtype)

    def _absent(self) -> list[str]:
        """Classes without a voxel, the not annotated ones aside."""
        return [
            name
            for name, value in self._facts.labels.items()
            if name not in self._case.not_annotated
            and not any(v in self._values for v in ([value] if isinstance(value, int) else value))
        ]


def wrong_sides(label: Volume, facts: SetFacts) -> list[str]:
    """Pairs of structures whose right one lies to the left of the other, by their centres.

    label: canonical, so that its last axis runs to the patient's right.
    """
    pairs = [*facts.right_of, *((right, left) for left, right in facts.mirror_pairs)]
    found = []
    for right, left in pairs:
        centres = [_centre_x(label, facts.labels[name]) for name in (right, left)]
        if centres[0] is not None and centres[1] is not None and centres[0] < centres[1]:
            found.append(f"{right} lies to the left of {left}: is it mirrored?")
    return found


def _centre_x(label: Volume, value: int | list[int]) -> float | None:
    counts = np.isin(label.array, value).sum(axis=(0, 1))
    total = int(counts.sum())
    return float(np.arange(len(counts)) @ counts) / total if total else None


def place_file(source: Path, target: Path, mode: TransferMode) -> Path:
    """Copy or link a file so that it appears under its name whole or not at all."""
    if mode is TransferMode.COPY:
        return publish(target, lambda temporary: _copy(source, temporary))
    return publish(target, lambda temporary: _link(source, temporary))


def compress(source: Path, target: Path) -> Path:
    """A .nii as .nii.gz: equal bytes inside, no name and no time, so equal files for equal ones."""

    def write(temporary: Path) -> None:
        with (
            source.open("rb") as plain,
            temporary.open("wb") as raw,
            gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed,
        ):
            shutil.copyfileobj(plain, packed)

    return publish(target, write)


def _copy(source: Path, temporary: Path) -> None:
    shutil.copyfile(source, temporary)


def _link(source: Path, temporary: Path) -> None:
    try:
        temporary.symlink_to(source.resolve())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise EnvironmentProblem(
            "links cannot be made here", file=temporary.parent, found=str(error), fix="use --copy"
        ) from error


def _identity(source: Source, extracted: Extracted | None) -> list[Any]:
    if isinstance(source, Recipe):
        files = [_identity(path, extracted) for path in source.files]
        return [source.described(), len(files), hash_json(files)]
    if extracted is not None:
        name = source.relative_to(extracted.folder).as_posix()
        return [name, source.stat().st_size, *_identity(extracted.archive, None)]
    return [str(source.absolute()), *_size_and_times(source)]


def _size_and_times(path: Path) -> tuple[int, int, int]:
    """`cp -p` and archives bring the old time of modification back, but not that of change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _lost_source(error: OSError) -> EnvironmentProblem | None:
    if isinstance(error, EnvironmentProblem) or error.errno not in _LOST:
        return None
    return EnvironmentProblem(
        "the disk of the source does not answer",
        file=error.filename,
        found=error.strerror,
        fix="bring the disk or network share back, then run the same line again",
    )
