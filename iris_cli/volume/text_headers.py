"""The text headers of NRRD and MetaImage: what they claim about their voxels.

Geometry is left to SimpleITK; this module reads what must be known to verify the voxels before
anything is allocated: sizes, type, byte order, packing, and where the bytes are. Forms that
nobody writes for volumes (text or hex data, lists of slices, skipped lines) are refused by name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from iris_cli.errors import DataRefused
from iris_cli.volume.payload import FIX_DAMAGED, Packing

MAX_HEADER_BYTES = 1 << 20
"""A longer text header is no header."""

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

_POSITIONED_SPACES = re.compile(
    r"(left|right)-(anterior|posterior)-superior(-time)?|LPS|LAS|RAS|LPST|LAST|RAST|scanner-xyz",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Claim:
    """What a text header says of its voxels.

    sizes_xyz: every axis in file order. components: numbers per voxel.
    data_file: where the voxels are; `offset` bytes into it, `stored_bytes` of them (None: to the
    end). unit: the header's unit of length. located: whether spacing or directions are given.
    class_names: iris' JSON of class names, if there is one.
    """

    sizes_xyz: tuple[int, ...]
    dtype: np.dtype[Any]
    components: int
    packing: Packing
    data_file: Path
    offset: int
    stored_bytes: int | None
    unit: str
    located: bool
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
    components, sizes = _nrrd_components(sizes, fields)
    unit, unit_notes = _unit(_nrrd_unit(fields))
    return Claim(
        sizes_xyz=sizes,
        dtype=_dtype(_NRRD_DTYPES.get(_need(fields, "type", path).lower()), fields, path),
        components=components,
        packing=_nrrd_packing(_need(fields, "encoding", path).lower(), path),
        data_file=beside(path, detached) if detached else path,
        offset=0 if detached else offset,
        stored_bytes=None,
        unit=unit,
        located="space directions" in fields or "spacings" in fields,
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
        unit=unit,
        located="ElementSpacing" in fields or "ElementSize" in fields,
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
            found=repr(name),
            expected="the name of a file in the same folder",
            fix="put both files into one folder and correct the name in the header",
        )
    if re.match(r"LIST\b", name) or "%" in name:
        raise _unsupported(path, f"voxels in several files ({name})", "one data file")
    target = path.parent / name
    if not target.is_file():
        raise DataRefused(
            "the data file of this header is missing",
            file=path,
            found=f"no file {name}",
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


def _nrrd_components(sizes: tuple[int, ...], fields: dict[str, str]) -> tuple[int, tuple[int, ...]]:
    """Axes that are no space and no time are components, as ITK takes them."""
    vectors = re.findall(r"none|\([^)]*\)", fields.get("space directions", ""), re.IGNORECASE)
    kinds = fields.get("kinds", "").split()
    inner = [
        (len(vectors) == len(sizes) and vectors[axis].lower() == "none")
        or (
            len(kinds) == len(sizes)
            and kinds[axis].lower() not in ("domain", "space", "time", "???")
        )
        for axis in range(len(sizes))
    ]
    components = math.prod(size for size, no_space in zip(sizes, inner, strict=True) if no_space)
    return components, tuple(
        size for size, no_space in zip(sizes, inner, strict=True) if not no_space
    )


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
    space = fields.get("space", "")
    if _POSITIONED_SPACES.fullmatch(space):
        return ()
    return ("the header does not name the patient's axes; they are taken as LPS",)


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
