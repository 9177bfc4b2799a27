"""Content hashes: over voxels and meaning, never over compressed bytes (CONTRACT.md, Proof)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import numpy.typing as npt


def hash_bytes(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def hash_array(array: npt.NDArray[Any], affine: npt.NDArray[np.float64] | None = None) -> str:
    """SHA-256 over dtype, shape, voxels in C order and, where given, a 4x4 affine.

    Byte order does not matter (little-endian is hashed), nor does memory layout.
    """
    digest = hashlib.sha256()
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    digest.update(f"{little.dtype.str}{little.shape}".encode())
    digest.update(little.reshape(-1).view(np.uint8).data)
    if affine is not None:
        # Adding zero turns -0.0 into 0.0: the same geometry must have one hash.
        digest.update((np.ascontiguousarray(affine, dtype="<f8") + 0.0).tobytes())
    return digest.hexdigest()


def hash_json(value: object) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hash_bytes(text.encode())
