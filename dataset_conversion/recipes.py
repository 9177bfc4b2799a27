"""Volumes that have to be made: frames of 4-D files, DICOM series, masks in several files.

Each function takes the files and gives a `Volume` (canonical orientation, as `volume.reading`
gives it). Nothing is interpolated here but in `resample_labels`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from gzip import BadGzipFile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.errors import DataRefused
from iris_cli.volume import resampling
from iris_cli.volume.grid import Grid, GridMatch
from iris_cli.volume.nifti import straightened
from iris_cli.volume.orientation import canonical_orientation
from iris_cli.volume.reading import NativeGeometry, Volume, read_labels, smallest_label_type

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MODALITY = "0008|0060"
_WHOLE_NUMBERS = ("CT", "MR")
_IMAGE_INTEGERS = (np.int16, np.uint16, np.int32)


def volume_of(
    stored_zyx: npt.NDArray[Any], grid: Grid, path: Path, notes: tuple[str, ...] = ()
) -> Volume:
    """A volume out of an array (z, y, x) in the order of `grid`, which is written that way.

    Axes that rounding bent are made perpendicular, as `volume.reading` does with a file.
    """
    grid, straightening = straightened(grid)
    orientation = canonical_orientation(grid)
    array, canonical = orientation.apply(stored_zyx, grid)
    native = NativeGeometry(grid, orientation, None, ".nii.gz")
    return Volume(array, canonical, native, path, tuple(dict.fromkeys((*notes, *straightening))))


def stored(volume: Volume) -> npt.NDArray[Any]:
    """The array (z, y, x) in the order of the file."""
    return volume.native.orientation.restore(volume.array)


def with_stored_affine(volume: Volume, affine: npt.NDArray[np.float64]) -> Volume:
    """The same stored voxels with another header: the stored affine, RAS+ mm."""
    grid = Grid(volume.native.grid.shape_zyx, affine)
    return volume_of(stored(volume), grid, volume.path, volume.notes)


def read_frame(files: Sequence[Path], *, frame: int, label: bool = False) -> Volume:
    """One frame of a 4-D NIfTI file; label: as integers.

    The affine is nibabel's, so that sheared or left-handed headers, which ITK refuses, are read.
    """
    path = files[0]
    image = _opened(path)
    if len(image.shape) != 4 or not 0 <= frame < image.shape[3]:
        raise DataRefused(
            f"there is no frame {frame} in this file",
            file=path,
            found=f"shape (x, y, z, frames) {image.shape}",
            expected=f"4-D with more than {frame} frames",
        )
    array = np.ascontiguousarray(_voxels(image, path, frame).transpose(2, 1, 0))
    return volume_of(whole(array, path) if label else array, grid_of(image), path)


def labelled_frames(path: Path) -> tuple[int, ...]:
    """The frames of a 4-D label map that hold anything."""
    array = _voxels(_opened(path), path)
    if array.ndim != 4:
        raise DataRefused(
            "this label map is not 4-D", file=path, found=f"shape (x, y, z, ...) {array.shape}"
        )
    return tuple(int(frame) for frame in np.flatnonzero(array.any(axis=(0, 1, 2))))


def _opened(path: Path) -> Any:
    """A nibabel image, because volume/ reads 3-D volumes only."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        return nibabel.load(path)
    except (ImageFileError, EOFError, zlib.error, BadGzipFile) as error:
        raise _damaged(path, error) from error


def _voxels(image: Any, path: Path, frame: int | None = None) -> npt.NDArray[Any]:
    try:
        return np.asarray(image.dataobj if frame is None else image.dataobj[..., frame])
    except (EOFError, ValueError, zlib.error, BadGzipFile) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataRefused:
    return DataRefused(
        "the file is cut short or damaged",
        file=path,
        found=str(error).partition("\n")[0][:200],
        fix="copy or download it again",
    )


def merge_masks(files: Sequence[Path], *, values: Sequence[int]) -> Volume:
    """One label map out of one mask file per class; where masks overlap the later one wins.

    values: of each file, in the order of `files`. raises DataRefused where grids differ.
    """
    first = read_labels(files[0])
    merged = np.zeros(first.array.shape, smallest_label_type(0, max(values)))
    for path, value in zip(files, values, strict=True):
        mask = read_labels(path)
        if mask.grid.compare(first.grid) is GridMatch.DIFFERENT:
            raise DataRefused("the masks of a case are on different grids", file=path)
        merged[mask.array > 0] = value
    return Volume(merged, first.grid, first.native, first.path, first.notes)


def read_dicom_series(files: Sequence[Path]) -> Volume:
    """A DICOM series as one volume: slices in the order of their positions, rescaled values.

    files: of one series. returns: float32; of CT and MR, where every value is whole, the smallest
    integer type of 16 bits or more.
    raises DataRefused where it is no series, or slices are missing.
    """
    # SimpleITK, because GDCM in it decodes the compressed transfer syntaxes of real archives.
    import SimpleITK

    folder = files[0].parent
    try:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(dicom_order(files))
        # The slope may differ from slice to slice, and ITK takes the type of the first one for all.
        reader.SetOutputPixelType(SimpleITK.sitkFloat32)
        image = reader.Execute()
    except RuntimeError as error:
        raise DataRefused(
            "these DICOM files are no series that can be stacked",
            file=folder,
            found=str(error).strip().splitlines()[-1][:200],
            fix="copy the folder again: a file is damaged or missing",
        ) from error
    array = SimpleITK.GetArrayFromImage(image)
    header = _dicom_header(files[0])
    modality = header.GetMetaData(_MODALITY) if header.HasMetaDataKey(_MODALITY) else ""
    if modality.strip() in _WHOLE_NUMBERS:
        array = _as_integers(array)
    return volume_of(array, itk_grid(image), folder)


def _as_integers(array: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """The smallest integer type that holds every value; the array as it is where none does."""
    if not np.array_equal(array, np.rint(array)):
        return array
    lowest, highest = float(array.min()), float(array.max())
    for kind in _IMAGE_INTEGERS:
        limits = np.iinfo(kind)
        if limits.min <= lowest and highest <= limits.max:
            return array.astype(kind)
    return array


def dicom_order(files: Sequence[Path]) -> list[str]:
    """DICOM files of one series, sorted along the normal of their planes; equal steps checked.

    raises DataRefused for a gap or two slices in one place.
    """
    placed = sorted((_position_along_normal(path), path) for path in files)
    steps = np.diff([position for position, _ in placed])
    if len(steps) and (steps.min() <= 0 or steps.max() - steps.min() > 0.1 * np.median(steps)):
        raise DataRefused(
            "the slices of a series are not evenly spaced",
            file=files[0].parent,
            found=f"steps of {steps.min():.3g} to {steps.max():.3g} mm in {len(files)} files",
            expected="equal steps",
            fix="copy the folder again: slices are missing or of two series",
        )
    return [str(path) for _, path in placed]


def _position_along_normal(path: Path) -> float:
    header = _dicom_header(path)
    normal = np.reshape(header.GetDirection(), (3, 3))[:, 2]
    return float(np.dot(header.GetOrigin(), normal))


def _dicom_header(path: Path) -> Any:
    """A SimpleITK reader that has read the header of a file."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataRefused("this is no DICOM image", file=path) from error
    return reader


def itk_grid(image: Any) -> Grid:
    """The grid of a SimpleITK image, RAS+."""
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (3, 3))
    affine[:3, :3] = direction * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    x, y, z = image.GetSize()
    return Grid((z, y, x), _LPS_TO_RAS @ affine)


def grid_of(image: Any) -> Grid:
    """The grid of the first three axes of a nibabel image."""
    x, y, z = image.shape[:3]
    return Grid((z, y, x), image.affine)


def whole(array: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    """Labels as the smallest integer type; raises DataRefused where a value is not whole."""
    rounded = np.rint(array)
    if not np.allclose(array, rounded, atol=1e-4):
        raise DataRefused("a label map must hold whole numbers", file=path)
    kind = smallest_label_type(int(rounded.min()), int(rounded.max()))
    integers: npt.NDArray[Any] = rounded.astype(kind)
    return integers


def resample_labels(label: Volume, image: Volume) -> npt.NDArray[Any]:
    """The label map on the grid of the image, (z, y, x) canonical: largest linear weight.

    Outside of the label map is 0: it is resampled with a margin of one empty voxel.
    """
    shift = np.eye(4)
    shift[:3, 3] = -1
    z, y, x = label.grid.shape_zyx
    wider = Grid((z + 2, y + 2, x + 2), label.grid.affine @ shift)
    return resampling.resample_labels(np.pad(label.array, 1), wider, image.grid)
