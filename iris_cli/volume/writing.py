"""Volumes to files: published whole, read back and compared before they get their name.

A result keeps the header of its query (affine, sform, qform, codes, units) so that every viewer
puts it over the query, and nothing else of it: descriptions, file names and foreign extensions
carry identifiers. The same content gives the same bytes: deflate level 1, no time stamp, no name.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from iris_cli.errors import DataRefused, EnvironmentProblem, UsageError
from iris_cli.files.publish import publish
from iris_cli.volume.grid import Grid, GridMatch
from iris_cli.volume.nifti import CLASSES_FORMAT, COMMENT_ECODE, NiftiFields
from iris_cli.volume.orientation import AS_IT_IS
from iris_cli.volume.payload import DEFLATE, Packing
from iris_cli.volume.reading import (
    NativeGeometry,
    known_ending,
    read_image,
    read_labels,
    smallest_label_type,
)
from iris_cli.volume.text_headers import CLASSES_KEY, UNIT_MM
from iris_cli.volume.text_volumes import LPS_TO_RAS

LEVEL = 1
"""Deflate level of every output: higher ones cost minutes and gain the reader nothing."""

PIECE_BYTES = 1 << 24

HEADER_BYTES = 1 << 12
"""A header with its class names takes no more than this beside voxels that hardly deflate."""

SCANNER_CODE = 1
"""NIfTI code of an sform or qform that iris writes itself: scanner-based coordinates."""

MILLIMETRES = 2

IMAGE_IOS = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}
"""SimpleITK's writers, by name so that it does not choose one by trying."""


MAX_META_FIELD = 1 << 14
"""MetaIO copies fields into buffers of fixed size; longer class tables are left out."""

NIFTI1_LONGEST = 32767


def write_labels(
    path: Path | str,
    array: npt.NDArray[Any],
    native: NativeGeometry | Grid,
    *,
    class_names: Mapping[int, str] | None = None,
) -> Path:
    """Write a label map in the native orientation of its query.

    array: (z, y, x) whole numbers on the canonical grid; stored as the smallest integer type.
    native: of the query; or a Grid, and the voxels are stored in the order they have.
    class_names: value -> name, kept in a NIfTI header extension (NRRD, MetaImage: in a field).
    raises UsageError for arrays of other shape or type and endings that are not written.
    """
    path = Path(path)
    if array.dtype.kind not in "iub":
        raise UsageError("labels must be integers", file=path, found=f"type {array.dtype}")
    integers = array.astype(np.uint8) if array.dtype.kind == "b" else array
    return _write(path, smallest_labels(integers), native, class_names or {})


def smallest_labels(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Whole numbers as the smallest integer type that holds them."""
    return array.astype(smallest_label_type(int(array.min()), int(array.max())), copy=False)


def nibabel_image(
    stored: npt.NDArray[Any], native: NativeGeometry, class_names: Mapping[int, str]
) -> Any:
    """A nibabel image of a stored label map (z, y, x), with the header that its file would have."""
    import nibabel

    header = _nifti_header(stored, native, class_names)
    kinds = {nibabel.Nifti1Header: nibabel.Nifti1Image, nibabel.Nifti2Header: nibabel.Nifti2Image}
    return kinds[type(header)](stored.T, header.get_best_affine(), header)


def itk_image(
    stored: npt.NDArray[Any], native: NativeGeometry, class_names: Mapping[int, str]
) -> Any:
    """A SimpleITK image of a stored label map (z, y, x); class names in a field of its own."""
    image = _itk_image(stored, native)
    names = _class_json(class_names) if class_names else ""
    if 0 < len(names) < MAX_META_FIELD:
        image.SetMetaData(CLASSES_KEY, names)
    return image


def write_image(
    path: Path | str,
    array: npt.NDArray[Any],
    native: NativeGeometry | Grid,
    *,
    dtype: npt.DTypeLike = np.float32,
) -> Path:
    """Write an image, (z, y, x) on the canonical grid, as numbers of `dtype`.

    native and errors: as `write_labels`; types that no format holds are refused, too.
    """
    kind = np.dtype(dtype)
    if kind.kind not in "iuf" or kind.name in ("float16", "float128", "longdouble"):
        raise UsageError(
            f"images are not written as {kind.name}",
            file=path,
            expected="integers of 8 to 64 bits, float32 or float64",
        )
    return _write(Path(path), array.astype(dtype, copy=False), native, {})


def _write(
    path: Path,
    array: npt.NDArray[Any],
    native: NativeGeometry | Grid,
    class_names: Mapping[int, str],
) -> Path:
    ending = known_ending(path)
    if ending == ".mhd":
        raise UsageError(
            ".mhd is two files and is not written",
            file=path,
            expected="an ending that keeps header and voxels in one file",
            fix="use .mha",
        )
    if isinstance(native, Grid):
        native = NativeGeometry(native, AS_IT_IS, None, ending)
    geometry = native
    canonical_shape = geometry.canonical_grid.shape_zyx
    if array.shape != canonical_shape:
        raise UsageError(
            "array and geometry do not fit",
            file=path,
            found=f"shape (z, y, x) {array.shape}",
            expected=str(canonical_shape),
        )
    stored = geometry.orientation.restore(array)

    def write(temporary: Path) -> None:
        if ending.startswith(".nii"):
            _write_nifti(temporary, stored, geometry, class_names)
        else:
            _write_text_volume(temporary, stored, geometry, class_names)

    return publish(
        path,
        write,
        verify=lambda temporary: _verify(temporary, path, stored, geometry),
        needs=stored.nbytes + HEADER_BYTES,
    )


def _verify(temporary: Path, path: Path, stored: npt.NDArray[Any], native: NativeGeometry) -> None:
    """Read the file again; every voxel and the grid must be what was asked for."""
    read = read_labels if stored.dtype.kind in "iu" else read_image
    try:
        volume = read(temporary, assume_spacing=native.assumed_spacing_xyz)
    except DataRefused as error:
        raise _not_written(path, error.problem) from error
    # As stored, not as canonical: at ties of 45 degrees rounding decides which axis goes where.
    back, grid = volume.native.orientation.restore(volume.array), volume.native.grid
    if grid.compare(native.grid) is not GridMatch.EQUAL:
        raise _not_written(path, f"grid {grid.to_json()}")
    if not np.array_equal(back, stored, equal_nan=stored.dtype.kind == "f"):
        raise _not_written(path, "other voxels")


def _not_written(path: Path, found: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        "the written file does not read back as it should",
        file=path,
        found=found,
        expected="what was written",
        fix="check the disk and its free space; the file was not published",
    )


def _write_nifti(
    temporary: Path,
    stored: npt.NDArray[Any],
    native: NativeGeometry,
    class_names: Mapping[int, str],
) -> None:
    header = _nifti_header(stored, native, class_names)
    block = io.BytesIO()  # nibabel asks where it is while it pads extensions
    header.write_to(block)
    with temporary.open("wb") as file:
        deflated = temporary.name.lower().endswith(".gz")
        target = _Deflated(file) if deflated else file
        target.write(block.getvalue())
        for piece in _pieces(stored):
            target.write(piece)
        if isinstance(target, _Deflated):
            target.finish()


def _nifti_header(
    stored: npt.NDArray[Any], native: NativeGeometry, class_names: Mapping[int, str]
) -> Any:
    import nibabel

    fields = native.nifti_header
    version = fields.version if fields else 1
    if max(stored.shape) > NIFTI1_LONGEST:
        version = 2
    header = nibabel.Nifti1Header() if version == 1 else nibabel.Nifti2Header()
    header.set_data_dtype(stored.dtype)
    header.set_data_shape(stored.shape[::-1])
    header.set_slope_inter(1.0, 0.0)
    if fields is None:
        _set_geometry(header, native.grid)
    else:
        _copy_geometry(header, fields)
    if class_names:
        header.extensions.append(_class_extension(class_names))
    return header


def _set_geometry(header: Any, grid: Grid) -> None:
    header.set_xyzt_units(MILLIMETRES)
    header.set_sform(grid.affine, code=SCANNER_CODE)
    if grid.is_orthonormal:
        header.set_qform(grid.affine, code=SCANNER_CODE)
    else:  # a quaternion holds no shear; spacing still stands in pixdim
        header["pixdim"][1:4] = grid.spacing_xyz


def _copy_geometry(header: Any, fields: NiftiFields) -> None:
    header["pixdim"][:4] = fields.pixdim
    header["qform_code"], header["sform_code"] = fields.qform_code, fields.sform_code
    for letter, value in zip("bcd", fields.quatern_bcd, strict=True):
        header[f"quatern_{letter}"] = value
    for row, letter in enumerate("xyz"):
        header[f"qoffset_{letter}"] = fields.qoffset_xyz[row]
        header[f"srow_{letter}"] = fields.srow[4 * row : 4 * row + 4]
    header["xyzt_units"] = fields.xyzt_units


def _class_extension(class_names: Mapping[int, str]) -> Any:
    from nibabel.nifti1 import Nifti1Extension

    return Nifti1Extension(COMMENT_ECODE, _class_json(class_names).encode())


def _class_json(class_names: Mapping[int, str]) -> str:
    labels = {str(value): class_names[value] for value in sorted(class_names)}
    return json.dumps({"format": CLASSES_FORMAT, "labels": labels}, ensure_ascii=False)


class _Deflated:
    """A gzip file without time stamp and name, written through the fastest deflate there is."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._engine: Any = DEFLATE.compressobj(LEVEL, zlib.DEFLATED, Packing.GZIP.value)

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(self._engine.compress(data))

    def finish(self) -> None:
        self._file.write(self._engine.flush())


def _pieces(stored: npt.NDArray[Any]) -> Iterator[memoryview]:
    """The voxels in little-endian byte order, in pieces that a deflate engine takes."""
    little = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("<"))
    view = little.reshape(-1).view(np.uint8).data
    for start in range(0, len(view), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES]


def _write_text_volume(
    temporary: Path,
    stored: npt.NDArray[Any],
    native: NativeGeometry,
    class_names: Mapping[int, str],
) -> None:
    import SimpleITK

    image = itk_image(stored, native, class_names)
    if native.length_unit != "mm":
        image.SetMetaData("ITK_VoxelUnits", native.length_unit)
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO(IMAGE_IOS[temporary.suffix.lower()])
    writer.SetFileName(str(temporary))
    writer.UseCompressionOn()
    writer.SetCompressionLevel(LEVEL)
    try:
        writer.Execute(image)
    except RuntimeError as error:  # SimpleITK's only exception, also for a full disk
        raise _not_written(temporary, str(error).strip().splitlines()[-1]) from error
    if temporary.suffix.lower() == ".nrrd" and native.length_unit != "mm":
        _name_nrrd_unit(temporary, native.length_unit)


def _itk_image(stored: npt.NDArray[Any], native: NativeGeometry) -> Any:
    """A SimpleITK image (LPS+, in the header's unit) of a stored array and its geometry."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(stored)
    affine = LPS_TO_RAS @ native.grid.affine
    affine[:3] /= UNIT_MM[native.length_unit]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image


def _name_nrrd_unit(path: Path, unit: str) -> None:
    """Name the unit of length as NRRD does; ITK writes it as a key that only ITK reads."""
    header, end, voxels = path.read_bytes().partition(b"\n\n")
    lines = [line for line in header.split(b"\n") if not line.startswith(b"ITK_VoxelUnits:=")]
    at = next(n for n, line in enumerate(lines) if line.startswith(b"space origin:"))
    lines.insert(at, b"space units:" + f' "{unit}"'.encode() * 3)
    path.write_bytes(b"\n".join(lines) + end + voxels)
