"""Images in memory: arrays, nibabel and SimpleITK images as volumes, and results as the same kind.

Geometry is taken, repaired and refused as from a file of that kind. SimpleITK is not imported: who
has an image of it has it loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from iris_cli.errors import DataRefused, UsageError
from iris_cli.volume.grid import Affine, Grid
from iris_cli.volume.nifti import located_grid, parse_nifti_image, straightened, three_axes
from iris_cli.volume.orientation import canonical_orientation
from iris_cli.volume.reading import (
    AssumedSpacing,
    NativeGeometry,
    Volume,
    native_of_nifti,
    spacing_in_mm,
)
from iris_cli.volume.text_volumes import LPS_TO_RAS
from iris_cli.volume.writing import itk_image, nibabel_image, smallest_labels

Image = TypeVar("Image")
Labels = npt.NDArray[Any]

ARRAY = Path("array in memory")
NIBABEL = Path("nibabel image in memory")
SIMPLEITK = Path("SimpleITK image in memory")


@dataclass(frozen=True)
class MemoryImage(Generic[Image]):
    """An image as a volume, and the way back.

    like: labels (z, y, x) on the volume's canonical grid and value -> name to the kind of the
    image, with its geometry, of the smallest integer type.
    """

    volume: Volume
    like: Callable[[Labels, Mapping[int, str]], Image]


def open_image(
    image: Image,
    *,
    affine: npt.ArrayLike | None = None,
    spacing_xyz: AssumedSpacing = None,
) -> MemoryImage[Image]:
    """An image in memory as a volume.

    image: numpy array (z, y, x), nibabel image, or SimpleITK image of one component. affine:
    (4, 4), voxel indices (x, y, z) to RAS+ mm, of an array. spacing_xyz: mm, one number or three,
    of an array without affine, whose axes are then taken to run to superior, anterior and right, or
    of a nibabel image without position.
    raises UsageError for another kind of image, and for an array without or an image with both;
    DataRefused for what is no 3-D volume of plain numbers.
    """
    itk = sys.modules.get("SimpleITK")
    if isinstance(image, np.ndarray):
        return _of_array(image, affine, spacing_xyz)
    if affine is not None:
        raise UsageError("the image has an affine of its own", fix="leave `affine` out")
    if itk is not None and isinstance(image, itk.Image):
        return _of_simpleitk(image)
    if hasattr(image, "dataobj") and hasattr(image, "affine"):
        return _of_nibabel(image, spacing_xyz)
    raise UsageError(
        "this is no image that iris knows",
        found=type(image).__name__,
        expected="a numpy array (z, y, x), a nibabel image or a SimpleITK image",
    )


def _of_array(
    array: npt.NDArray[Any], affine: npt.ArrayLike | None, spacing_xyz: AssumedSpacing
) -> MemoryImage[Any]:
    if (affine is None) == (spacing_xyz is None):
        raise UsageError(
            "an array needs an affine or a spacing",
            found="neither" if affine is None else "both",
            fix="give affine=(4, 4) to RAS+ mm, or spacing_xyz=(x, y, z) in mm",
        )
    shape_zyx = three_axes(list(array.shape[::-1]), ARRAY)[::-1]
    if affine is not None:
        grid, notes = _grid(shape_zyx, np.asarray(affine, np.float64), ARRAY)
    else:
        spacing = spacing_in_mm(spacing_xyz)
        assert spacing is not None
        grid, notes = Grid.from_spacing(shape_zyx, spacing), ()
    volume = _volume(array, grid, ARRAY, notes)
    return MemoryImage(volume, lambda labels, _: _stored(labels, volume))


def _of_nibabel(image: Any, spacing_xyz: AssumedSpacing) -> MemoryImage[Any]:
    import nibabel

    if not isinstance(image.header, nibabel.Nifti1Header):  # also NIfTI-2; MGH and others are not
        return _of_other_nibabel(image)
    stored, scaling = _unscaled(image.dataobj)
    spacing = spacing_in_mm(spacing_xyz)
    content = parse_nifti_image(image.header, stored, scaling, NIBABEL, spacing)
    _refuse_other_types(content.array, NIBABEL)
    native = native_of_nifti(content.header, ".nii", spacing)
    array, grid = native.orientation.apply(content.array, native.grid)
    volume = Volume(array, grid, native, NIBABEL, content.header.notes)
    return MemoryImage(
        volume, lambda labels, names: nibabel_image(_stored(labels, volume), native, names)
    )


def _of_other_nibabel(image: Any) -> MemoryImage[Any]:
    array = np.asanyarray(image.dataobj)
    x, y, z = three_axes(list(array.shape), NIBABEL)
    grid, notes = _grid((z, y, x), np.asarray(image.affine, np.float64), NIBABEL)
    volume = _volume(array.T.reshape(z, y, x), grid, NIBABEL, notes)

    def like(labels: Labels, _: Mapping[int, str]) -> Any:
        stored = _stored(labels, volume)
        # Not every format has the smallest type, and all have int32.
        return type(image)(stored.T.astype(np.int32), image.affine)

    return MemoryImage(volume, like)


def _of_simpleitk(image: Any) -> MemoryImage[Any]:
    import SimpleITK

    if image.GetNumberOfComponentsPerPixel() != 1:
        raise DataRefused(
            "every voxel holds several numbers",
            file=SIMPLEITK,
            found=f"{image.GetNumberOfComponentsPerPixel()} components",
            expected="one number per voxel",
        )
    x, y, z = three_axes(list(image.GetSize()), SIMPLEITK)
    if image.GetDimension() != 3:
        raise DataRefused(
            "the image has other than three axes",
            file=SIMPLEITK,
            found=f"{image.GetDimension()} axes",
            fix="take one frame, as `image[:, :, :, 0]`",
        )
    affine: Affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    grid, notes = _grid((z, y, x), LPS_TO_RAS @ affine, SIMPLEITK)
    volume = _volume(SimpleITK.GetArrayFromImage(image), grid, SIMPLEITK, notes)

    def like(labels: Labels, names: Mapping[int, str]) -> Any:
        result = itk_image(_stored(labels, volume), volume.native, names)
        # Bit for bit, which a way over the affine is not.
        result.SetSpacing(image.GetSpacing())
        result.SetOrigin(image.GetOrigin())
        result.SetDirection(image.GetDirection())
        return result

    return MemoryImage(volume, like)


def _grid(
    shape_zyx: tuple[int, int, int], affine: Affine, where: Path
) -> tuple[Grid, tuple[str, ...]]:
    return straightened(located_grid(shape_zyx, affine, where))


def _volume(array: npt.NDArray[Any], grid: Grid, where: Path, notes: tuple[str, ...]) -> Volume:
    _refuse_other_types(array, where)
    native = NativeGeometry(grid, canonical_orientation(grid), None, ".nii")
    turned, canonical = native.orientation.apply(array, grid)
    return Volume(turned, canonical, native, where, notes)


def _refuse_other_types(array: npt.NDArray[Any], where: Path) -> None:
    if array.dtype.kind not in "iuf":
        raise DataRefused(
            "the voxels are not plain numbers",
            file=where,
            found=f"type {array.dtype}",
            expected="integers or real floating point numbers",
        )


def _unscaled(dataobj: Any) -> tuple[npt.NDArray[Any], tuple[float, float]]:
    """Voxels as stored, so that scaling is done as it is for files."""
    if hasattr(dataobj, "get_unscaled"):
        return np.asarray(dataobj.get_unscaled()), (float(dataobj.slope), float(dataobj.inter))
    return np.asarray(dataobj), (1.0, 0.0)


def _stored(labels: Labels, volume: Volume) -> Labels:
    """In the axes of the image, in the smallest integer type."""
    return volume.native.orientation.restore(smallest_labels(labels))
