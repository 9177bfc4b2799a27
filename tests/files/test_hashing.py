"""Content hashes see dtype, shape, voxels and geometry, and nothing else."""

from __future__ import annotations

import hashlib

import numpy as np

from iris_cli.files.hashing import hash_array, hash_json


def test_the_hash_of_an_array_is_the_documented_one() -> None:
    array = np.arange(6, dtype=np.int16).reshape(1, 2, 3)
    expected = hashlib.sha256(b"<i2(1, 2, 3)" + array.tobytes()).hexdigest()
    assert hash_array(array) == expected


def test_layout_and_byte_order_in_memory_do_not_matter() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert hash_array(np.asfortranarray(array)) == hash_array(array)
    assert hash_array(array.astype(">f4")) == hash_array(array)


def test_dtype_shape_voxels_and_affine_matter() -> None:
    array = np.zeros((2, 3, 4), np.uint8)
    changed = array.copy()
    changed[0, 0, 0] = 1
    hashes = {
        hash_array(array),
        hash_array(array.astype(np.int8)),
        hash_array(array.reshape(2, 4, 3)),
        hash_array(changed),
        hash_array(array, np.eye(4)),
        hash_array(array, 2 * np.eye(4)),
    }
    assert len(hashes) == 6


def test_negative_zero_in_an_affine_is_zero() -> None:
    array = np.zeros((1, 1, 1), np.uint8)
    assert hash_array(array, np.eye(4)) == hash_array(
        array, np.eye(4) * 1.0 - 0.0 * np.ones((4, 4))
    )
    assert hash_array(array, -0.0 * np.eye(4)) == hash_array(array, 0.0 * np.eye(4))


def test_json_hash_ignores_the_order_of_keys() -> None:
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1})
    assert hash_json([1, 2]) != hash_json([2, 1])
