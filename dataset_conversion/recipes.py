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
from iris_cli.volume.grid import Grid, GridMatch
from iris_cli.volume.orientation import canonical_orientation
from iris_cli.volume.reading import NativeGeometry, Volume, read_labels, smallest_label_type

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def volume_of(
    stored_zyx: npt.NDArray[Any], grid: Grid, path: Path, notes: tuple[str, ...] = ()
) -> Volume:
    """A volume out of an array (z, y, x) in the order of `grid`, which is written that way."""
    orientation = canonical_orientation(grid)
    array, canonical = orientation.apply(stored_zyx, grid)
    return Volume(array, canonical, NativeGeometry(grid, orientation, None, ".nii.gz"), path, notes)


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

    files: of one series. raises DataRefused where it is none, or slices are missing.
    """
    # SimpleITK, because GDCM in it decodes the compressed transfer syntaxes of real archives.
    import SimpleITK

    folder = files[0].parent
    try:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(dicom_order(files))
        image = reader.Execute()
    except RuntimeError as error:
        raise DataRefused(
            "these DICOM files are no series that can be stacked",
            file=folder,
            found=str(error).strip().splitlines()[-1][:200],
            fix="copy the folder again: a file is damaged or missing",
        ) from error
    return volume_of(SimpleITK.GetArrayFromImage(image), itk_grid(image), folder)


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
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataRefused("this is no DICOM image", file=path) from error
    normal = np.reshape(reader.GetDirection(), (3, 3))[:, 2]
    return float(np.dot(reader.GetOrigin(), normal))


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
    """The label map on the grid of the image, (z, y, x) canonical: the nearest voxel, 0 outside."""
    z, y, x = image.grid.shape_zyx
    result = np.zeros((z, y, x), label.array.dtype)
    rows, columns = np.meshgrid(np.arange(y), np.arange(x), indexing="ij")
    for plane in range(z):
        index = np.stack([columns, rows, np.full_like(rows, plane)], axis=-1)
        found = label.grid.world_to_voxel(image.grid.voxel_to_world(index))
        nearest = np.floor(found + 0.5).astype(np.int64)
        inside = ((nearest >= 0) & (nearest < label.grid.shape_xyz)).all(axis=-1)
        i, j, k = nearest[inside].T
        result[plane][inside] = label.array[k, j, i]
    return result
