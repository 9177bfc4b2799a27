"""Headers and quaternions are read as nibabel reads them, bit for bit."""

from __future__ import annotations

from typing import Any

import nibabel
import numpy as np
import pytest

from iris_cli.volume.nifti_layout import VALUE_TYPES, header_layout, quaternion_rotation

KINDS = {1: nibabel.Nifti1Header, 2: nibabel.Nifti2Header}


def write_header(version: int, order: str, generator: np.random.Generator) -> Any:
    """A header of nibabel with a number in every field that iris reads."""
    header = KINDS[version](endianness=order)
    header.set_data_dtype(np.int16)
    header.set_data_shape((4, 5, 6))
    header["vox_offset"], header["xyzt_units"] = 1024, 10
    header["qform_code"], header["sform_code"] = 3, 2
    header["scl_slope"], header["scl_inter"] = 2.5, -7
    header["pixdim"][:4] = generator.choice([-1, 1]), *generator.uniform(0.1, 4, 3)
    for axis, part in zip("xyz", "bcd", strict=True):
        header[f"quatern_{part}"] = generator.uniform(-0.55, 0.55)
        header[f"qoffset_{axis}"] = generator.normal(0, 100)
        header[f"srow_{axis}"] = generator.normal(0, 100, 4)
    return header


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
def test_every_field_is_where_nibabel_finds_it(version: int, order: str) -> None:
    layout = header_layout(version, order)
    header = write_header(version, order, np.random.default_rng(version))
    found = np.frombuffer(header.binaryblock, layout)[0]
    assert layout.names is not None
    for name in layout.names:
        assert np.array_equal(found[name], header[name]), name


@pytest.mark.parametrize("code", [code for code in VALUE_TYPES if code != 1536])
def test_types_are_those_of_nibabel(code: int) -> None:
    assert nibabel.nifti1.data_type_codes.dtype[code] == np.dtype(VALUE_TYPES[code])


@pytest.mark.parametrize("version", [1, 2])
def test_a_quaternion_is_the_rotation_that_nibabel_makes_of_it(version: int) -> None:
    generator = np.random.default_rng(3)
    refused = 0
    for trial in range(300):
        header = write_header(version, "<", generator)
        bcd = generator.normal(size=3)
        # Half a turn, where the fourth part is rounding; longer than one; whole numbers.
        bcd = (bcd / np.linalg.norm(bcd), bcd, generator.integers(-1, 2, 3))[trial % 3]
        for part, value in zip("bcd", bcd, strict=True):
            header[f"quatern_{part}"] = value
        stored = [float(header[f"quatern_{part}"]) for part in "bcd"]
        try:
            expected = nibabel.quaternions.quat2mat(header.get_qform_quaternion())
        except ValueError:
            refused += 1
            with pytest.raises(ValueError, match="long"):
                quaternion_rotation(stored, version)
        else:
            assert np.array_equal(quaternion_rotation(stored, version), expected)
    assert 50 < refused < 250
