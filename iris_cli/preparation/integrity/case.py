"""One case: its files are read, and everything that can be said of it alone is found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from iris_cli.errors import DataRefused, EnvironmentProblem, IrisError
from iris_cli.execution.jobs import CaseResult
from iris_cli.execution.stages import stage
from iris_cli.files.hashing import hash_array
from iris_cli.preparation.codes import Code
from iris_cli.preparation.findings import Finding
from iris_cli.preparation.integrity.cache import file_states, keep, read_kept
from iris_cli.preparation.integrity.geometry import check_geometry
from iris_cli.preparation.integrity.grids import check_channel_grid, check_label_grid
from iris_cli.preparation.integrity.labels import check_labels
from iris_cli.preparation.integrity.payload import CasePayload, CheckedCase
from iris_cli.preparation.integrity.sides import measure_sides
from iris_cli.preparation.integrity.voxels import check_voxels, guess
from iris_cli.preparation.measure import CaseFacts, ClassFacts, measure_classes
from iris_cli.volume.reading import Volume, read_image, read_labels


def check_case(payload: CasePayload) -> CaseResult:
    """All findings of one case as a `CheckedCase`, kept where the payload says so."""
    kept = read_kept(payload)
    if kept is not None:
        return CaseResult("kept", kept.model_dump(mode="json"))
    states = file_states(payload)
    checked = _check(payload)
    keep(payload, checked, states)
    return CaseResult("done", checked.model_dump(mode="json"))


def _check(payload: CasePayload) -> CheckedCase:
    findings: list[Finding] = []
    with stage("reading the images"):
        images = [_read(payload, path, findings) for path in payload.case.images]
    read = [(channel, volume) for channel, volume in enumerate(images) if volume is not None]
    label = None
    if payload.case.label is not None:
        with stage("reading the label map"):
            label = _read(payload, payload.case.label, findings, is_label=True)
    with stage("checking the image"):
        for channel, volume in read:
            findings += _check_image(payload, channel, volume, read[0][1])
        findings += _check_equal_voxels(payload, [volume for _, volume in read], label)
        guesses = tuple(guess(volume.array) for _, volume in read)
    if label is not None:
        with stage("checking the label map"):
            findings += check_labels(payload, label)
            if read:
                findings += check_label_grid(payload.place, label, read[0][1])
    with stage("measuring"):
        is_whole = len(read) == payload.channels
        return CheckedCase(
            findings=tuple(_without_repeats(findings)),
            facts=_facts(payload, read[0][1], label, guesses) if is_whole else None,
            label_hash=hash_array(label.array) if label is not None and label.array.any() else None,
            sides=() if label is None else measure_sides(label, payload.classes, payload.pairs),
        )


def _read(
    payload: CasePayload, path: Path, findings: list[Finding], *, is_label: bool = False
) -> Volume | None:
    """The volume with what its header says, or what keeps it from being read.

    raises EnvironmentProblem: that says nothing about the file, so nothing of it is kept.
    """
    try:
        volume = read_labels(path) if is_label else read_image(path)
    except EnvironmentProblem:
        raise
    except (IrisError, OSError) as error:
        findings.append(_unreadable(payload, path, error, is_label=is_label))
        return None
    findings += check_geometry(payload.place, volume)
    return volume


def _check_image(
    payload: CasePayload, channel: int, volume: Volume, first: Volume
) -> Iterator[Finding]:
    yield from check_voxels(payload, channel, volume)
    if volume is not first:
        yield from check_channel_grid(payload.place, channel, volume, first)


def _check_equal_voxels(
    payload: CasePayload, images: list[Volume], label: Volume | None
) -> Iterator[Finding]:
    """Files of one case that are copies of each other."""
    for index, volume in enumerate(images):
        twin = next((o for o in images[:index] if np.array_equal(o.array, volume.array)), None)
        if twin is not None:
            yield payload.place.finding(
                Code.SAME_CHANNELS,
                "two channels hold the same voxels",
                file=volume.path,
                found=f"{twin.path.name} and {volume.path.name}",
            )
        if label is not None and label.array.any() and np.array_equal(volume.array, label.array):
            yield payload.place.finding(
                Code.IMAGE_IS_LABEL, "image and label map hold the same voxels", file=volume.path
            )


def _facts(
    payload: CasePayload, image: Volume, label: Volume | None, guesses: tuple[str, ...]
) -> CaseFacts:
    case, grid = payload.case, image.grid
    z, y, x = (float(s) for s in grid.spacing_zyx)
    classes: dict[str, ClassFacts] = {}
    extent = 0.0
    if label is not None and case.role != "test":
        classes, extent = measure_classes(label.array, (z, y, x), payload.measured)
    return CaseFacts(
        case=case.name,
        subject=case.subject,
        role=case.role,
        shape_zyx=grid.shape_zyx,
        spacing_zyx_mm=(z, y, x),
        guesses=guesses,
        image_hash=hash_array(image.array),
        labelled=label is not None,
        classes=classes,
        extent_mm=extent,
    )


def _unreadable(payload: CasePayload, path: Path, error: Exception, *, is_label: bool) -> Finding:
    if not isinstance(error, IrisError):
        error = DataRefused("the file cannot be read", file=path, found=error)
    return payload.place.finding(
        _code_of(error, is_label=is_label),
        error.problem,
        file=error.file or path,
        found=error.found,
        expected=error.expected,
        fix=error.fix,
    )


def _code_of(error: IrisError, *, is_label: bool) -> Code:
    """Which kind of finding a reader's refusal is, by the words of its first line."""
    if is_label and "whole numbers" in error.problem:
        return Code.NON_INTEGER_LABELS
    if re.search(r"\b\d-D (image|volume)|every voxel holds \d+ numbers", error.problem):
        return Code.NOT_3D
    if "where the voxels are" in error.problem:
        return Code.NO_POSITION
    if re.search(r"affine|spacing|qform|axes of the volume", error.problem):
        return Code.BAD_GEOMETRY
    return Code.UNREADABLE


def _without_repeats(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Image and label map usually share what their headers say: said once."""
    said = set()
    for finding in findings:
        key = (finding.code, finding.message, finding.found)
        if finding.code not in _OF_HEADERS or key not in said:
            yield finding
        said.add(key)


_OF_HEADERS = frozenset(
    {
        Code.SFORM_QFORM, Code.SFORM_PIXDIM, Code.SHEARED, Code.AXES_REPAIRED, Code.UNIT_AFFINE,
        Code.ODD_EXTENT, Code.READER_NOTE,
    }
)  # fmt: skip
