"""Volumes from files: verified, in canonical orientation, with what an output needs to go back.

`read_image`, `read_labels` and `read_grid` are the only ways iris opens a volume. What was
assumed or repaired stands in `Volume.notes`; what cannot be believed is refused (DataRefused).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.hashing import hash_array
from iris_cli.volume.grid import Grid
from iris_cli.volume.nifti import (
    NiftiFields,
    NiftiHeader,
    parse_class_names,
    read_nifti,
    read_nifti_class_names,
    read_nifti_header,
)
from iris_cli.volume.orientation import Orientation, canonical_orientation
from iris_cli.volume.text_volumes import TextHeader, read_text_header, read_text_volume

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")

WHOLE_NUMBER = 1e-4
"""Distance from a whole number at which a label is still that number (float32 scaling)."""

LABEL_TYPES = tuple(
    np.dtype(name)
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "uint64")
)
"""Integer types from small to large, unsigned first."""

AssumedSpacing = float | Sequence[float] | None
"""Spacing in mm for files that give none: one number, or (x, y, z)."""


@dataclass(frozen=True)
class NativeGeometry:
    """Where and how a volume is stored: all that is needed to write a result beside it.

    grid: as stored, in mm, before reorientation. orientation: from stored to canonical.
    nifti_header: the header fields of a NIfTI file, None for other formats.
    assumed_spacing_xyz: what the user gave for a file without position.
    length_unit: of an NRRD or MetaImage header; the grid is in mm all the same.
    """

    grid: Grid
    orientation: Orientation
    nifti_header: NiftiFields | None
    format: str
    assumed_spacing_xyz: tuple[float, float, float] | None = None
    length_unit: str = "mm"

    @property
    def canonical_grid(self) -> Grid:
        return self.orientation.apply_grid(self.grid)


@dataclass(frozen=True)
class VolumeClaim:
    """What the header of a volume says, before any voxel is read.

    stored_type: in the file. value_type: in memory, once slope and intercept are applied.
    """

    native: NativeGeometry
    stored_type: np.dtype[Any]
    value_type: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume in memory.

    array: (z, y, x) in canonical orientation, C-contiguous, native byte order.
    grid: the canonical grid, RAS+ mm. notes: what the reader assumed, repaired or scaled.
    """

    array: npt.NDArray[Any]
    grid: Grid
    native: NativeGeometry
    path: Path
    notes: tuple[str, ...] = ()

    def content_hash(self) -> str:
        """sha256 over dtype, shape, voxels and affine; the file's bytes play no part."""
        return hash_array(self.array, self.grid.affine)


def volume_ending(path: Path | str) -> str | None:
    """The ending of a volume (`.nii.gz` as a whole), or None."""
    name = Path(path).name.lower()
    return next((ending for ending in VOLUME_ENDINGS if name.endswith(ending)), None)


def is_volume(path: Path | str) -> bool:
    """Whether the name is that of a volume; hidden files are not."""
    return volume_ending(path) is not None and not Path(path).name.startswith(".")


def volume_name(path: Path | str) -> str:
    """The file name without the ending of a volume."""
    ending = volume_ending(path)
    name = Path(path).name
    return name[: -len(ending)] if ending else name


def read_image(path: Path | str, *, assume_spacing: AssumedSpacing = None) -> Volume:
    """Read an image; numbers as stored, scl_slope and scl_inter applied.

    raises UsageError for a missing file or unknown ending, DataRefused for everything that is
    not a whole 3-D volume with a position.
    """
    path = Path(path)
    stored, native, notes = _read_stored(path, spacing_in_mm(assume_spacing))
    array, grid = native.orientation.apply(stored, native.grid)
    return Volume(array, grid, native, path, notes)


def read_labels(path: Path | str, *, assume_spacing: AssumedSpacing = None) -> Volume:
    """Read a label map as the smallest integer type that holds its values.

    Values stored as floats are accepted where they are whole. raises as `read_image`, and
    DataRefused for values that are not whole numbers.
    """
    path = Path(path)
    stored, native, notes = _read_stored(path, spacing_in_mm(assume_spacing))
    array, grid = native.orientation.apply(_whole(stored, path), native.grid)
    return Volume(array, grid, native, path, notes)


def read_grid(path: Path | str, *, assume_spacing: AssumedSpacing = None) -> NativeGeometry:
    """Read the geometry from the header alone; no voxel is read or verified."""
    return read_claim(path, assume_spacing=assume_spacing).native


def read_claim(path: Path | str, *, assume_spacing: AssumedSpacing = None) -> VolumeClaim:
    """Read geometry and types from the header alone; no voxel is read or verified."""
    path, ending = Path(path), known_ending(path)
    spacing = spacing_in_mm(assume_spacing)
    if ending.startswith(".nii"):
        nifti = read_nifti_header(path, spacing)
        native = native_of_nifti(nifti, ending, spacing)
        return VolumeClaim(native, nifti.dtype, nifti.value_type)
    text = read_text_header(path, spacing)
    return VolumeClaim(_native_of_text(text, ending, spacing), text.claim.dtype, text.claim.dtype)


def read_class_names(path: Path | str) -> dict[int, str]:
    """Class names (value -> name) that iris wrote into a label map; empty where there are none."""
    path = Path(path)
    if known_ending(path).startswith(".nii"):
        return read_nifti_class_names(path)
    return parse_class_names(read_text_header(path, (1.0, 1.0, 1.0)).claim.class_names.encode())


def known_ending(path: Path | str) -> str:
    """The ending of a volume; raises UsageError for any other file."""
    ending = volume_ending(path)
    if ending is None:
        raise UsageError(
            "this is no volume that iris reads",
            file=path,
            found=f"ending {Path(path).suffix!r}",
            expected=", ".join(VOLUME_ENDINGS),
            fix="convert the file, for instance to .nii.gz",
        )
    return ending


def smallest_label_type(lowest: int, highest: int) -> np.dtype[Any]:
    """The smallest integer type (unsigned first) that holds both."""
    for dtype in LABEL_TYPES:
        limits = np.iinfo(dtype)
        if limits.min <= lowest and highest <= limits.max:
            return dtype
    raise DataRefused("no integer type holds these labels", found=f"{lowest} to {highest}")


def _read_stored(
    path: Path, spacing: tuple[float, float, float] | None
) -> tuple[npt.NDArray[Any], NativeGeometry, tuple[str, ...]]:
    """Array in stored orientation, geometry, notes."""
    ending = known_ending(path)
    if ending.startswith(".nii"):
        content = read_nifti(path, spacing)
        native = native_of_nifti(content.header, ending, spacing)
        return content.array, native, content.header.notes
    header, array = read_text_volume(path, spacing)
    return array, _native_of_text(header, ending, spacing), header.notes


def native_of_nifti(
    header: NiftiHeader, ending: str, spacing: tuple[float, float, float] | None
) -> NativeGeometry:
    """The geometry of a header. spacing: that the user gave for files without position."""
    return NativeGeometry(
        grid=header.grid,
        orientation=canonical_orientation(header.grid),
        nifti_header=header.fields,
        format=ending,
        assumed_spacing_xyz=spacing if header.assumed_spacing else None,
    )


def _native_of_text(
    header: TextHeader, ending: str, spacing: tuple[float, float, float] | None
) -> NativeGeometry:
    return NativeGeometry(
        grid=header.grid,
        orientation=canonical_orientation(header.grid),
        nifti_header=None,
        format=ending,
        assumed_spacing_xyz=spacing if header.assumed_spacing else None,
        length_unit=header.claim.unit,
    )


def spacing_in_mm(assume_spacing: AssumedSpacing) -> tuple[float, float, float] | None:
    """One number or three as (x, y, z); raises UsageError where they are not positive."""
    if assume_spacing is None:
        return None
    edges = np.ravel(np.asarray(assume_spacing, dtype=np.float64)).tolist()
    edges = edges * 3 if len(edges) == 1 else edges
    if len(edges) != 3 or not all(math.isfinite(edge) and edge > 0 for edge in edges):
        raise UsageError(
            "an assumed spacing is one or three positive numbers",
            found=assume_spacing,
            expected="millimetres, as 0.8 or 0.8 0.8 3",
        )
    return (edges[0], edges[1], edges[2])


def _whole(array: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    """The array as smallest integer type; refused where a value is not whole."""
    if array.dtype.kind == "f":
        array = _rounded(array, path)
    dtype = smallest_label_type(int(array.min()), int(array.max()))
    return array.astype(dtype, copy=False)


def _rounded(array: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    rounded: npt.NDArray[Any] = np.rint(array)
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(array - rounded) <= WHOLE_NUMBER)
    if wrong.any():
        examples = ", ".join(f"{value:.6g}" for value in array[wrong][:4])
        raise DataRefused(
            "a label map must hold whole numbers",
            file=path,
            found=f"{int(wrong.sum())} voxels that are not whole, such as {examples}",
            expected="whole numbers",
            fix="give the label map, not a probability map; resample labels by nearest neighbour",
        )
    if max(-float(rounded.min()), float(rounded.max())) >= 2**53:
        raise DataRefused(
            "labels are too large to be exact",
            file=path,
            found=f"{rounded.min():g} to {rounded.max():g}",
            expected="values below 2**53",
        )
    whole: npt.NDArray[np.int64] = rounded.astype(np.int64)
    return whole
