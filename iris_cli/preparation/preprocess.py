"""One raw case into the preprocessed store: a pure function from case to receipt.

Every channel becomes a view (`store`). A view is kept when its receipt has the same inputs: content
hashes of the voxels read, and every parameter the result depends on. Reading all voxels again only
to find that nothing changed would make resuming as slow as starting, so a file whose path, size and
times are those in the receipt's `run` section is taken to have the content it had.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.errors import DataRefused
from iris_cli.execution.outcomes import CaseResult
from iris_cli.execution.receipts import Receipt, matches, write_receipt
from iris_cli.execution.stages import stage
from iris_cli.files.publish import remove_leftovers
from iris_cli.preparation.prepare import PreparedImage, prepare_image
from iris_cli.preparation.profiles import PROFILE, guess_modality
from iris_cli.preparation.store import (
    STORE_VERSION,
    Role,
    StoredCase,
    StoredClass,
    describe_classes,
    read_stored_receipt,
    receipt_path,
    slabs_of,
    view_name,
    write_case,
)
from iris_cli.volume.grid import Grid, GridMatch
from iris_cli.volume.reading import Volume, read_grid, read_image, read_labels
from iris_cli.volume.resampling import resample_labels
from iris_cli.volume.state import VolumeState, volume_state

GUESS = "guess"  # a set without one modality: every case by its own voxels


@dataclass(frozen=True)
class PreprocessPayload:
    """All that `preprocess_case` needs, picklable.

    images: one file per channel; modalities: `ct`, `other` or `guess` for each.
    classes: name -> raw values, background left out. absent_is_background: False where a class
    that is not in a label map was not contoured there.
    """

    folder: Path
    set: str
    case: str
    subject: str
    role: Role
    images: tuple[Path, ...]
    label: Path | None
    modalities: tuple[str, ...]
    classes: Mapping[str, tuple[int, ...]]
    ignore_value: int | None
    not_annotated: frozenset[str]
    absent_is_background: bool
    spacing_mm: float

    def parameters(self, channel: int) -> dict[str, Any]:
        """What the stored view depends on besides voxels; JSON values only."""
        return {
            "profile": PROFILE,
            "store": STORE_VERSION,
            "set": self.set,
            "subject": self.subject,
            "role": self.role,
            "channel": channel,
            "modality": self.modalities[channel],
            "spacing_mm": self.spacing_mm,
            "classes": {name: list(values) for name, values in self.classes.items()},
            "ignore_value": self.ignore_value,
            "not_annotated": sorted(self.not_annotated),
            "absent_is_background": self.absent_is_background,
        }


def preprocess_case(payload: PreprocessPayload) -> CaseResult:
    """Bring one case into the store, or keep what is there.

    raises DataRefused where image and label (or two channels) are not on one grid, a label map
    holds undeclared values, or a file cannot be read.
    """
    remove_leftovers_of(payload)
    receipts = [_kept(payload, channel) for channel in range(len(payload.images))]
    kept = [receipt for receipt in receipts if receipt is not None]
    if len(kept) == len(receipts):
        return CaseResult(status="kept", receipt=_summary(kept))
    written = _write_views(payload, [c for c, receipt in enumerate(receipts) if receipt is None])
    return CaseResult(status="done", receipt=_summary(kept + written))


def remove_leftovers_of(payload: PreprocessPayload) -> None:
    """Remove partial files that a killed process left for the views of this case."""
    if not payload.folder.is_dir():
        return
    names = [view_name(payload.case, channel) for channel in range(len(payload.images))]
    endings = (".image.b2nd", ".label.b2nd", ".json")
    remove_leftovers(payload.folder, *(name + ending for name in names for ending in endings))


@dataclass(frozen=True)
class _LabelView:
    """The label map on the working grid, with what is known of its classes."""

    array: npt.NDArray[np.integer[Any]]
    classes: dict[str, StoredClass]
    unknown: frozenset[str]
    content_hash: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _ImageView:
    """One channel on the working grid; its native voxels are gone."""

    prepared: PreparedImage
    modality: str
    content_hash: str
    notes: tuple[str, ...]


def _write_views(payload: PreprocessPayload, channels: list[int]) -> list[Receipt]:
    """The native label map and the native channels are in memory one at a time."""
    states = [_file_states(payload, c) for c in range(len(payload.images))]  # before reading
    with stage("reading the image", payload.images[0]):
        grid = read_grid(payload.images[0]).canonical_grid
    label = None if payload.label is None else _label_view(payload, grid)
    receipts = []
    for channel in channels:
        started = time.perf_counter()
        image = _image_view(payload, channel, grid)
        run = {"sources": states[channel], "started": started}
        receipts.append(_write_view(payload, channel, image, label, run))
    return receipts


def _image_view(payload: PreprocessPayload, channel: int, grid: Grid) -> _ImageView:
    path, asked = payload.images[channel], payload.modalities[channel]
    with stage("reading the image", path):
        volume = read_image(path)
        content_hash = volume.content_hash()
    with stage("checking the image", path):
        volume = _on_grid(volume, grid, what=f"channel {channel}", image=payload.images[0])
    with stage("normalising and resampling the image", path):
        modality = guess_modality(volume.array) if asked == GUESS else asked
        prepared = prepare_image(volume, modality, payload.spacing_mm, dtype=np.float16)
    return _ImageView(prepared, modality, content_hash, volume.notes)


def _write_view(
    payload: PreprocessPayload,
    channel: int,
    image: _ImageView,
    label: _LabelView | None,
    run: dict[str, Any],
) -> Receipt:
    prepared = image.prepared
    stored = StoredCase(
        case=payload.case,
        set=payload.set,
        subject=payload.subject,
        role=payload.role,
        channel=channel,
        modality=image.modality,
        spacing_mm=payload.spacing_mm,
        grid=prepared.grid.to_json(),
        shape=prepared.grid.shape_zyx,
        fill=prepared.fill,
        nonfinite=prepared.nonfinite,
        statistics=prepared.statistics,
        classes={} if label is None else label.classes,
        not_annotated=tuple(sorted(payload.not_annotated if label is None else label.unknown)),
        ignore_value=payload.ignore_value,
        labelled=label is not None,
    )
    inputs = {
        "image": image.content_hash,
        "label": None if label is None else label.content_hash,
        "parameters": payload.parameters(channel),
    }
    notes = [*image.notes, *(label.notes if label is not None else ())]
    seconds = round(time.perf_counter() - run.pop("started"), 3)
    run |= {"seconds": seconds, "notes": notes}
    array = None if label is None else label.array
    with stage("writing to the store", payload.folder / f"{stored.name}.json"):
        return write_case(payload.folder, stored, prepared.array, array, inputs=inputs, run=run)


def _label_view(payload: PreprocessPayload, image_grid: Grid) -> _LabelView:
    """Read, check and resample the label map; classes that vanish by resampling are not annotated.

    A structure that is present but too small for the working grid is neither there nor absent: it
    may not be learned as empty.
    """
    assert payload.label is not None
    with stage("reading the label map", payload.label):
        volume = read_labels(payload.label)
        content_hash = volume.content_hash()
    with stage("checking the label map", payload.label):
        aligned = _on_grid(volume, image_grid, what="label map", image=payload.images[0])
        # Slab by slab: sorting a whole volume takes another one of memory.
        present = {int(v) for slab in slabs_of(aligned.array) for v in np.unique(slab)}
        _refuse_undeclared(payload, present)
    with stage("resampling the label map", payload.label):
        working = resample_labels(aligned.array, image_grid, image_grid.working(payload.spacing_mm))
        classes = describe_classes(working, payload.classes, seed=f"{payload.set}/{payload.case}")
    there = {name for name, values in payload.classes.items() if present & set(values)}
    vanished = sorted(name for name in there if classes[name].voxels == 0)
    unknown = set(payload.not_annotated) | set(vanished)
    if not payload.absent_is_background:
        unknown |= set(payload.classes) - there
    notes = tuple(f"class {name} has no voxel left at the working spacing" for name in vanished)
    return _LabelView(working, classes, frozenset(unknown), content_hash, (*aligned.notes, *notes))


def _on_grid(volume: Volume, grid: Grid, *, what: str, image: Path) -> Volume:
    """The volume taken to lie on the image's grid, which it must match (CONTRACT, Grid)."""
    match = volume.grid.compare(grid)
    if match is GridMatch.EQUAL:
        return volume
    if match is GridMatch.DIFFERENT:
        raise DataRefused(
            f"the {what} is not on the grid of its image",
            file=volume.path,
            found=_describe(volume.grid),
            expected=f"{_describe(grid)}, as {image.name}",
            fix="resample one of them outside iris, or correct its header",
        )
    note = f"{what} differs from its image's grid by rounding; the image's grid is used"
    return dataclasses.replace(volume, grid=grid, notes=(*volume.notes, note))


def _describe(grid: Grid) -> str:
    spacing = " x ".join(f"{s:.6g}" for s in grid.spacing_xyz)
    origin = ", ".join(f"{v:.6g}" for v in grid.affine[:3, 3])
    return f"shape (x, y, z) {grid.shape_xyz}, spacing {spacing} mm, origin ({origin}) mm"


def _refuse_undeclared(payload: PreprocessPayload, present: set[int]) -> None:
    declared = {0}.union(*payload.classes.values())
    if payload.ignore_value is not None:
        declared.add(payload.ignore_value)
    undeclared = sorted(present - declared)
    if undeclared:
        raise DataRefused(
            "the label map holds values that no class declares",
            file=payload.label,
            found=undeclared[:20],
            expected=sorted(declared),
            fix="declare them under `labels` in dataset.json, or correct the label map",
        )


def is_current(payload: PreprocessPayload) -> bool:
    """Whether every view is kept without reading a voxel: files untouched, parameters the same."""
    for channel in range(len(payload.images)):
        receipt = read_stored_receipt(payload.folder, view_name(payload.case, channel))
        if receipt is None:
            return False
        if receipt.content["inputs"].get("parameters") != payload.parameters(channel):
            return False
        if receipt.run.get("sources") != _file_states(payload, channel):
            return False
    return True


def _kept(payload: PreprocessPayload, channel: int) -> Receipt | None:
    """The receipt of a view that need not be computed again, else None."""
    receipt = read_stored_receipt(payload.folder, view_name(payload.case, channel))
    if receipt is None:
        return None
    before = receipt.content["inputs"]
    if before.get("parameters") != payload.parameters(channel):
        return None
    states = _file_states(payload, channel)
    seen = receipt.run.get("sources", {})
    inputs = {
        "image": before["image"]
        if states["image"] == seen.get("image")
        else read_image(payload.images[channel]).content_hash(),
        "label": before["label"]
        if states["label"] == seen.get("label")
        else _label_hash(payload.label),
        "parameters": payload.parameters(channel),
    }
    if not matches(receipt, inputs):
        return None
    if seen != states:
        # So that the next run need not read the files either.
        receipt = receipt.model_copy(update={"run": {**receipt.run, "sources": states}})
        write_receipt(receipt_path(payload.folder, receipt.case), receipt, indent=None)
    return receipt


def _label_hash(path: Path | None) -> str | None:
    return None if path is None else read_labels(path).content_hash()


def _file_states(payload: PreprocessPayload, channel: int) -> dict[str, VolumeState | None]:
    label = None if payload.label is None else volume_state(payload.label)
    return {"image": volume_state(payload.images[channel]), "label": label}


def _summary(receipts: list[Receipt]) -> dict[str, Any]:
    """What the run summary keeps of a case: views, bytes, notes."""
    return {
        "views": sorted(r.case for r in receipts),
        "bytes": sum(sum(r.run.get("bytes", {}).values()) for r in receipts),
        "notes": sorted({note for r in receipts for note in r.run.get("notes", [])}),
    }
