"""Reading: what a volume is, what is said about it, and every refusal with its words."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from iris_cli.errors import DataRefused, EnvironmentProblem, IrisError, UsageError
from iris_cli.volume.grid import GridMatch
from iris_cli.volume.reading import (
    VOLUME_ENDINGS,
    is_volume,
    read_class_names,
    read_grid,
    read_image,
    read_labels,
    volume_name,
)
from tests.volume.examples import (
    TILTS,
    forty_eight_axes,
    oriented_grid,
    patch,
    save_nifti,
    some_labels,
)

OBLIQUE = oriented_grid(forty_eight_axes()[10], TILTS["oblique"])


def refusal(path: Path, **options: Any) -> IrisError:
    with pytest.raises(DataRefused) as caught:
        read_image(path, **options)
    assert caught.value.file == str(path)
    assert caught.value.fix
    assert caught.value.exit_code == 4
    return caught.value


# Names


@pytest.mark.parametrize("ending", VOLUME_ENDINGS)
def test_names_lose_their_whole_ending(ending: str) -> None:
    assert volume_name(Path("a/case.01" + ending)) == "case.01"
    assert volume_name("CASE" + ending.upper()) == "CASE"
    assert is_volume("case" + ending)
    assert not is_volume(".case" + ending)


def test_other_files_are_no_volumes() -> None:
    assert not is_volume("labels.json")
    assert volume_name("labels.json") == "labels.json"


# What a volume is


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_nifti_volume_comes_canonical_with_its_geometry(tmp_path: Path, ending: str) -> None:
    stored = some_labels().astype(np.int16) - 3
    path = save_nifti(tmp_path / f"a{ending}", stored, OBLIQUE.affine)
    volume = read_image(path)
    closest = nibabel.as_closest_canonical(nibabel.load(path))
    np.testing.assert_array_equal(volume.array, np.asarray(closest.dataobj).T)
    np.testing.assert_allclose(volume.grid.affine, closest.affine, atol=1e-5)
    assert volume.array.dtype == np.int16
    assert volume.array.flags.c_contiguous
    assert volume.array.flags.aligned
    assert volume.notes == ()
    assert volume.native.format == ending
    assert volume.native.canonical_grid == volume.grid
    assert read_grid(path) == volume.native


def test_volumes_travel_to_worker_processes(tmp_path: Path) -> None:
    volume = read_image(save_nifti(tmp_path / "a.nii.gz", some_labels(), OBLIQUE.affine))
    copy = pickle.loads(pickle.dumps(volume))
    assert copy.native == volume.native
    assert copy.grid == volume.grid
    assert copy.content_hash() == volume.content_hash()


def test_content_hashes_do_not_see_the_file_format(tmp_path: Path) -> None:
    one = read_image(save_nifti(tmp_path / "a.nii", some_labels(), OBLIQUE.affine))
    two = read_image(save_nifti(tmp_path / "b.nii.gz", some_labels(), OBLIQUE.affine))
    other = read_image(save_nifti(tmp_path / "c.nii", some_labels() + 1, OBLIQUE.affine))
    assert one.content_hash() == two.content_hash() != other.content_hash()


def test_slope_and_intercept_are_honoured(tmp_path: Path) -> None:
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = nibabel.Nifti1Image(stored.T, np.eye(4))
    image.header.set_slope_inter(0.5, -1000)
    nibabel.save(image, tmp_path / "a.nii")
    # nibabel scales on saving, too: put the factors beside the stored numbers by hand.
    patch(save_nifti(tmp_path / "b.nii", stored, np.eye(4)), 112, struct.pack("<ff", 0.5, -1000))
    volume = read_image(tmp_path / "b.nii")
    np.testing.assert_array_equal(volume.array, stored * 0.5 - 1000)
    assert volume.array.dtype == np.float32


def test_slope_zero_means_no_scaling(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", some_labels(), np.eye(4))
    np.testing.assert_array_equal(
        read_image(patch(path, 112, struct.pack("<ff", 0, 7))).array, some_labels()
    )


def test_big_endian_files_come_in_native_order(tmp_path: Path) -> None:
    stored = some_labels().astype(np.int16)
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nibabel.save(nibabel.Nifti1Image(stored.T, OBLIQUE.affine, header), tmp_path / "a.nii.gz")
    volume = read_image(tmp_path / "a.nii.gz")
    assert volume.array.dtype == np.dtype("int16")
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.native.orientation.restore(volume.array), stored)


def test_nifti_2_is_read(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(some_labels().T, OBLIQUE.affine), tmp_path / "a.nii.gz")
    volume = read_image(tmp_path / "a.nii.gz")
    assert volume.native.nifti_header is not None
    assert volume.native.nifti_header.version == 2
    assert volume.native.grid.compare(OBLIQUE) is GridMatch.EQUAL


def test_several_gzip_members_are_one_stream(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", some_labels(), np.eye(4))
    content = path.read_bytes()
    parts = tmp_path / "b.nii.gz"
    parts.write_bytes(b"".join(gzip.compress(content[at : at + 99]) for at in range(0, 999, 99)))
    np.testing.assert_array_equal(read_image(parts).array, some_labels())


def test_one_frame_is_a_volume(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(some_labels().T[..., None, None], OBLIQUE.affine)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert read_image(tmp_path / "a.nii.gz").array.ndim == 3


def test_one_slice_is_a_volume(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", some_labels((1, 5, 6)), np.eye(4))
    assert read_image(path).array.shape == (1, 5, 6)


# Where it is


@pytest.mark.parametrize(("code", "name", "scale"), [(3, "micrometres", 1e-3), (1, "metres", 1e3)])
def test_other_units_are_scaled_to_millimetres(
    tmp_path: Path, code: int, name: str, scale: float
) -> None:
    path = save_nifti(tmp_path / "a.nii", some_labels(), OBLIQUE.affine, xyzt_units=code)
    volume = read_image(path)
    np.testing.assert_allclose(volume.native.grid.affine[:3], OBLIQUE.affine[:3] * scale, rtol=1e-5)
    assert any(name in note for note in volume.notes)


def test_unknown_units_are_millimetres(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", some_labels(), OBLIQUE.affine, xyzt_units=0)
    assert read_image(path).native.grid.compare(OBLIQUE) is GridMatch.EQUAL
    path = save_nifti(tmp_path / "b.nii", some_labels(), OBLIQUE.affine, xyzt_units=5)
    assert any("unit code 5" in note for note in read_image(path).notes)


def two_forms(path: Path, sform_code: int, qform_code: int) -> Path:
    """sform and qform that are 30 mm apart."""
    image = nibabel.Nifti1Image(some_labels().T, OBLIQUE.affine)
    shifted = OBLIQUE.affine.copy()
    shifted[0, 3] += 30
    image.set_sform(OBLIQUE.affine, sform_code)
    image.set_qform(shifted, qform_code)
    image.header["sform_code"], image.header["qform_code"] = sform_code, qform_code
    nibabel.save(image, path)
    return path


def test_the_sform_goes_first_and_a_disagreement_is_noted_with_both(tmp_path: Path) -> None:
    volume = read_image(two_forms(tmp_path / "a.nii", 2, 1))
    assert volume.native.grid.compare(OBLIQUE) is GridMatch.EQUAL
    (note,) = volume.notes
    assert "sform and qform disagree" in note
    assert "sform (code 2)" in note
    assert "qform (code 1)" in note
    assert f"{OBLIQUE.affine[0, 3]:.4g}" in note
    assert f"{OBLIQUE.affine[0, 3] + 30:.4g}" in note


def test_the_qform_goes_second(tmp_path: Path) -> None:
    volume = read_image(two_forms(tmp_path / "a.nii", 0, 1))
    assert volume.native.grid.affine[0, 3] == pytest.approx(OBLIQUE.affine[0, 3] + 30, abs=1e-4)
    assert volume.notes == ()


def test_qfac_zero_means_one(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", some_labels(), np.diag([1.0, 2, 3, 1]), sform_code=0)
    volume = read_image(patch(path, 76, struct.pack("<f", 0)))
    np.testing.assert_allclose(volume.native.grid.affine, np.diag([1.0, 2, 3, 1]))


def test_an_unusable_qform_beside_an_sform_is_noted(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", some_labels(), OBLIQUE.affine, qform_code=1)
    volume = read_image(patch(path, 256, struct.pack("<fff", 1, 1, 1)))
    assert any("qform is not usable" in note for note in volume.notes)


@pytest.mark.parametrize("qform_code", [0, 1])
def test_an_sform_with_other_voxels_than_pixdim_is_noted_with_both(
    tmp_path: Path, qform_code: int
) -> None:
    path = save_nifti(tmp_path / "a.nii", some_labels(), np.eye(4), qform_code=qform_code)
    volume = read_image(patch(path, 80, struct.pack("<fff", 0.7, 0.7, 5)))
    assert volume.grid.spacing_xyz == (1, 1, 1)
    (note,) = [note for note in volume.notes if "pixdim" in note]
    assert "1, 1, 1" in note
    assert "0.7, 0.7, 5" in note
    rounded = read_image(patch(path, 80, struct.pack("<fff", -1.009, 0.991, 1)))
    assert not any("pixdim" in note for note in rounded.notes)


def test_pixdim_is_compared_in_the_unit_of_the_header(tmp_path: Path) -> None:
    affine = np.diag([1000.0, 1000, 1000, 1])
    volume = read_image(save_nifti(tmp_path / "a.nii", some_labels(), affine, xyzt_units=3))
    assert not any("pixdim" in note for note in volume.notes)


def test_a_volume_without_position_is_refused_unless_spacing_is_assumed(tmp_path: Path) -> None:
    path = two_forms(tmp_path / "a.nii", 0, 0)
    error = refusal(path)
    assert "does not say where" in error.problem
    assert "codes 0, 0" in str(error.found)
    assert "--assume-spacing" in str(error.fix)
    volume = read_image(path, assume_spacing=(0.5, 1, 2))
    assert volume.grid.spacing_xyz == (0.5, 1, 2)
    assert volume.native.assumed_spacing_xyz == (0.5, 1, 2)
    assert "spacing 0.5 x 1 x 2 mm" in volume.notes[0]
    assert read_grid(path, assume_spacing=2.0).grid.spacing_xyz == (2, 2, 2)


def test_an_assumed_spacing_overrides_no_header(tmp_path: Path) -> None:
    volume = read_image(two_forms(tmp_path / "a.nii", 1, 0), assume_spacing=9.0)
    assert volume.native.grid.compare(OBLIQUE) is GridMatch.EQUAL
    assert volume.native.assumed_spacing_xyz is None


@pytest.mark.parametrize("spacing", [0, -1.0, float("nan"), (1.0, 1.0), (1.0, 1.0, 0.0)])
def test_impossible_assumed_spacings_are_refused(tmp_path: Path, spacing: Any) -> None:
    with pytest.raises(UsageError, match="assumed spacing"):
        read_image(two_forms(tmp_path / "a.nii", 0, 0), assume_spacing=spacing)


def test_axes_off_by_rounding_are_repaired_and_said_so(tmp_path: Path) -> None:
    affine = OBLIQUE.affine.copy()
    affine[0, 1] += 2e-4
    volume = read_image(save_nifti(tmp_path / "a.nii", some_labels(), affine, qform_code=0))
    assert volume.grid.is_orthonormal
    assert any("repaired" in note for note in volume.notes)


def test_sheared_volumes_are_kept_and_said_so(tmp_path: Path) -> None:
    affine = OBLIQUE.affine.copy()
    affine[:3, 2] += 0.4 * affine[:3, 0]
    volume = read_image(save_nifti(tmp_path / "a.nii", some_labels(), affine, qform_code=0))
    np.testing.assert_allclose(volume.native.grid.affine, affine, atol=1e-4)
    assert any("sheared" in note for note in volume.notes)


# Labels


def test_labels_take_the_smallest_type(tmp_path: Path) -> None:
    cases: list[tuple[list[int], str]] = [
        ([0, 255], "uint8"),
        ([-1, 100], "int8"),
        ([0, 256], "uint16"),
        ([-1, 300], "int16"),
        ([0, 70000], "uint32"),
    ]
    for values, expected in cases:
        stored = np.array(values * 4, dtype=np.int32).reshape(2, 2, 2)
        labels = read_labels(save_nifti(tmp_path / "a.nii.gz", stored, np.eye(4)))
        assert labels.array.dtype == np.dtype(expected)
        np.testing.assert_array_equal(labels.array, stored)


def test_float_stored_whole_labels_are_accepted(tmp_path: Path) -> None:
    stored = some_labels().astype(np.float32)
    labels = read_labels(save_nifti(tmp_path / "a.nii.gz", stored, np.eye(4)))
    assert labels.array.dtype == np.uint8
    np.testing.assert_array_equal(labels.array, stored)
    # 255 steps of 1/255 in float32 are whole but for rounding.
    path = save_nifti(tmp_path / "b.nii", some_labels() * np.uint8(42), np.eye(4))
    scaled = patch(path, 112, struct.pack("<ff", 1 / 42, 0))
    np.testing.assert_array_equal(read_labels(scaled).array, some_labels())


@pytest.mark.parametrize("value", [0.5, 1.001, float("nan"), float("inf")])
def test_labels_that_are_not_whole_are_refused(tmp_path: Path, value: float) -> None:
    stored = some_labels().astype(np.float32)
    stored[1, 1, 1] = value
    with pytest.raises(DataRefused, match="whole numbers") as caught:
        read_labels(save_nifti(tmp_path / "a.nii", stored, np.eye(4)))
    assert f"1 voxels that are not whole, such as {value:.6g}" in str(caught.value.found)


def test_labels_beyond_exact_floats_are_refused(tmp_path: Path) -> None:
    stored = np.full((2, 2, 2), 1e30)
    with pytest.raises(DataRefused, match="too large"):
        read_labels(save_nifti(tmp_path / "a.nii", stored, np.eye(4)))


# Refusals


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "a.nrrd", "a.mha"):
        for read in (read_image, read_labels, read_grid, read_class_names):
            with pytest.raises(UsageError, match="no such file"):
                read(tmp_path / name)


def test_a_folder_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "a.nii").mkdir()
    with pytest.raises(UsageError, match="this is no file"):
        read_image(tmp_path / "a.nii")


def test_other_endings_are_a_usage_error_that_names_the_legal_ones(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        read_image(tmp_path / "a.dcm")
    assert ".nii.gz, .nii, .nrrd, .mha, .mhd" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_a_problem_of_the_environment(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", some_labels(), np.eye(4))
    path.chmod(0)
    with pytest.raises(EnvironmentProblem):
        read_image(path)


def test_several_frames_are_refused_by_number(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4, 5)), np.eye(4)), tmp_path / "a.nii.gz")
    error = refusal(tmp_path / "a.nii.gz")
    assert error.problem == "this is a 4-D volume with 5 frames"
    assert "(2, 3, 4, 5)" in str(error.found)


def test_flat_images_are_refused_with_their_shape(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 30)), np.eye(4)), tmp_path / "a.nii")
    error = refusal(tmp_path / "a.nii")
    assert error.problem == "this is a 2-D image, not a volume"
    assert "(20, 30)" in str(error.found)


@pytest.mark.parametrize("dtype", ["complex64", [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_voxels_that_are_no_numbers_are_refused(tmp_path: Path, dtype: Any) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), dtype=dtype), np.eye(4))
    nibabel.save(image, tmp_path / "a.nii")
    assert "not plain numbers" in refusal(tmp_path / "a.nii").problem


# Offsets in a NIfTI-1 header: dim 40, datatype 70, bitpix 72, pixdim 76, vox_offset 108,
# scl_slope 112, qform_code 252, sform_code 254, srow_x 280, magic 344.
@pytest.mark.parametrize(
    ("offset", "content", "words"),
    [
        (0, struct.pack("<i", 347), "header size 347"),
        (40, struct.pack("<h", 9), "9 dimensions"),
        (42, struct.pack("<h", 0), "empty"),
        (42, struct.pack("<h", -6), "empty"),
        (42, struct.pack("<h", 7), "ends before its voxels"),
        (42, struct.pack("<h", 5), "more voxel data"),
        (70, struct.pack("<h", 99), "type code 99"),
        (72, struct.pack("<h", 16), "16 bits per voxel"),
        (108, struct.pack("<f", np.nan), "voxel data at byte nan"),
        (108, struct.pack("<f", 100), "voxel data at byte 100"),
        (108, struct.pack("<f", 1e9), "ends before its voxels"),
        (112, struct.pack("<ff", np.inf, 0), "scaling"),
        (112, struct.pack("<ff", 2, np.nan), "scaling"),
        (280, struct.pack("<4f", 0, 0, 0, 0), "spacing is zero"),
        (280, struct.pack("<f", np.nan), "not finite"),
        (280, struct.pack("<f", np.inf), "not finite"),
        (344, b"ni1\0", "no single-file NIfTI"),
        (344, b"\0\0\0\0", "no single-file NIfTI"),
    ],
)
def test_impossible_headers_are_refused(
    tmp_path: Path, offset: int, content: bytes, words: str
) -> None:
    path = save_nifti(tmp_path / "a.nii", some_labels(), np.eye(4))
    assert words in str(refusal(patch(path, offset, content)))


@pytest.mark.parametrize(
    ("offset", "content", "words"),
    [
        (80, struct.pack("<f", 0), "spacing is zero"),
        (80, struct.pack("<f", np.nan), "spacing is zero or not finite"),
        (256, struct.pack("<fff", 1, 1, 1), "no rotation"),
        (256, struct.pack("<f", np.nan), "not finite"),
        (268, struct.pack("<f", np.inf), "not finite"),
    ],
)
def test_impossible_qforms_are_refused(
    tmp_path: Path, offset: int, content: bytes, words: str
) -> None:
    path = save_nifti(tmp_path / "a.nii", some_labels(), np.eye(4), sform_code=0, qform_code=1)
    assert words in str(refusal(patch(path, offset, content)))


@pytest.mark.parametrize("ending", VOLUME_ENDINGS)
@pytest.mark.parametrize("content", [b"", b"\0" * 10, b"\x1f\x8b", b"NRRD0004\n", b"hello\n" * 99])
def test_files_of_other_content_are_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(content)
    refusal(path)


def test_bytes_after_a_compressed_volume_are_refused(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", some_labels(), np.eye(4))
    path.write_bytes(path.read_bytes() + b"x")
    assert "bytes follow" in refusal(path).problem


def test_a_compressed_volume_longer_than_its_header_says_is_refused(tmp_path: Path) -> None:
    content = save_nifti(tmp_path / "a.nii", some_labels(), np.eye(4)).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content + b"\0"))
    assert "more voxel data" in refusal(tmp_path / "b.nii.gz").problem


def test_a_claim_that_no_deflate_stream_holds_is_refused_by_the_header_alone(
    tmp_path: Path,
) -> None:
    path = save_nifti(tmp_path / "a.nii", some_labels(), np.eye(4))
    patch(path, 42, struct.pack("<hhh", 30000, 30000, 30000))
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert "more voxels than the file can hold" in refusal(tmp_path / "b.nii.gz").problem
    with pytest.raises(DataRefused, match="more voxels than the file can hold"):
        read_grid(tmp_path / "b.nii.gz")


@pytest.mark.real
def test_every_shared_volume_is_read_as_nibabel_reads_it(shared_data: Path) -> None:
    paths = sorted(shared_data.rglob("*.nii.gz"))
    assert len(paths) > 500
    for path in paths:
        volume = read_image(path)
        theirs = nibabel.as_closest_canonical(nibabel.load(path))
        np.testing.assert_array_equal(volume.array, np.asarray(theirs.dataobj).T)
        unit = {1: 1e3, 3: 1e-3}.get(int(theirs.header["xyzt_units"]) & 7, 1.0)
        # The noise of float32 headers, repaired by us, is far below a tenth of a voxel.
        atol = 0.01 * min(volume.grid.spacing_xyz)
        np.testing.assert_allclose(volume.grid.affine[:3], theirs.affine[:3] * unit, atol=atol)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha"])
def test_an_empty_file_is_called_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataRefused, match="empty"):
        read_image(tmp_path / name)
