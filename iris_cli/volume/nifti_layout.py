"""Where the fields of NIfTI headers lie (nifti1.h, nifti2.h), and what their quaternion means.

Reading takes no more than this of the format, and nibabel, which knows all of it, takes longer to
import (0.1 CPU s in every process) than a small volume to read. Tests hold it against nibabel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

# Name: type and offset in NIfTI-1, and in NIfTI-2.
_FIELDS: dict[str, tuple[tuple[str, int], tuple[str, int]]] = {
    "magic": (("S4", 344), ("S4", 4)),
    "dim": (("8i2", 40), ("8i8", 16)),
    "datatype": (("i2", 70), ("i2", 12)),
    "bitpix": (("i2", 72), ("i2", 14)),
    "pixdim": (("8f4", 76), ("8f8", 104)),
    "vox_offset": (("f4", 108), ("i8", 168)),
    "scl_slope": (("f4", 112), ("f8", 176)),
    "scl_inter": (("f4", 116), ("f8", 184)),
    "xyzt_units": (("u1", 123), ("i4", 500)),
    "qform_code": (("i2", 252), ("i4", 344)),
    "sform_code": (("i2", 254), ("i4", 348)),
    "quatern_b": (("f4", 256), ("f8", 352)),
    "quatern_c": (("f4", 260), ("f8", 360)),
    "quatern_d": (("f4", 264), ("f8", 368)),
    "qoffset_x": (("f4", 268), ("f8", 376)),
    "qoffset_y": (("f4", 272), ("f8", 384)),
    "qoffset_z": (("f4", 276), ("f8", 392)),
    "srow_x": (("4f4", 280), ("4f8", 400)),
    "srow_y": (("4f4", 296), ("4f8", 432)),
    "srow_z": (("4f4", 312), ("4f8", 464)),
}

HEADER_SIZES = {348: 1, 540: 2}
"""Bytes of a header: version."""

VALUE_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4",
    1024: "i8", 1280: "u8",
}  # fmt: skip
"""Codes of the types that are one number a voxel."""

OTHER_TYPES = {
    1: "one bit a voxel", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128",
    2048: "complex256", 2304: "RGBA",
}  # fmt: skip

if np.finfo(np.longdouble).nmant == 112:  # where the machine has IEEE's, not x86's 80 bits
    VALUE_TYPES[1536] = np.dtype(np.longdouble).str[1:]

# A quaternion may be longer than one by rounding of its three stored parts.
_ROUNDING = {1: 3 * float(np.finfo(np.float32).eps), 2: 3 * float(np.finfo(np.float64).eps)}


@cache
def header_layout(version: int, order: str) -> np.dtype[Any]:
    """The fields of a header of NIfTI 1 or 2 in byte order `<` or `>`."""
    fields = {name: versions[version - 1] for name, versions in _FIELDS.items()}
    size = next(size for size, one in HEADER_SIZES.items() if one == version)
    layout: np.dtype[Any] = np.dtype(
        {
            "names": list(fields),
            "formats": [order + kind for kind, _ in fields.values()],
            "offsets": [offset for _, offset in fields.values()],
            "itemsize": size,
        }
    )
    return layout


def quaternion_rotation(bcd: Sequence[float], version: int) -> npt.NDArray[np.longdouble]:
    """(3, 3) rotation of the unit quaternion (a, b, c, d) with a >= 0 (nifti1.h, method 2).

    version: of the header, which says how exact the numbers are.
    raises ValueError where (b, c, d) is longer than one by more than rounding.
    """
    vector = np.asarray(bcd, np.longdouble)
    left = 1.0 - vector @ vector
    if abs(left) < _ROUNDING[version]:
        a = np.longdouble(0)
    elif left < 0:
        raise ValueError(f"(b, c, d) is {1 - left:g} long, squared")
    else:
        a = np.sqrt(left)
    b, c, d = vector
    scale = 2.0 / (a * a + b * b + c * c + d * d)
    sb, sc, sd = b * scale, c * scale, d * scale
    ab, ac, ad = a * sb, a * sc, a * sd
    bb, bc, bd = b * sb, b * sc, b * sd
    cc, cd, dd = c * sc, c * sd, d * sd
    return np.array(
        [
            [1.0 - (cc + dd), bc - ad, bd + ac],
            [bc + ad, 1.0 - (bb + dd), cd - ab],
            [bd - ac, cd + ab, 1.0 - (bb + cc)],
        ]
    )
