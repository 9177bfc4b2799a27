"""Class names in headers, read back by the documents of the formats and not by our readers."""

from __future__ import annotations

import gzip
import json
import re
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import read_class_names, read_image
from iris_cli.volume.writing import write_labels

NAMES = {1: "Großhirn, links", 2: 'left "big" kidney\\', 300: "a = b; c"}
SHAPE = (4, 5, 6)
GRID = Grid.from_spacing(SHAPE, (1.5, 1.0, 2.0), (3.0, -2.0, 7.0))


def labels() -> np.ndarray:
    array = np.zeros(SHAPE, np.uint16)
    array[1, 2, 3], array[2, 2, 2], array[3, 1, 1] = NAMES
    return array


def named(text: bytes) -> dict[int, str]:
    """The table in our own words, whichever field it stands in."""
    found = json.loads(text)
    assert found["format"] == "iris-classes-1"
    return {int(value): name for value, name in found["labels"].items()}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_nifti_extension_is_a_comment_of_the_documented_form(
    version: int, ending: str, tmp_path: Path
) -> None:
    """Four bytes after the header tell of extensions: esize (a multiple of 16), ecode, and text
    padded with zeros; vox_offset is where they end."""
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    nibabel.save(kind(np.zeros(SHAPE[::-1], np.int16), GRID.affine), tmp_path / f"query{ending}")
    native = read_image(tmp_path / f"query{ending}").native
    path = write_labels(tmp_path / f"out{ending}", labels(), native, class_names=NAMES)

    content = path.read_bytes()
    content = gzip.decompress(content) if ending.endswith(".gz") else content
    (size,) = struct.unpack_from("<i", content)
    assert size == {1: 348, 2: 540}[version]
    offset = struct.unpack_from(*{1: ("<f", content, 108), 2: ("<q", content, 168)}[version])[0]
    assert content[size : size + 4] == b"\1\0\0\0"
    length, code = struct.unpack_from("<ii", content, size + 4)
    assert (length % 16, code) == (0, 6)  # 6 is a comment, in plain text
    assert size + 4 + length == offset
    assert named(content[size + 12 : int(offset)].rstrip(b"\0")) == NAMES
    assert content[int(offset) :] == labels().astype("<u2").tobytes()


def test_the_field_of_nrrd_is_a_key_with_an_escaped_value(tmp_path: Path) -> None:
    """NRRD, key/value pairs: `key:=value`, where a backslash is written twice, a line break as \\n;
    the header ends at the first empty line."""
    path = write_labels(tmp_path / "out.nrrd", labels(), GRID, class_names=NAMES)
    header = path.read_bytes().partition(b"\n\n")[0].split(b"\n")
    (value,) = [line.partition(b":=")[2] for line in header if line.startswith(b"iris_classes:=")]
    assert named(re.sub(rb"\\(.)", lambda m: b"\n" if m[1] == b"n" else m[1], value)) == NAMES
    assert read_class_names(path) == NAMES


def test_the_field_of_metaimage_is_a_line_before_the_voxels(tmp_path: Path) -> None:
    """MetaIO: `key = value`, ElementDataFile last."""
    path = write_labels(tmp_path / "out.mha", labels(), GRID, class_names=NAMES)
    header = path.read_bytes().partition(b"ElementDataFile = LOCAL\n")[0].split(b"\n")
    (value,) = [line.partition(b" = ")[2] for line in header if line.startswith(b"iris_classes =")]
    assert named(value) == NAMES
    assert read_class_names(path) == NAMES
