"""NIfTI-1 and NIfTI-2 single files: header, claim, geometry, voxels.

The fields of a header are found by `nifti_layout`; the bytes are read and verified by `payload`.
Only what geometry and units need is kept of a header (`NiftiFields`): descriptions, file names
and extensions carry identifiers of patients and go no further.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.errors import DataRefused
from iris_cli.volume.grid import Affine, Grid, GridMatch
from iris_cli.volume.nifti_layout import (
    HEADER_SIZES,
    OTHER_TYPES,
    VALUE_TYPES,
    header_layout,
    quaternion_rotation,
)
from iris_cli.volume.payload import (
    FIX_DAMAGED,
    InflatedFile,
    Packing,
    check_claim,
    opened,
    read_claimed,
)

UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres per unit of NIfTI's code for spatial units; 0 is unknown and means millimetres."""

UNIT_NAMES = {1: "metres", 3: "micrometres"}

COMMENT_ECODE = 6
CLASSES_FORMAT = "iris-classes-1"

MAX_EXTENSION_BYTES = 1 << 24
"""Bytes between header and voxels that are looked at for class names; the rest is passed over."""

SAME_EDGE = 0.01
"""Part of a voxel edge by which pixdim may differ from the sform without a note."""


@dataclass(frozen=True)
class NiftiFields:
    """The header fields an output takes over from its query, bit for bit.

    version: 1 or 2. pixdim: qfac and the three spacings, in the file's unit.
    srow: rows of the sform, 12 numbers. xyzt_units: NIfTI's code.
    """

    version: int
    pixdim: tuple[float, ...]
    qform_code: int
    sform_code: int
    quatern_bcd: tuple[float, ...]
    qoffset_xyz: tuple[float, ...]
    srow: tuple[float, ...]
    xyzt_units: int


@dataclass(frozen=True)
class NiftiHeader:
    """What a header claims, after the checks that need no voxel."""

    fields: NiftiFields
    grid: Grid
    dtype: np.dtype[Any]
    slope: float
    inter: float
    offset: int
    assumed_spacing: bool
    notes: tuple[str, ...]

    @property
    def voxel_bytes(self) -> int:
        return math.prod(self.grid.shape_zyx) * self.dtype.itemsize

    @property
    def value_type(self) -> np.dtype[Any]:
        """Type of the values in memory: scaled ones are float32 where 16 bits or fewer were stored.

        In native byte order, whatever that of the file.
        """
        native = self.dtype.newbyteorder("=")
        if (self.slope, self.inter) == (1.0, 0.0):
            return native if native.itemsize <= 8 else np.dtype(np.float64)
        small = native.itemsize <= (2 if native.kind in "iu" else 4)
        return np.dtype(np.float32 if small else np.float64)


@dataclass(frozen=True, eq=False)
class NiftiContent:
    """A verified file: header, stored array (z, y, x) with scaling applied, class names."""

    header: NiftiHeader
    array: npt.NDArray[Any]
    class_names: dict[int, str]


def read_nifti_header(path: Path, assume_spacing_xyz: tuple[float, ...] | None) -> NiftiHeader:
    """Header and geometry only; of a compressed file only the first block is inflated."""
    with opened(path) as (file, size):
        header, _, _ = _open_stream(
            InflatedFile(file, path, _packing(path)), path, size, assume_spacing_xyz
        )
    return header


def read_nifti(path: Path, assume_spacing_xyz: tuple[float, ...] | None) -> NiftiContent:
    """Header and voxels, verified to the last byte."""
    with opened(path) as (file, size):
        stream = InflatedFile(file, path, _packing(path))
        header, block_bytes, order = _open_stream(stream, path, size, assume_spacing_xyz)
        names = _read_extensions(stream, header.offset - block_bytes, order, path)
        stored = read_claimed(stream, header.voxel_bytes, path)
    array = stored.view(header.dtype).reshape(header.grid.shape_zyx)
    return NiftiContent(header, _scaled(array, header), names)


def parse_nifti_image(
    raw: Any,
    stored: npt.NDArray[Any],
    scaling: tuple[float, float],
    path: Path,
    assume_spacing_xyz: tuple[float, ...] | None,
) -> NiftiContent:
    """A nibabel image in memory as if it were read from a file.

    raw: its header. stored: (x, y, z, ...) before scaling. scaling: slope and intercept. path:
    names it in messages.
    """
    import nibabel

    fields = _fields(raw, 2 if isinstance(raw, nibabel.Nifti2Header) else 1)
    shape_xyz = three_axes(list(stored.shape), path)
    grid, assumed, notes = _geometry(fields, shape_xyz, path, assume_spacing_xyz)
    header = NiftiHeader(fields, grid, stored.dtype, *scaling, 0, assumed, notes)
    return NiftiContent(header, _scaled(stored.T.reshape(grid.shape_zyx), header), {})


def read_nifti_class_names(path: Path) -> dict[int, str]:
    """Class names (value -> name) of iris' own header extension; empty where there is none."""
    with opened(path) as (file, size):
        stream = InflatedFile(file, path, _packing(path))
        header, block_bytes, order = _open_stream(stream, path, size, (1.0, 1.0, 1.0))
        return _read_extensions(stream, header.offset - block_bytes, order, path)


def _read_extensions(stream: InflatedFile, between: int, order: str, path: Path) -> dict[int, str]:
    """Class names from the bytes between header and voxels, all of which are passed over."""
    extension = stream.read(min(between, MAX_EXTENSION_BYTES))
    passed = len(extension) + stream.skip(between - len(extension))
    if passed != between:
        raise _no_nifti(path, f"{passed} bytes behind the header", f"{between} and the voxels")
    at = 4
    while at + 8 <= len(extension) and extension[0] != 0:
        size, code = struct.unpack_from(order + "ii", extension, at)
        if size < 16 or at + size > len(extension):
            break
        if code == COMMENT_ECODE:
            names = parse_class_names(extension[at + 8 : at + size])
            if names:
                return names
        at += size
    return {}


def parse_class_names(content: bytes) -> dict[int, str]:
    """Class names from iris' JSON; empty for any other text."""
    try:
        obj = json.loads(content.rstrip(b"\0").decode("utf-8"))
        if obj.get("format") != CLASSES_FORMAT:
            return {}
        return {int(value): str(name) for value, name in obj["labels"].items()}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return {}


def _packing(path: Path) -> Packing:
    return Packing.GZIP if path.name.lower().endswith(".gz") else Packing.RAW


def _open_stream(
    stream: InflatedFile, path: Path, size: int, assume_spacing_xyz: tuple[float, ...] | None
) -> tuple[NiftiHeader, int, str]:
    """Header, bytes taken from the stream so far, and byte order."""
    block = stream.read(348)
    if len(block) < 348:
        raise _no_nifti(path, f"{len(block)} bytes", "at least 348 bytes of header")
    order, header_bytes = _byte_order(block, path)
    block += stream.read(header_bytes - 348)
    if len(block) < header_bytes:
        raise _no_nifti(path, f"{len(block)} bytes", f"{header_bytes} bytes of header")
    header = _parse(block, order, HEADER_SIZES[header_bytes], path, assume_spacing_xyz)
    claimed = header.offset + header.voxel_bytes
    check_claim(path, claimed, size, _packing(path))
    return header, header_bytes, order


def _byte_order(block: bytes, path: Path) -> tuple[str, int]:
    for order in "<>":
        (size,) = struct.unpack_from(order + "i", block, 0)
        if size in HEADER_SIZES:
            return order, size
    raise _no_nifti(path, f"header size {struct.unpack_from('<i', block, 0)[0]}", "348 or 540")


def _parse(
    block: bytes,
    order: str,
    version: int,
    path: Path,
    assume_spacing_xyz: tuple[float, ...] | None,
) -> NiftiHeader:
    raw = np.frombuffer(block, header_layout(version, order))[0]
    magic, expected = raw["magic"].item(), (b"n+1" if version == 1 else b"n+2")
    if not magic.startswith(expected):
        raise DataRefused(
            "this is no single-file NIfTI volume",
            file=path,
            found=f"magic {magic!r}",
            expected=repr(expected),
            fix="convert Analyze or .hdr/.img pairs to .nii.gz",
        )
    shape_xyz = _shape_xyz(raw, path)
    dtype = _dtype(raw, order, path)
    offset = _offset(raw, len(block), path)
    fields = _fields(raw, version)
    grid, assumed, notes = _geometry(fields, shape_xyz, path, assume_spacing_xyz)
    slope, inter = _scaling(raw, path)
    return NiftiHeader(fields, grid, dtype, slope, inter, offset, assumed, notes)


def _shape_xyz(raw: Any, path: Path) -> tuple[int, int, int]:
    dim = [int(size) for size in raw["dim"]]
    if not 1 <= dim[0] <= 7:
        raise _no_nifti(path, f"{dim[0]} dimensions", "3 dimensions")
    return three_axes(dim[1 : 1 + dim[0]], path)


def three_axes(shape_xyz: list[int], path: Path) -> tuple[int, int, int]:
    """The three sizes of a volume; axes beyond the third may only have one entry."""
    if min(shape_xyz) < 1:
        raise DataRefused(
            "an axis of the volume is empty",
            file=path,
            found=f"shape (x, y, z, ...) {tuple(shape_xyz)}",
            expected="positive sizes",
            fix=FIX_DAMAGED,
        )
    if len(shape_xyz) < 3:
        raise DataRefused(
            f"this is a {len(shape_xyz)}-D image, not a volume",
            file=path,
            found=f"shape (x, y) {tuple(shape_xyz)}",
            expected="three axes",
            fix="stack the slices of a series into one volume",
        )
    frames = math.prod(shape_xyz[3:])
    if frames != 1:
        raise DataRefused(
            f"this is a {len(shape_xyz)}-D volume with {frames} frames",
            file=path,
            found=f"shape (x, y, z, frames) {tuple(shape_xyz)}",
            expected="one frame",
            fix="save the frame you want as a 3-D volume",
        )
    x, y, z = shape_xyz[:3]
    return (x, y, z)


def _dtype(raw: Any, order: str, path: Path) -> np.dtype[Any]:
    code = int(raw["datatype"])
    if code not in VALUE_TYPES:
        raise _bad_type(path, f"NIfTI type code {code} ({OTHER_TYPES.get(code, 'unknown')})")
    dtype: np.dtype[Any] = np.dtype(order + VALUE_TYPES[code])
    if int(raw["bitpix"]) != dtype.itemsize * 8:
        raise _no_nifti(path, f"{int(raw['bitpix'])} bits per voxel", f"{dtype.itemsize * 8}")
    return dtype


def _bad_type(path: Path, found: str) -> DataRefused:
    return DataRefused(
        "the voxels are not plain numbers",
        file=path,
        found=found,
        expected="integers or real floating point numbers",
        fix="convert colour or complex images to one number per voxel",
    )


def _offset(raw: Any, header_bytes: int, path: Path) -> int:
    offset = float(raw["vox_offset"])
    smallest = header_bytes + 4
    if offset == 0:  # written by old tools; every reader takes it as the smallest offset
        return smallest
    if not (math.isfinite(offset) and offset >= smallest and offset == int(offset)):
        raise _no_nifti(path, f"voxel data at byte {offset}", f"at byte {smallest} or later")
    return int(offset)


def _scaling(raw: Any, path: Path) -> tuple[float, float]:
    """Slope and intercept; slope 0 (or NaN, which nibabel itself writes) means none."""
    slope, inter = float(raw["scl_slope"]), float(raw["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise DataRefused(
            "the scaling of the voxel values is not finite",
            file=path,
            found=f"scl_slope {slope}, scl_inter {inter}",
            expected="finite numbers",
            fix=FIX_DAMAGED,
        )
    return slope, inter


def _scaled(array: npt.NDArray[Any], header: NiftiHeader) -> npt.NDArray[Any]:
    """Native byte order, slope and intercept applied."""
    if (header.slope, header.inter) == (1.0, 0.0):
        return array.astype(header.value_type, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = array.astype(header.value_type)
        np.multiply(scaled, header.slope, out=scaled)
        np.add(scaled, header.inter, out=scaled)
    return scaled


def _fields(raw: Any, version: int) -> NiftiFields:
    def numbers(*names: str) -> tuple[float, ...]:
        return tuple(float(value) for name in names for value in np.ravel(raw[name]))

    return NiftiFields(
        version=version,
        pixdim=numbers("pixdim")[:4],
        qform_code=int(raw["qform_code"]),
        sform_code=int(raw["sform_code"]),
        quatern_bcd=numbers("quatern_b", "quatern_c", "quatern_d"),
        qoffset_xyz=numbers("qoffset_x", "qoffset_y", "qoffset_z"),
        srow=numbers("srow_x", "srow_y", "srow_z"),
        xyzt_units=int(raw["xyzt_units"]),
    )


def _geometry(
    fields: NiftiFields,
    shape_xyz: tuple[int, int, int],
    path: Path,
    assume_spacing_xyz: tuple[float, ...] | None,
) -> tuple[Grid, bool, tuple[str, ...]]:
    """Grid in mm, whether its spacing is the user's, and notes. sform, else qform, else refused."""
    shape_zyx = shape_xyz[::-1]
    if fields.sform_code > 0:
        affine, scale, notes = _sform(fields), *_unit(fields)
        grid = located_grid(shape_zyx, _in_mm(affine, scale), path)
        notes += _other_spacing(fields, grid, scale)
        if fields.qform_code > 0:
            notes += _disagreement(fields, grid, scale)
    elif fields.qform_code > 0:
        scale, notes = _unit(fields)
        grid = located_grid(shape_zyx, _in_mm(_qform(fields, path), scale), path)
    elif assume_spacing_xyz is not None:
        notes = (assumed_note(assume_spacing_xyz),)
        return Grid.from_spacing(shape_zyx, assume_spacing_xyz), True, notes
    else:
        raise unlocated(path, "neither sform nor qform is set (codes 0, 0)")
    grid, repair_notes = straightened(grid)
    return grid, False, notes + repair_notes


def _unit(fields: NiftiFields) -> tuple[float, tuple[str, ...]]:
    """Millimetres per unit of the header, and a note where they are not one."""
    code = fields.xyzt_units & 7
    if code not in UNIT_MM:
        return 1.0, (f"unit code {code} of the header is unknown; millimetres are assumed",)
    name = UNIT_NAMES.get(code)
    return UNIT_MM[code], (f"header in {name}, scaled to millimetres",) if name else ()


def _in_mm(affine: Affine, scale: float) -> Affine:
    scaled = affine.copy()
    scaled[:3] *= scale
    return scaled


def _sform(fields: NiftiFields) -> Affine:
    affine = np.eye(4)
    affine[:3] = np.reshape(fields.srow, (3, 4))
    return affine


def _qform(fields: NiftiFields, path: Path | None) -> Affine:
    """The qform in the header's unit; raises DataRefused where it says nothing."""
    spacing = np.abs(fields.pixdim[1:4])
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise DataRefused(
            "a voxel spacing is zero or not finite",
            file=path,
            found=f"pixdim {fields.pixdim[1:4]}",
            expected="three positive numbers",
            fix="correct the header",
        )
    # The standard reads any qfac but -1 as 1: many tools write 0.
    spacing[2] *= -1 if fields.pixdim[0] == -1 else 1
    affine = np.eye(4)
    try:
        with np.errstate(all="ignore"):
            rotation = quaternion_rotation(fields.quatern_bcd, fields.version)
            affine[:3, :3] = rotation @ np.diag(spacing)
    except ValueError as error:
        raise DataRefused(
            "the qform of the header is no rotation",
            file=path,
            found=f"quaternion (b, c, d) {fields.quatern_bcd}",
            expected="a unit quaternion",
            fix="correct the header",
        ) from error
    affine[:3, 3] = fields.qoffset_xyz
    return affine


def _disagreement(fields: NiftiFields, sform: Grid, scale: float) -> tuple[str, ...]:
    """A note with both where the qform puts a corner elsewhere than the sform."""
    try:
        qform = Grid(sform.shape_zyx, _in_mm(_qform(fields, None), scale))
    except DataRefused as error:
        return (f"the qform is not usable ({error.problem}); the sform is used",)
    if sform.compare(qform) is not GridMatch.DIFFERENT:
        return ()
    return (
        f"sform and qform disagree: sform (code {fields.sform_code}) {describe(sform)}; "
        f"qform (code {fields.qform_code}) {describe(qform)}; the sform is used",
    )


def _other_spacing(fields: NiftiFields, sform: Grid, scale: float) -> tuple[str, ...]:
    """A note with both where pixdim gives other voxel edges than the sform."""
    edges = np.asarray(sform.spacing_xyz)
    pixdim = np.abs(fields.pixdim[1:4]) * scale
    if (np.abs(pixdim - edges) <= SAME_EDGE * edges).all():
        return ()
    stated, used = (", ".join(f"{edge:.4g}" for edge in both) for both in (pixdim, edges))
    return (
        f"sform and pixdim disagree: voxels of ({used}) mm by the sform, of ({stated}) mm by "
        "pixdim; the sform is used",
    )


def describe(grid: Grid) -> str:
    """Spacing, origin and axes in one line."""
    spacing, origin, axes = (
        ", ".join(f"{value:.4g}" for value in np.ravel(numbers))
        for numbers in (grid.spacing_xyz, grid.affine[:3, 3], grid.direction)
    )
    return f"spacing ({spacing}) mm, origin ({origin}) mm, axes ({axes})"


def located_grid(shape_zyx: tuple[int, int, int], affine: Affine, path: Path) -> Grid:
    """`Grid`, with the file named where it refuses."""
    try:
        return Grid(shape_zyx, affine)
    except DataRefused as error:
        raise DataRefused(
            error.problem,
            file=path,
            found=error.found,
            expected=error.expected,
            fix="correct the header, for instance by exporting the volume again",
        ) from error


def straightened(grid: Grid) -> tuple[Grid, tuple[str, ...]]:
    """Axes made perpendicular where only rounding is in the way; a note says what was done."""
    if grid.is_orthonormal:
        return grid, ()
    repaired = grid.repaired()
    if repaired is grid:
        return grid, ("the axes are not perpendicular (sheared); they are kept as they are",)
    return repaired, ("the axes were not quite perpendicular (rounding); repaired",)


def assumed_note(spacing_xyz: tuple[float, ...]) -> str:
    """The note of a volume whose position is unknown."""
    text = " x ".join(f"{edge:g}" for edge in spacing_xyz)
    return f"no position in the header: spacing {text} mm and axes to RAS+ are assumed"


def unlocated(path: Path, found: str) -> DataRefused:
    """The refusal of a volume without position."""
    return DataRefused(
        "the header does not say where the voxels are",
        file=path,
        found=found,
        expected="an affine",
        fix="give the spacing with --assume-spacing (encode-task, predict, evaluate, info), "
        "or correct the header",
    )


def _no_nifti(path: Path, found: str, expected: str) -> DataRefused:
    return DataRefused(
        "this is no whole NIfTI volume",
        file=path,
        found=found,
        expected=expected,
        fix=FIX_DAMAGED,
    )
