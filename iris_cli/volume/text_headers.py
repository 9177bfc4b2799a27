"""The text headers of NRRD and MetaImage: what they claim about their voxels, and where they are.

They are read here, not by SimpleITK: its header parsers (Teem, MetaIO) write beyond their buffers
on damaged headers, which ends the process, and its image readers allocate what a header claims.
The tests hold this module to SimpleITK's answers. Forms that nobody writes for volumes (text or
hex data, lists of slices, skipped lines) are refused by name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from iris_cli.errors import DataRefused
from iris_cli.volume.grid import Affine
from iris_cli.volume.payload import FIX_DAMAGED, Packing

MAX_HEADER_BYTES = 1 << 20
"""A longer text header is no header."""

LARGEST_MM = 1e30
"""Lengths beyond this are no lengths; their squares would still be finite."""

LONGEST_NAME = 200
"""Characters of a data file's name, which file systems limit to 255 bytes."""

NRRD_TYPES = {
    "int8": "signed char, int8, int8_t",
    "uint8": "uchar, unsigned char, uint8, uint8_t",
    "int16": "short, short int, signed short, signed short int, int16, int16_t",
    "uint16": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "int32": "int, signed int, int32, int32_t",
    "uint32": "uint, unsigned int, uint32, uint32_t",
    "int64": "longlong, long long, long long int, signed long long, signed long long int, int64, "
    "int64_t",
    "uint64": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "float32": "float",
    "float64": "double",
}
_NRRD_DTYPES = {
    alias: dtype for dtype, aliases in NRRD_TYPES.items() for alias in aliases.split(", ")
}

META_TYPES = {
    "MET_CHAR": "int8",
    "MET_UCHAR": "uint8",
    "MET_SHORT": "int16",
    "MET_USHORT": "uint16",
    "MET_INT": "int32",
    "MET_UINT": "uint32",
    "MET_LONG": "int32",
    "MET_ULONG": "uint32",
    "MET_LONG_LONG": "int64",
    "MET_ULONG_LONG": "uint64",
    "MET_FLOAT": "float32",
    "MET_DOUBLE": "float64",
}

UNIT_MM = {
    "m": 1000.0,
    "cm": 10.0,
    "mm": 1.0,
    "um": 0.001,
    "µm": 0.001,
    "μm": 0.001,
    "micron": 0.001,
    "microns": 0.001,
    "micrometer": 0.001,
    "micrometers": 0.001,
    "nm": 1e-6,
}
"""Millimetres per unit; other words are unknown and mean millimetres."""

SPATIAL_KINDS = ("domain", "space", "time", "???")
"""Kinds of NRRD axes that are not components of a voxel."""

CLASSES_KEY = "iris_classes"
"""Key of the class names in a header."""

_TO_LPS = {
    "left-posterior-superior": (1, 1),
    "lps": (1, 1),
    "right-anterior-superior": (-1, -1),
    "ras": (-1, -1),
    "left-anterior-superior": (1, -1),
    "las": (1, -1),
    "scanner-xyz": (1, 1),
}
"""Signs of x and y that turn NRRD's spaces to LPS."""

_VECTOR = re.compile(r"none|\([^()]*\)", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?")


@dataclass(frozen=True)
class Claim:
    """What a text header says of its voxels.

    sizes_xyz: every axis in file order. components: numbers per voxel.
    data_file: where the voxels are; `offset` bytes into it, `stored_bytes` of them (None: to the
    end). affine_lps: (4, 4) voxel indices (x, y, z) to LPS+ in `unit`; None where the header gives
    no spacing. class_names: iris' JSON of class names, if there is one.
    """

    sizes_xyz: tuple[int, ...]
    dtype: np.dtype[Any]
    components: int
    packing: Packing
    data_file: Path
    offset: int
    stored_bytes: int | None
    affine_lps: Affine | None
    unit: str
    notes: tuple[str, ...]
    class_names: str = ""

    @property
    def voxel_bytes(self) -> int:
        return math.prod(self.sizes_xyz) * self.components * self.dtype.itemsize


def parse_nrrd(block: bytes, path: Path) -> Claim:
    """Claim of an NRRD header; `block` holds the first bytes of the file."""
    if not re.match(rb"NRRD000\d\r?\n", block):
        raise _bad(path, f"first bytes {block[:8]!r}", "NRRD0001 to NRRD0005")
    fields, offset, detached = _nrrd_fields(block, path)
    sizes = _integers(fields, "sizes", path)
    if len(sizes) != _integers(fields, "dimension", path)[0]:
        raise _bad(path, f"{len(sizes)} sizes", f"dimension {fields['dimension']}")
    for name in ("line skip", "byte skip"):
        if fields.get(name, "0") != "0":
            raise _unsupported(path, f"{name}: {fields[name]}", "no skipped bytes")
    spatial = _nrrd_spatial_axes(len(sizes), fields)
    unit, unit_notes = _unit(_nrrd_unit(fields))
    return Claim(
        sizes_xyz=tuple(sizes[axis] for axis in spatial),
        dtype=_dtype(_NRRD_DTYPES.get(_need(fields, "type", path).lower()), fields, path),
        components=math.prod(size for axis, size in enumerate(sizes) if axis not in spatial),
        packing=_nrrd_packing(_need(fields, "encoding", path).lower(), path),
        data_file=beside(path, detached) if detached else path,
        offset=0 if detached else offset,
        stored_bytes=None,
        affine_lps=_nrrd_affine(fields, spatial, path),
        unit=unit,
        notes=unit_notes + _nrrd_space_notes(fields),
        class_names=fields.get(CLASSES_KEY, ""),
    )


def parse_meta(block: bytes, path: Path) -> Claim:
    """Claim of a MetaImage header; `block` holds the first bytes of the file."""
    fields, offset = _meta_fields(block, path)
    sizes = _integers(fields, "DimSize", path)
    if len(sizes) != _integers(fields, "NDims", path)[0]:
        raise _bad(path, f"{len(sizes)} sizes", f"NDims {fields['NDims']}")
    if not _true(fields, "BinaryData", default=True):
        raise _unsupported(path, "text data (BinaryData = False)", "binary data")
    if fields.get("HeaderSize", "0") != "0":
        raise _unsupported(path, f"HeaderSize = {fields['HeaderSize']}", "no skipped bytes")
    where = _need(fields, "ElementDataFile", path)
    local = where.upper() == "LOCAL"
    compressed = _true(fields, "CompressedData", default=False)
    length = (
        _integers(fields, "CompressedDataSize", path)[0]
        if compressed and ("CompressedDataSize" in fields)
        else None
    )
    unit, unit_notes = _unit(fields.get("DistanceUnits", "mm"))
    return Claim(
        sizes_xyz=sizes,
        dtype=_meta_dtype(fields, path),
        components=_integers(fields, "ElementNumberOfChannels", path, "1")[0],
        packing=Packing.ZLIB if compressed else Packing.RAW,
        data_file=path if local else beside(path, where),
        offset=offset if local else 0,
        stored_bytes=length,
        affine_lps=_meta_affine(fields, len(sizes), path),
        unit=unit,
        notes=unit_notes,
        class_names=fields.get(CLASSES_KEY, ""),
    )


def beside(path: Path, name: str) -> Path:
    """The detached data file of a header; it must lie in the folder of the header."""
    parts = PurePosixPath(name).parts
    leaves = name.startswith(("/", "~")) or re.search(r"^[A-Za-z]:|[\\\0]", name) or ".." in parts
    if leaves or not parts:
        raise DataRefused(
            "the header points to voxels outside its own folder",
            file=path,
            found=repr(name[:80]),
            expected="the name of a file in the same folder",
            fix="put both files into one folder and correct the name in the header",
        )
    if re.match(r"LIST\b", name) or "%" in name:
        raise _unsupported(path, f"voxels in several files ({name[:80]})", "one data file")
    target = path.parent / name
    if len(name) > LONGEST_NAME or not name.isprintable() or not target.is_file():
        raise DataRefused(
            "the data file of this header is missing",
            file=path,
            found=f"no file {name[:80]!r}",
            expected="header and data file side by side",
            fix="copy both files",
        )
    return target


def _nrrd_fields(block: bytes, path: Path) -> tuple[dict[str, str], int, str]:
    """Fields (lower case), offset of attached data, name of detached data."""
    fields: dict[str, str] = {}
    at = block.index(b"\n") + 1
    while True:
        end = block.find(b"\n", at)
        line = block[at : end if end >= 0 else len(block)].rstrip(b"\r")
        if end < 0 and not fields.get("data file"):
            raise _bad(path, "a header without end", "an empty line before the voxels")
        if not line:
            return fields, end + 1, fields.get("data file", "")
        name, colon, value = line.decode("utf-8", "replace").partition(":")
        if value.startswith("="):  # a key of the writer's own, with escaped backslashes
            if name == CLASSES_KEY:
                fields[name] = value[1:].replace("\\\\", "\\")
        elif colon and not name.startswith("#"):
            key = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}.get(
                name.strip().lower(), name.strip().lower()
            )
            if key in fields:
                raise _bad(path, f"field {key!r} twice", "every field once")
            fields[key] = value.strip()
        if end < 0:
            return fields, len(block), fields["data file"]
        at = end + 1


def _nrrd_spatial_axes(dimension: int, fields: dict[str, str]) -> list[int]:
    """Axes of space and time; the others are components of a voxel, as ITK takes them."""
    vectors = _VECTOR.findall(fields.get("space directions", ""))
    kinds = fields.get("kinds", "").lower().split()
    return [
        axis
        for axis in range(dimension)
        if not (len(vectors) == dimension and vectors[axis].lower() == "none")
        and not (len(kinds) == dimension and kinds[axis] not in SPATIAL_KINDS)
    ]


def _nrrd_affine(fields: dict[str, str], spatial: list[int], path: Path) -> Affine | None:
    if len(spatial) < 3:  # no volume; the caller refuses it by its shape
        return None
    affine = np.eye(4)
    if "space directions" in fields:
        vectors = _VECTOR.findall(fields["space directions"])
        if len(vectors) != _integers(fields, "dimension", path)[0]:
            raise _bad(path, f"space directions {fields['space directions']}", "one per axis")
        for column, axis in enumerate(spatial[:3]):
            affine[:3, column] = _numbers(vectors[axis].strip("()"), 3, path, separator=",")
    elif "spacings" in fields:
        words = fields["spacings"].split()
        if len(words) != _integers(fields, "dimension", path)[0]:
            raise _bad(path, f"spacings {fields['spacings']}", "one per axis")
        for column, axis in enumerate(spatial[:3]):
            affine[column, column] = _positive(_numbers(words[axis], 1, path), path)[0]
    else:
        return None
    if "space origin" in fields:
        affine[:3, 3] = _numbers(fields["space origin"].strip("()"), 3, path, separator=",")
    signs = _TO_LPS.get(fields.get("space", "").lower().removesuffix("-time"), (1, 1))
    affine[:2] *= np.array(signs)[:, None]
    return affine


def _nrrd_packing(encoding: str, path: Path) -> Packing:
    if encoding == "raw":
        return Packing.RAW
    if encoding in ("gzip", "gz"):
        return Packing.GZIP
    raise _unsupported(path, f"encoding {encoding}", "raw or gzip")


def _nrrd_unit(fields: dict[str, str]) -> str:
    units = {unit.strip() for unit in re.findall(r'"([^"]*)"', fields.get("space units", ""))}
    return " ".join(sorted(units - {"", "???"})) or "mm"


def _unit(name: str) -> tuple[str, tuple[str, ...]]:
    """A unit of `UNIT_MM`, and a note where that is not millimetres as given."""
    if name not in UNIT_MM:
        return "mm", (f"unit {name!r} of the header is unknown; millimetres are assumed",)
    return name, () if name == "mm" else (f"header in {name}, scaled to millimetres",)


def _nrrd_space_notes(fields: dict[str, str]) -> tuple[str, ...]:
    if fields.get("space", "").lower().removesuffix("-time") in _TO_LPS:
        return ()
    return ("the header does not name the patient's axes; they are taken as LPS",)


def _meta_affine(fields: dict[str, str], dimension: int, path: Path) -> Affine | None:
    """MetaIO's matrix holds the axes as rows; of more than three dimensions the first count."""
    spacing = fields.get("ElementSpacing", fields.get("ElementSize"))
    if spacing is None:
        return None
    edges = _positive(_numbers(spacing, dimension, path), path)
    matrix = np.eye(dimension)
    for name in ("TransformMatrix", "Rotation", "Orientation"):
        if name in fields:
            rows = _numbers(fields[name], dimension * dimension, path)
            matrix = np.reshape(rows, (dimension, dimension))
            break
    affine = np.eye(4)
    kept = min(3, dimension)
    affine[:kept, :kept] = matrix.T[:kept, :kept] * np.array(edges[:kept])
    for name in ("Offset", "Position", "Origin"):
        if name in fields:
            affine[:kept, 3] = _numbers(fields[name], dimension, path)[:kept]
            break
    return affine


def _meta_fields(block: bytes, path: Path) -> tuple[dict[str, str], int]:
    """Fields and the offset behind ElementDataFile, which ends the header."""
    fields: dict[str, str] = {}
    at = 0
    while "ElementDataFile" not in fields:
        end = block.find(b"\n", at)
        line = block[at : end if end >= 0 else len(block)]
        name, equals, value = line.decode("utf-8", "replace").partition("=")
        if not equals:
            raise _bad(path, f"header line {line[:40]!r}", "ElementDataFile ends the header")
        if name.strip() in fields:
            raise _bad(path, f"field {name.strip()!r} twice", "every field once")
        fields[name.strip()] = value.strip()
        if end < 0:
            end = len(block)
        at = end + 1
    return fields, at


def _meta_dtype(fields: dict[str, str], path: Path) -> np.dtype[Any]:
    name = META_TYPES.get(_need(fields, "ElementType", path))
    big = _true(fields, "BinaryDataByteOrderMSB", default=False) or _true(
        fields, "ElementByteOrderMSB", default=False
    )
    return _dtype(name, {"endian": "big" if big else "little"}, path)


def _dtype(name: str | None, fields: dict[str, str], path: Path) -> np.dtype[Any]:
    if name is None:
        raise _unsupported(path, "a voxel type that is no plain number", "integers or floats")
    dtype = np.dtype(name)
    endian = fields.get("endian", "little" if dtype.itemsize == 1 else "").lower()
    if endian not in ("little", "big"):
        raise _bad(path, f"endian {endian!r}", "little or big")
    return dtype.newbyteorder("<" if endian == "little" else ">")


def _true(fields: dict[str, str], name: str, *, default: bool) -> bool:
    return fields[name][:1].lower() in ("t", "1") if name in fields else default


def _need(fields: dict[str, str], name: str, path: Path) -> str:
    if not fields.get(name):
        raise _bad(path, f"no field {name!r}", "a complete header")
    return fields[name]


def _integers(
    fields: dict[str, str], name: str, path: Path, default: str | None = None
) -> tuple[int, ...]:
    text = fields.get(name, default) if default else _need(fields, name, path)
    words = (text or "").split()
    if not words or not all(re.fullmatch(r"\d{1,18}", word) for word in words):
        raise _bad(path, f"{name} {text!r}", "whole numbers")
    return tuple(int(word) for word in words)


def _numbers(text: str, count: int, path: Path, separator: str | None = None) -> list[float]:
    """`count` finite numbers; anything else is a damaged header."""
    words = [word.strip() for word in text.split(separator)]
    numbers = [float(word) for word in words if _NUMBER.fullmatch(word)]
    if not len(words) == len(numbers) == count or max(map(abs, numbers)) > LARGEST_MM:
        raise _bad(path, repr(text[:80]), f"{count} finite numbers")
    return numbers


def _positive(edges: list[float], path: Path) -> list[float]:
    if not all(edge > 0 for edge in edges):  # a negative one would mirror: readers disagree
        raise DataRefused(
            "a voxel spacing is zero or negative",
            file=path,
            found=f"spacing {edges}",
            expected="positive numbers",
            fix="correct the header, for instance by exporting the volume again",
        )
    return edges


def _bad(path: Path, found: str, expected: str) -> DataRefused:
    return DataRefused(
        "the header is damaged or no header of this format",
        file=path,
        found=found,
        expected=expected,
        fix=FIX_DAMAGED,
    )


def _unsupported(path: Path, found: str, expected: str) -> DataRefused:
    return DataRefused(
        "this form of the format is not read",
        file=path,
        found=found,
        expected=expected,
        fix="save the volume again as .nii.gz, or with raw or gzip encoding",
    )
