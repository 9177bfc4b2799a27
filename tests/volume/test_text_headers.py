"""NRRD and MetaImage: the same volumes as SimpleITK's, and refusals in words."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from iris_cli.errors import DataRefused
from iris_cli.volume.grid import GridMatch
from iris_cli.volume.reading import read_grid, read_image
from tests.volume.examples import TILTS, forty_eight_axes, itk_image, oriented_grid, some_labels

NRRD = (
    "NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 3 4\n"
    "space directions: (1,0,0) (0,1,0) (0,0,2)\nspace origin: (5,6,7)\nencoding: raw\n\n"
)
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    "ElementSpacing = 1 1 2\nOffset = 5 6 7\nDimSize = 2 3 4\nElementType = MET_UCHAR\n"
    "ElementDataFile = LOCAL\n"
)
VOXELS = bytes(range(24))


def save(path: Path, header: str, voxels: bytes = VOXELS) -> Path:
    path.write_bytes(header.encode() + voxels)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataRefused) as caught:
        read_image(path)
    assert caught.value.file
    assert caught.value.fix
    return str(caught.value)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
def test_lps_becomes_ras_in_every_orientation(
    tmp_path: Path, ending: str, compressed: bool
) -> None:
    stored = some_labels().astype(np.int16) - 3
    path = tmp_path / f"a{ending}"
    for axes in forty_eight_axes()[::5]:
        grid = oriented_grid(axes, TILTS["oblique"])
        SimpleITK.WriteImage(itk_image(stored, grid.affine), str(path), compressed)
        volume = read_image(path)
        np.testing.assert_allclose(volume.native.grid.affine, grid.affine, atol=1e-9)
        np.testing.assert_array_equal(volume.native.orientation.restore(volume.array), stored)
        assert volume.array.dtype == np.int16
        assert volume.notes == ()
        assert read_grid(path) == volume.native


def test_lps_becomes_ras_by_hand(tmp_path: Path) -> None:
    for path in (save(tmp_path / "a.nrrd", NRRD), save(tmp_path / "a.mha", META)):
        volume = read_image(path)
        assert volume.native.grid.affine.tolist() == [
            [-1, 0, 0, -5],
            [0, -1, 0, -6],
            [0, 0, 2, 7],
            [0, 0, 0, 1],
        ]
        assert volume.array[0].tolist() == [[5, 4], [3, 2], [1, 0]]


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize(
    "dtype",
    [
        *("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("float32", "float64"),
    ],
)
def test_every_type_of_number_is_read(tmp_path: Path, ending: str, dtype: str) -> None:
    stored = some_labels().astype(dtype)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(stored), str(tmp_path / f"a{ending}"), True)
    volume = read_image(tmp_path / f"a{ending}")
    assert volume.array.dtype == stored.dtype
    np.testing.assert_array_equal(volume.native.orientation.restore(volume.array), stored)


def test_big_endian_voxels_come_in_native_order(tmp_path: Path) -> None:
    voxels = np.arange(24, dtype=">u2")
    nrrd = NRRD.replace("uint8", "ushort\nendian: big")
    meta = META.replace("MSB = False", "MSB = True").replace("UCHAR", "USHORT")
    for path in (
        save(tmp_path / "a.nrrd", nrrd, voxels.tobytes()),
        save(tmp_path / "a.mha", meta, voxels.tobytes()),
    ):
        volume = read_image(path)
        assert volume.array.dtype.isnative
        assert volume.native.orientation.restore(volume.array).ravel().tolist() == list(range(24))


def test_headers_with_windows_line_ends_comments_and_keys_are_read(tmp_path: Path) -> None:
    header = NRRD.replace("type:", "# type: double\nkey:=sizes: 9 9 9\ntype:")
    windows = header.replace("\n", "\r\n")
    assert read_image(save(tmp_path / "a.nrrd", header)).array.shape == (4, 3, 2)
    assert read_image(save(tmp_path / "b.nrrd", windows)).array.shape == (4, 3, 2)


def test_one_frame_and_one_component_are_a_volume(tmp_path: Path) -> None:
    four = NRRD.replace("dimension: 3", "dimension: 4").replace("sizes: 2 3 4", "sizes: 1 2 3 4")
    four = four.replace("directions:", "directions: none")
    four = four.replace("encoding", "kinds: list domain domain domain\nencoding")
    assert read_image(save(tmp_path / "a.nrrd", four)).array.shape == (4, 3, 2)
    image = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(some_labels())])
    SimpleITK.WriteImage(image, str(tmp_path / "b.mha"), True)
    assert read_image(tmp_path / "b.mha").array.shape == (4, 5, 6)


def test_frames_and_components_are_refused_by_number(tmp_path: Path) -> None:
    one = SimpleITK.GetImageFromArray(some_labels())
    SimpleITK.WriteImage(SimpleITK.JoinSeries([one] * 5), str(tmp_path / "a.mha"))
    assert "4-D volume with 5 frames" in refusal(tmp_path / "a.mha")
    for name in ("b.nrrd", "b.mha"):
        SimpleITK.WriteImage(SimpleITK.Compose([one] * 3), str(tmp_path / name))
        assert "every voxel holds 3 numbers" in refusal(tmp_path / name)
    flat = SimpleITK.GetImageFromArray(some_labels()[0])
    for name in ("c.nrrd", "c.mha"):
        SimpleITK.WriteImage(flat, str(tmp_path / name))
        assert "2-D image" in refusal(tmp_path / name)


def test_a_space_without_patient_axes_is_noted(tmp_path: Path) -> None:
    header = NRRD.replace("space: left-posterior-superior", "space dimension: 3")
    assert any(
        "taken as LPS" in note for note in read_image(save(tmp_path / "a.nrrd", header)).notes
    )


@pytest.mark.parametrize(
    ("space", "signs"),
    [("right-anterior-superior", (1, 1)), ("left-anterior-superior", (-1, 1)), ("RAS", (1, 1))],
)
def test_other_patient_spaces_of_nrrd_are_turned(
    tmp_path: Path, space: str, signs: tuple[int, int]
) -> None:
    volume = read_image(save(tmp_path / "a.nrrd", NRRD.replace("left-posterior-superior", space)))
    assert np.diag(volume.native.grid.affine).tolist() == [*signs, 2, 1]


def test_volumes_without_spacing_are_refused_unless_it_is_assumed(tmp_path: Path) -> None:
    directions = "space directions: (1,0,0) (0,1,0) (0,0,2)\nspace origin: (5,6,7)\n"
    bare = NRRD.replace("space: left-posterior-superior\n", "").replace(directions, "")
    nrrd = save(tmp_path / "a.nrrd", bare)
    meta = save(tmp_path / "a.mha", META.replace("ElementSpacing = 1 1 2\n", ""))
    for path in (nrrd, meta):
        assert "does not say where" in refusal(path)
        volume = read_image(path, assume_spacing=(1, 2, 3))
        assert volume.grid.spacing_xyz == (1, 2, 3)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("NRRD0004", "NRRD", "NRRD0001"),
        ("sizes: 2 3 4", "sizes: 2 3", "2 sizes"),
        ("sizes: 2 3 4", "sizes: 2 -3 4", "whole numbers"),
        ("sizes: 2 3 4", "sizes: 2 0 4", "empty"),
        ("sizes: 2 3 4", "sizes: 2 3 5", "ends before its voxels"),
        ("sizes: 2 3 4", "sizes: 2 3 3", "more voxel data"),
        ("sizes: 2 3 4", "sizes: 2 3 4\nsizes: 2 3 4", "twice"),
        ("sizes: 2 3 4", f"sizes: {10**17} {10**17} 4", "ends before its voxels"),
        ("sizes: 2 3 4", f"sizes: 2 3 {10**30}", "whole numbers"),
        ("sizes: 2 3 4\n", "", "no field 'sizes'"),
        ("type: uint8", "type: block", "no plain number"),
        ("type: uint8", "type: ushort", "endian"),
        ("encoding: raw", "encoding: hex", "encoding hex"),
        ("encoding: raw", "encoding: raw\nbyte skip: 4", "byte skip: 4"),
        ("encoding: raw", "encoding: raw\nline skip: 1", "line skip: 1"),
        ("(1,0,0)", "(0,0,0)", "spacing is zero"),
        ("(1,0,0)", "(nan,0,0)", "finite numbers"),
        # Teem's parser writes beyond its buffer for such a vector.
        ("(1,0,0)", "(1,0,0" + "x" * 3000 + ")", "finite numbers"),
        ("(1,0,0) (0,1,0)", "(1,0,0)", "one per axis"),
        ("(0,1,0)", "(1,0,0)", "do not span"),
        ("raw\n\n", "raw\n", "header without end"),
    ],
)
def test_impossible_nrrd_headers_are_refused(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in NRRD
    # Voxel values 1 and above: without its empty line the header must not end by chance.
    voxels = bytes([1]) * 24
    assert words in refusal(save(tmp_path / "a.nrrd", NRRD.replace(old, new), voxels))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("DimSize = 2 3 4", "DimSize = 2 3", "2 sizes"),
        ("DimSize = 2 3 4", "DimSize = 2 3 5", "ends before its voxels"),
        ("DimSize = 2 3 4", "DimSize = 2 3 3", "more voxel data"),
        ("DimSize = 2 3 4", "DimSize = 2 3 4\nDimSize = 2 3 4", "twice"),
        ("DimSize = 2 3 4", f"DimSize = {10**17} {10**17} 4", "ends before its voxels"),
        ("NDims = 3\n", "", "no field 'NDims'"),
        ("MET_UCHAR", "MET_OTHER", "no plain number"),
        ("BinaryData = True", "BinaryData = False", "text data"),
        ("ElementDataFile", "HeaderSize = 7\nElementDataFile", "HeaderSize = 7"),
        ("ElementSpacing = 1 1 2", "ElementSpacing = 1 0 2", "spacing is zero"),
        ("ElementSpacing = 1 1 2", "ElementSpacing = 1 -1 2", "zero or negative"),
        ("ElementDataFile = LOCAL\n", "", "header line"),
        ("LOCAL", "LIST", "several files"),
        ("LOCAL", "slice%03d.raw 1 4 1", "several files"),
        ("LOCAL", "other.raw", "no file 'other.raw'"),
        ("LOCAL", "x" * 3000, "no file 'xxx"),
        ("LOCAL", "\x07.raw", "data file of this header is missing"),
        ("Offset = 5 6 7", "Offset = 5 6 1e999", "finite numbers"),
        ("Offset = 5 6 7", "Offset = 5 6 1e99", "finite numbers"),
        ("Offset = 5 6 7", "Offset = 5 6", "finite numbers"),
        ("Offset = 5 6 7", "Offset = 5 6 1_0", "finite numbers"),
        ("Offset", "TransformMatrix = 1 0 0 0 1 0 1 0 0\nOffset", "do not span"),
    ],
)
def test_impossible_meta_headers_are_refused(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in META
    assert words in refusal(save(tmp_path / "a.mha", META.replace(old, new)))


OUTSIDE = ["../voxels.raw", "/etc/passwd", "sub/../../voxels.raw", "~/voxels.raw", "C:voxels.raw"]


@pytest.mark.parametrize("name", [*OUTSIDE, "..\\voxels.raw"])
def test_detached_voxels_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "voxels.raw").write_bytes(VOXELS)
    (tmp_path / "in").mkdir()
    meta = save(tmp_path / "in" / "a.mhd", META.replace("LOCAL", name), b"")
    nrrd = save(
        tmp_path / "in" / "a.nrrd", NRRD.replace("raw\n\n", f"raw\ndata file: {name}\n"), b""
    )
    for path in (meta, nrrd):
        assert "outside its own folder" in refusal(path)


def test_detached_voxels_are_read_and_verified(tmp_path: Path) -> None:
    (tmp_path / "the voxels.raw").write_bytes(VOXELS)
    meta = save(tmp_path / "a.mhd", META.replace("LOCAL", "the voxels.raw"), b"")
    nrrd = save(
        tmp_path / "a.nrrd", NRRD.replace("raw\n\n", "raw\ndata file: the voxels.raw\n"), b""
    )
    volumes = [read_image(path) for path in (meta, nrrd)]
    assert volumes[0].array[0].tolist() == [[5, 4], [3, 2], [1, 0]]
    assert volumes[0].grid.compare(volumes[1].grid) is GridMatch.EQUAL
    np.testing.assert_array_equal(volumes[0].array, volumes[1].array)
    (tmp_path / "the voxels.raw").write_bytes(VOXELS[:-1])
    for path in (meta, nrrd):
        assert "the voxels.raw" in refusal(path)


def test_a_wrong_length_of_compressed_data_is_refused(tmp_path: Path) -> None:
    packed = zlib.compress(VOXELS)
    header = META.replace("DimSize", "CompressedData = True\nCompressedDataSize = {}\nDimSize")
    right = save(tmp_path / "a.mha", header.format(len(packed)), packed)
    assert read_image(right).array.shape == (4, 3, 2)
    assert "another length" in refusal(
        save(tmp_path / "b.mha", header.format(len(packed) + 1), packed)
    )
    assert "bytes follow" in refusal(
        save(tmp_path / "c.mha", header.format(len(packed) + 1), packed + b"x")
    )
    gzipped = gzip.compress(VOXELS)  # MetaIO inflates both
    assert read_image(save(tmp_path / "d.mha", header.format(len(gzipped)), gzipped))


def test_headers_are_taken_as_simpleitk_takes_them(tmp_path: Path) -> None:
    """Every way a header of a volume can say where it is, against SimpleITK's answer."""
    spacings = NRRD.replace("space directions: (1,0,0) (0,1,0) (0,0,2)\n", "spacings: 1 3 2\n")
    spacings = spacings.replace("space: left-posterior-superior\n", "").replace(
        "space origin: (5,6,7)\n", ""
    )
    turned = "1 0 0 0 0 1 0 -1 0"
    headers = {
        "spacings.nrrd": spacings,
        "ras.nrrd": NRRD.replace("left-posterior-superior", "RAS"),
        "las.nrrd": NRRD.replace("left-posterior-superior", "left-anterior-superior"),
        "sheared.nrrd": NRRD.replace("(0,1,0)", "(0.3,1.5,-0.2)"),
        "exponents.nrrd": NRRD.replace("(5,6,7)", "( -5e-1 , .25 , +7. )"),
        "plain.mha": META,
        "size.mha": META.replace("ElementSpacing", "ElementSize"),
        "matrix.mha": META.replace("Offset", f"TransformMatrix = {turned}\nOffset"),
        "rotation.mha": META.replace("Offset", f"Rotation = {turned}\nPosition"),
        "orientation.mha": META.replace("Offset", f"Orientation = {turned}\nOrigin"),
    }
    for name, header in headers.items():
        volume = read_image(save(tmp_path / name, header))
        theirs = SimpleITK.ReadImage(str(tmp_path / name))
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(theirs.GetDirection(), (3, 3)) * theirs.GetSpacing()
        affine[:3, 3] = theirs.GetOrigin()
        ours = np.diag([-1.0, -1, 1, 1]) @ volume.native.grid.affine
        np.testing.assert_allclose(ours, affine, atol=1e-12, err_msg=name)
        stored = volume.native.orientation.restore(volume.array)
        np.testing.assert_array_equal(stored, SimpleITK.GetArrayFromImage(theirs), err_msg=name)
