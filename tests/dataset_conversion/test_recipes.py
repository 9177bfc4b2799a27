"""Volumes that have to be made: frames, DICOM series, masks in several files."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from dataset_conversion.chaos import read_ground
from dataset_conversion.recipes import (
    labelled_frames,
    merge_masks,
    read_dicom_series,
    read_frame,
    resample_labels,
    volume_of,
)
from iris_cli.errors import DataRefused
from iris_cli.volume.grid import Grid
from iris_cli.volume.writing import write_image
from tests.dataset_conversion.miniature import (
    SHAPE,
    anatomy,
    image,
    mr,
    ras_affine,
    write,
    write_dicom,
    write_png,
)


def test_a_dicom_series_is_stacked_by_position_whatever_the_names(tmp_path: Path) -> None:
    for folder, feet_first in (("up", True), ("down", False)):
        files = write_dicom(tmp_path / folder, mr(), feet_first=feet_first)
        volume = read_dicom_series(files)
        assert np.array_equal(volume.array.transpose(2, 1, 0), mr())
        assert volume.grid.spacing_xyz == (1.5, 1.5, 3.0)


def test_slices_of_a_series_may_have_different_slopes(tmp_path: Path) -> None:
    """The first slice has slope 1, which must not decide the type of the others."""
    stored = np.full(SHAPE, 5000, np.int16)
    pydicom = pytest.importorskip("pydicom")
    for modality, slope, kind in (("PT", 9.5, np.float32), ("CT", 9.0, np.uint16)):
        files = write_dicom(tmp_path / modality, stored, modality=modality)
        for path in files[1:]:
            dataset = pydicom.dcmread(path)
            dataset.RescaleIntercept, dataset.RescaleSlope = "0", str(slope)
            dataset.save_as(path)
        array = read_dicom_series(files).array
        assert array.dtype == kind
        assert [float(plane[0, 0]) for plane in array[:3]] == [5000, 5000 * slope, 5000 * slope]


def test_a_ct_of_whole_numbers_is_of_integers(tmp_path: Path) -> None:
    array = read_dicom_series(write_dicom(tmp_path, image(), modality="CT")).array
    assert array.dtype == np.int16
    assert np.array_equal(array.transpose(2, 1, 0), image())


def test_axes_of_a_frame_that_rounding_bent_are_straightened(tmp_path: Path) -> None:
    """The writer verifies what it wrote, which is read with straight axes."""
    affine = ras_affine()
    affine[0, 1] = 3e-4
    path = write(tmp_path / "x.nii.gz", np.stack([image(n) for n in range(2)], axis=-1))
    nibabel.save(nibabel.Nifti1Image(nibabel.load(path).get_fdata(), affine), path)
    volume = read_frame([path], frame=1)
    assert volume.grid.is_orthonormal
    write_image(tmp_path / "y.nii.gz", volume.array, volume.native, dtype=volume.array.dtype)


def test_a_missing_slice_is_refused(tmp_path: Path) -> None:
    files = write_dicom(tmp_path, mr())
    with pytest.raises(DataRefused, match="not evenly spaced"):
        read_dicom_series([*files[:3], *files[4:]])
    with pytest.raises(DataRefused, match="not evenly spaced"):
        read_dicom_series([*files, files[0]])


def test_a_file_that_is_no_dicom_is_refused(tmp_path: Path) -> None:
    files = write_dicom(tmp_path, mr())
    files[0].write_bytes(b"nothing")
    with pytest.raises(DataRefused, match="no DICOM image"):
        read_dicom_series(files)


def test_masks_of_another_number_or_size_are_refused(tmp_path: Path) -> None:
    files = write_dicom(tmp_path / "dicom", mr())
    masks = [
        write_png(tmp_path / f"ground/{n}.png", np.zeros((SHAPE[1], SHAPE[0])))
        for n in range(SHAPE[2])
    ]
    with pytest.raises(DataRefused, match="not as many masks as slices"):
        read_ground([*files, *masks[1:]], slices=len(files))
    for path in masks:
        write_png(path, np.zeros((4, 4)))
    with pytest.raises(DataRefused, match="of different size"):
        read_ground([*files, *masks], slices=len(files))


def test_frames_of_a_4d_file(tmp_path: Path) -> None:
    frames = np.zeros((*SHAPE, 4), np.float32)
    frames[..., 2] = anatomy({"heart": 3})
    path = write(tmp_path / "x.nii.gz", frames)
    assert labelled_frames(path) == (2,)
    volume = read_frame([path], frame=2, label=True)
    assert volume.array.dtype == np.uint8
    assert np.array_equal(volume.array.transpose(2, 1, 0), anatomy({"heart": 3}))
    with pytest.raises(DataRefused, match="no frame 4"):
        read_frame([path], frame=4)
    with pytest.raises(DataRefused, match="not 4-D"):
        labelled_frames(write(tmp_path / "y.nii.gz", image()))


def test_a_damaged_4d_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nii.gz", np.stack([image(n) for n in range(3)], axis=-1))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataRefused, match="cut short or damaged"):
        read_frame([path], frame=2)
    path.write_bytes(b"no volume at all")
    with pytest.raises(DataRefused, match="cut short or damaged"):
        labelled_frames(path)


def test_masks_of_single_classes_become_one_label_map(tmp_path: Path) -> None:
    liver, tumour = anatomy({"liver": 1}), anatomy({"liver": 1})
    liver[0, 0, 0] = 1
    files = [write(tmp_path / "a.nii.gz", liver), write(tmp_path / "b.nii.gz", tumour)]
    merged = merge_masks(files, values=(1, 300))
    assert merged.array[0, 0, 0] == 1
    assert (merged.array == 300).sum() == tumour.sum()
    write(files[1], tumour, spacing=(2, 2, 2))
    with pytest.raises(DataRefused, match="different grids"):
        merge_masks(files, values=(1, 2))


def test_labels_are_resampled_by_the_largest_weight() -> None:
    """Three of the four voxels around are 1, the nearest one is 2."""
    source = Grid.from_spacing((1, 2, 2), (1, 1, 1))
    array = np.array([[[2, 1], [1, 1]]], np.uint8)
    target = Grid.from_spacing((1, 1, 1), (1, 1, 1), (0.4, 0.4, 0.0))
    labels = volume_of(array, source, Path("labels"))
    assert resample_labels(labels, volume_of(np.zeros((1, 1, 1)), target, Path("image"))) == 1


def test_labels_are_resampled_with_background_around_them() -> None:
    fine = Grid.from_spacing((2, 4, 4), (1, 1, 1))
    labels = volume_of(np.arange(32, dtype=np.uint8).reshape(2, 4, 4), fine, Path("labels"))
    wider = Grid.from_spacing((2, 4, 5), (1, 1, 1), (-1.0, -0.2, 0.0))
    target = volume_of(np.zeros((2, 4, 5)), wider, Path("image"))
    found = resample_labels(labels, target)
    assert np.array_equal(found[:, :, 1:], labels.array)
    assert not found[:, :, 0].any()
