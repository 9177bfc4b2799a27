"""Writing: results lie over their queries, say nothing more than they must, and read back."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings

from iris_cli.errors import EnvironmentProblem, UsageError
from iris_cli.volume import payload, writing
from iris_cli.volume.grid import Grid, GridMatch
from iris_cli.volume.orientation import canonical_orientation
from iris_cli.volume.reading import read_class_names, read_grid, read_image, read_labels
from iris_cli.volume.writing import write_image, write_labels
from tests.volume.examples import (
    TILTS,
    forty_eight_axes,
    grids,
    oriented_grid,
    save_nifti,
    some_labels,
)

OBLIQUE = oriented_grid(forty_eight_axes()[10], TILTS["oblique"])
ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha")
GEOMETRY_FIELDS = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


@pytest.mark.parametrize("tilt", TILTS)
def test_results_in_forty_eight_orientations_lie_over_their_queries(
    tmp_path: Path, tilt: str
) -> None:
    stored = some_labels()
    for number, axes in enumerate(forty_eight_axes()):
        query = tmp_path / f"q{number}.nii"
        save_nifti(query, stored, oriented_grid(axes, TILTS[tilt]).affine)
        volume = read_labels(query)
        theirs = nibabel.load(write_labels(tmp_path / "out.nii", volume.array, volume.native))
        np.testing.assert_array_equal(np.asarray(theirs.dataobj).T, stored)
        ours = nibabel.load(query).header
        for field in GEOMETRY_FIELDS:
            np.testing.assert_array_equal(theirs.header[field], ours[field], err_msg=field)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("source", ENDINGS)
def test_every_format_becomes_every_other(tmp_path: Path, source: str, ending: str) -> None:
    stored = some_labels()
    first = write_image(tmp_path / f"a{source}", stored, OBLIQUE_CANONICAL, dtype=np.int16)
    volume = read_image(first)
    second = write_labels(tmp_path / f"b{ending}", volume.array, volume.native)
    back = read_labels(second)
    np.testing.assert_array_equal(back.array, stored)
    assert back.grid.compare(volume.grid) is GridMatch.EQUAL
    image = SimpleITK.ReadImage(str(second))
    np.testing.assert_array_equal(
        back.native.orientation.apply_array(SimpleITK.GetArrayFromImage(image)), stored
    )


OBLIQUE_CANONICAL = oriented_grid(np.eye(3), TILTS["oblique"])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(grids(largest=4))
def test_what_is_written_is_read(tmp_path: Path, grid: Grid) -> None:
    canonical = canonical_orientation(grid).apply_grid(grid)
    labels = some_labels(canonical.shape_zyx, top=300)
    for ending in ENDINGS:
        back = read_labels(write_labels(tmp_path / f"a{ending}", labels, canonical))
        np.testing.assert_array_equal(back.array, labels)
        assert back.grid.compare(canonical) is GridMatch.EQUAL


@pytest.mark.parametrize(("code", "scale"), [(1, 1e3), (2, 1), (3, 1e-3)])
def test_units_come_back(tmp_path: Path, code: int, scale: float) -> None:
    save_nifti(tmp_path / "q.nii", some_labels(), OBLIQUE.affine, xyzt_units=code + 8)
    volume = read_labels(tmp_path / "q.nii")
    out = write_labels(tmp_path / "o.nii.gz", volume.array, volume.native)
    header = nibabel.load(out).header
    assert header["xyzt_units"] == code + 8
    np.testing.assert_allclose(header.get_sform(), OBLIQUE.affine, atol=1e-4)
    np.testing.assert_allclose(
        read_grid(out).grid.spacing_xyz, np.array(OBLIQUE.spacing_xyz) * scale, rtol=1e-5
    )


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_micrometres_of_text_headers_come_back(tmp_path: Path, ending: str) -> None:
    image = SimpleITK.GetImageFromArray(some_labels())
    image.SetSpacing((0.5, 0.5, 2.0))
    image.SetMetaData("ITK_VoxelUnits", "um")
    query = tmp_path / f"q{ending}"
    SimpleITK.WriteImage(image, str(query))
    if ending == ".nrrd":
        unit = b'space units: "um" "um" "um"\nspace origin:'
        query.write_bytes(query.read_bytes().replace(b"space origin:", unit))
    volume = read_labels(query)
    np.testing.assert_allclose(volume.grid.spacing_xyz, (0.0005, 0.0005, 0.002))
    assert any("um" in note for note in volume.notes)
    out = write_labels(tmp_path / f"o{ending}", volume.array, volume.native)
    assert read_grid(out).length_unit == "um"
    assert read_grid(out).grid.compare(volume.native.grid) is GridMatch.EQUAL
    np.testing.assert_allclose(SimpleITK.ReadImage(str(out)).GetSpacing(), (0.5, 0.5, 2.0))


def test_files_without_position_stay_without(tmp_path: Path) -> None:
    save_nifti(tmp_path / "q.nii", some_labels(), np.eye(4), sform_code=0, qform_code=0)
    volume = read_labels(tmp_path / "q.nii", assume_spacing=0.5)
    out = write_labels(tmp_path / "o.nii.gz", volume.array, volume.native)
    # A header alone: as part of an image nibabel would fill in what is missing.
    header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(gzip.decompress(out.read_bytes())))
    assert (header["sform_code"], header["qform_code"]) == (0, 0)
    np.testing.assert_array_equal(read_labels(out, assume_spacing=0.5).array, volume.array)


def test_sheared_volumes_are_written_as_they_are(tmp_path: Path) -> None:
    affine = OBLIQUE_CANONICAL.affine.copy()
    affine[:3, 2] += 0.3 * affine[:3, 0]
    sheared = Grid(OBLIQUE_CANONICAL.shape_zyx, affine)
    for ending in ENDINGS:
        back = read_labels(write_labels(tmp_path / f"a{ending}", some_labels(), sheared))
        assert back.grid.compare(sheared) is GridMatch.EQUAL


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 255], "uint8"), ([0, 256], "uint16"), ([-1, 3], "int8"), ([0, 70000], "uint32")],
)
def test_the_smallest_integer_type_is_stored(
    tmp_path: Path, values: list[int], expected: str
) -> None:
    array = np.array(values * 4, dtype=np.int64).reshape(2, 2, 2)
    out = write_labels(tmp_path / "a.nii", array, Grid.from_spacing((2, 2, 2), (1, 1, 1)))
    assert nibabel.load(out).get_data_dtype() == np.dtype(expected)


def test_masks_and_floats_are_written(tmp_path: Path) -> None:
    mask = some_labels() > 3
    np.testing.assert_array_equal(
        read_labels(write_labels(tmp_path / "m.nii.gz", mask, OBLIQUE_CANONICAL)).array, mask
    )
    image = np.random.default_rng(0).normal(size=mask.shape)
    image[0, 0, 0] = np.nan
    for ending in ENDINGS:
        back = read_image(write_image(tmp_path / f"i{ending}", image, OBLIQUE_CANONICAL))
        np.testing.assert_array_equal(back.array, image.astype(np.float32))


@pytest.mark.parametrize("ending", ENDINGS)
def test_class_names_travel_with_the_labels(tmp_path: Path, ending: str) -> None:
    names = {2: 'kidney "left" \\ a=b: c', 1: "Leber, groß"}
    out = write_labels(tmp_path / f"a{ending}", some_labels(), OBLIQUE_CANONICAL, class_names=names)
    assert read_class_names(out) == names
    np.testing.assert_array_equal(read_labels(out).array, some_labels())
    plain = write_labels(tmp_path / f"b{ending}", some_labels(), OBLIQUE_CANONICAL)
    assert read_class_names(plain) == {}


def test_identifiers_of_the_query_are_dropped(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(some_labels().T, OBLIQUE.affine)
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = "DOE^JANE"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(4, b"DOE^JANE 1970"))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"seen by Dr DOE^JANE"))
    nibabel.save(image, tmp_path / "q.nii")
    assert b"DOE" in (tmp_path / "q.nii").read_bytes()
    volume = read_labels(tmp_path / "q.nii")
    assert read_class_names(tmp_path / "q.nii") == {}
    for ending in (".nii", ".nrrd", ".mha"):
        out = write_labels(tmp_path / f"o{ending}", volume.array, volume.native)
        assert b"DOE" not in out.read_bytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_same_content_gives_the_same_bytes(tmp_path: Path, ending: str) -> None:
    first, second = (
        write_labels(tmp_path / f"{name}{ending}", some_labels(), OBLIQUE_CANONICAL).read_bytes()
        for name in ("one", "other")
    )
    assert first == second
    if ending == ".nii.gz":
        assert first[3] == 0  # no name
        assert first[4:8] == b"\0\0\0\0"  # no time


def test_zlib_serves_where_isal_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    import zlib

    monkeypatch.setattr(payload, "DEFLATE", zlib)
    monkeypatch.setattr(writing, "DEFLATE", zlib)
    out = write_labels(tmp_path / "a.nii.gz", some_labels(), OBLIQUE_CANONICAL)
    np.testing.assert_array_equal(read_labels(out).array, some_labels())


def test_very_long_volumes_become_nifti_2(tmp_path: Path) -> None:
    grid = Grid.from_spacing((1, 1, 40000), (1, 1, 1))
    out = write_labels(tmp_path / "a.nii.gz", np.ones((1, 1, 40000), np.uint8), grid)
    assert isinstance(nibabel.load(out), nibabel.Nifti2Image)


def test_a_file_that_does_not_read_back_is_not_published(tmp_path: Path, monkeypatch: Any) -> None:
    honest = writing._write_nifti

    def dishonest(temporary: Path, stored: Any, *rest: Any) -> None:
        honest(temporary, stored + 1, *rest)

    monkeypatch.setattr(writing, "_write_nifti", dishonest)
    with pytest.raises(EnvironmentProblem, match="does not read back"):
        write_labels(tmp_path / "a.nii", some_labels(), OBLIQUE_CANONICAL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_cut_short_by_the_disk_is_not_published(
    tmp_path: Path, monkeypatch: Any, ending: str
) -> None:
    def cut(name: str) -> None:
        honest = getattr(writing, name)

        def write(temporary: Path, *rest: Any) -> None:
            honest(temporary, *rest)
            temporary.write_bytes(temporary.read_bytes()[:-9])

        monkeypatch.setattr(writing, name, write)

    cut("_write_nifti")
    cut("_write_text_volume")
    with pytest.raises(EnvironmentProblem, match="does not read back"):
        write_labels(tmp_path / f"a{ending}", some_labels(), OBLIQUE_CANONICAL)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_simpleitk_is_a_problem_of_the_environment(
    tmp_path: Path, monkeypatch: Any
) -> None:
    class Writer(SimpleITK.ImageFileWriter):
        def Execute(self, *_: Any) -> None:
            raise RuntimeError("Exception thrown\nITK ERROR: no space left")

    monkeypatch.setattr(SimpleITK, "ImageFileWriter", Writer)
    with pytest.raises(EnvironmentProblem) as caught:
        write_labels(tmp_path / "a.mha", some_labels(), OBLIQUE_CANONICAL)
    assert "no space left" in str(caught.value.found)
    assert list(tmp_path.iterdir()) == []


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not fit"):
        write_labels(tmp_path / "a.nii", some_labels((2, 2, 2)), OBLIQUE_CANONICAL)
    with pytest.raises(UsageError, match="integers"):
        write_labels(tmp_path / "a.nii", some_labels() * 1.0, OBLIQUE_CANONICAL)
    with pytest.raises(UsageError, match="two files"):
        write_labels(tmp_path / "a.mhd", some_labels(), OBLIQUE_CANONICAL)
    with pytest.raises(UsageError, match="no volume"):
        write_labels(tmp_path / "a.png", some_labels(), OBLIQUE_CANONICAL)
    with pytest.raises(UsageError, match="float16"):
        write_image(tmp_path / "a.nii", some_labels(), OBLIQUE_CANONICAL, dtype=np.float16)


def test_plain_grids_are_stored_as_they_are(tmp_path: Path) -> None:
    """Also the tie at 45 degrees, which nibabel would turn again."""
    tie = np.eye(4)
    tie[:3, :3] = [
        [0.6685825993228565, 0.3255681451164298, 0.6685825993228565],
        [-0.6627840767246411, 0.6685826, 0.3372159232753588],
        [-0.3372159232753588, -0.6685826, 0.6627840767246411],
    ]
    tie[:3, :3] = np.linalg.qr(tie[:3, :3])[0]
    for grid in (OBLIQUE, Grid((4, 5, 6), tie)):
        labels = some_labels(grid.shape_zyx)
        for ending in ENDINGS:
            volume = read_labels(write_labels(tmp_path / f"a{ending}", labels, grid))
            np.testing.assert_array_equal(volume.native.orientation.restore(volume.array), labels)
            assert volume.native.grid.compare(grid) is GridMatch.EQUAL
