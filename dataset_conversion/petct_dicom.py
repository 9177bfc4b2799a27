"""PET in SUV and lesions out of DICOM series (TCIA's form of FDG-PET-CT-Lesions).

pydicom is needed for what SimpleITK does not show: the dose in the radiopharmaceutical sequence,
and where the frames of a segmentation object are.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset_conversion.recipes import read_dicom_series, volume_of
from iris_cli.errors import DataRefused, EnvironmentProblem
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import Volume

SAME_PLACE = 0.1
"""Voxels up to which a frame of a segmentation lies on a slice of the PET."""

SAME_AXIS = 0.999
"""Cosine from which a row of a frame runs along that of the PET, or against it."""


def series_by_modality(series: Iterable[tuple[Path, ...]]) -> dict[str, list[tuple[Path, ...]]]:
    """Series by DICOM Modality (CT, PT, SEG), by the first file of each."""
    found: dict[str, list[tuple[Path, ...]]] = {}
    for files in series:
        found.setdefault(str(_header(files[0]).Modality), []).append(files)
    return found


def read_suv(files: Sequence[Path]) -> Volume:
    """A PET series in SUV (body weight).

    SUV = activity * weight / dose at the time of acquisition, with the dose decayed since its
    injection. source: lab-midas/TCIA_processing, tcia_dicom_to_nifti.py.
    raises DataRefused where the header does not hold what this needs.
    """
    volume = read_dicom_series(files)
    factor = np.float32(suv_factor(files[0]))
    return volume_of(
        volume.native.orientation.restore(volume.array).astype(np.float32) * factor,
        volume.native.grid,
        volume.path,
    )


def suv_factor(path: Path) -> float:
    """What turns Bq/ml into SUV (g/ml); raises DataRefused for another unit, missing numbers."""
    header = _header(path)
    if header.get("Units") != "BQML":
        raise DataRefused("this PET is not in Bq/ml", file=path, found=header.get("Units"))
    try:
        tracer = header.RadiopharmaceuticalInformationSequence[0]
        dose, half_life_s = (
            float(tracer.RadionuclideTotalDose),
            float(tracer.RadionuclideHalfLife),
        )
        waited_s = _seconds(header.AcquisitionTime) - _seconds(tracer.RadiopharmaceuticalStartTime)
        grams = 1000.0 * float(header.PatientWeight)
        factor: float = grams / (dose * 0.5 ** (waited_s / half_life_s))
    except (AttributeError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DataRefused(
            "dose, time or weight is missing in a PET header", file=path, found=str(error)
        ) from error
    if not (np.isfinite(factor) and factor > 0 and waited_s >= 0):
        raise DataRefused("dose, time or weight of a PET header are impossible", file=path)
    return factor


def read_lesions(files: Sequence[Path], *, slices: int) -> Volume:
    """A DICOM segmentation on the grid of its PET series; files: `slices` of the PET, then it.

    Each frame goes to the slice in whose plane it lies. Rows and columns that run against those of
    the PET are flipped by ImageOrientationPatient.
    raises DataRefused where a frame is on no slice.
    """
    pet = read_dicom_series(files[:slices])
    grid, path = pet.native.grid, files[slices]
    segmentation = _read(path)
    frames = _frames(segmentation, path)
    labels = np.zeros(grid.shape_zyx, np.uint8)
    if frames.shape[1:] != labels.shape[1:]:
        raise DataRefused(
            "frames of the segmentation are not of the size of the PET slices",
            file=path,
            found=frames.shape[1:],
            expected=labels.shape[1:],
        )
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    for frame, own in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        groups = own if "PlaneOrientationSequence" in own else shared
        orientation = groups.PlaneOrientationSequence[0].ImageOrientationPatient
        position = own.PlanePositionSequence[0].ImagePositionPatient
        plane, turned = _on_slice(frame, orientation, position, grid, path)
        labels[plane] |= (turned > 0).astype(np.uint8)
    return volume_of(labels, grid, path)


def _on_slice(
    frame: np.ndarray, orientation: Any, position: Any, grid: Grid, path: Path
) -> tuple[int, np.ndarray]:
    """The slice of a grid that a frame lies on, and the frame with rows and columns as there."""
    across, down = grid.direction.T[:2]
    column, row = _ras(orientation[:3]), _ras(orientation[3:])
    same_x, same_y = float(column @ across), float(row @ down)
    if min(abs(same_x), abs(same_y)) < SAME_AXIS:
        raise DataRefused("a frame is turned against the PET", file=path, found=list(orientation))
    x, y, z = grid.world_to_voxel(_ras(position)).tolist()
    nz, ny, nx = grid.shape_zyx
    corner = (0 if same_x > 0 else nx - 1, 0 if same_y > 0 else ny - 1, round(z))
    away = max(abs(a - b) for a, b in zip((x, y, z), corner, strict=True))
    if away > SAME_PLACE or not 0 <= corner[2] < nz:
        raise DataRefused(
            "a frame lies on no slice of the PET",
            file=path,
            found=f"its first voxel is the voxel ({x:.2f}, {y:.2f}, {z:.2f}) of the PET",
            fix="take the set in its NIfTI form",
        )
    return corner[2], frame[:: 1 if same_y > 0 else -1, :: 1 if same_x > 0 else -1]


def _frames(segmentation: Any, path: Path) -> np.ndarray:
    frames: np.ndarray = segmentation.pixel_array
    frames = frames[np.newaxis] if frames.ndim == 2 else frames
    if "PerFrameFunctionalGroupsSequence" not in segmentation:
        raise DataRefused("the segmentation does not say where its frames are", file=path)
    return frames


def _ras(triple: Any) -> np.ndarray:
    """Three numbers of a DICOM header, LPS+, as RAS+."""
    x, y, z = (float(value) for value in triple)
    return np.array([-x, -y, z])


def _seconds(time: object) -> float:
    """Seconds since midnight of a DICOM time, HHMMSS.FFFFFF."""
    text = str(time)
    return int(text[:2]) * 3600 + int(text[2:4]) * 60 + float(text[4:] or 0)


def _header(path: Path) -> Any:
    return _dicom(path, stop_before_pixels=True)


def _read(path: Path) -> Any:
    return _dicom(path, stop_before_pixels=False)


def _dicom(path: Path, *, stop_before_pixels: bool) -> Any:
    try:
        pydicom = importlib.import_module("pydicom")
    except ImportError as error:
        raise EnvironmentProblem(
            "pydicom is needed to read PET and segmentations in DICOM form",
            fix="pip install pydicom, or take the set in its NIfTI form",
        ) from error
    try:
        return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)
    except (pydicom.errors.InvalidDicomError, EOFError) as error:
        raise DataRefused("this is no DICOM file", file=path) from error
