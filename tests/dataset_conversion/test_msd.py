"""The converter `msd`: tasks of the Medical Segmentation Decathlon."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from dataset_conversion.msd import subject_of
from dataset_conversion.raw_set import Conversion
from dataset_conversion.registry import convert as convert_by_name
from dataset_conversion.registry import run
from iris_cli.dataset.building import TransferMode
from iris_cli.dataset.raw import read_raw_dataset
from iris_cli.errors import DataRefused, UsageError
from tests.dataset.nnunet_check import nnunet_complaints
from tests.dataset.trees import SHAPE_XYZ, label_array, touch, write_json, write_volume


def convert(source: Path, target: Path, **options: Any) -> Conversion:
    return convert_by_name("msd", source, target, **options)


def task(folder: Path, *, modality: dict[str, str] | None = None, **more: Any) -> Path:
    """A task like Task04 as its archive extracts, with the companions of a Mac."""
    for name in ("hippocampus_001", "hippocampus_003", "hippocampus_004"):
        write_volume(folder / f"imagesTr/{name}.nii.gz")
        write_volume(folder / f"labelsTr/{name}.nii.gz", label_array([1, 2]))
        for part in ("imagesTr", "labelsTr"):
            touch(folder / f"{part}/._{name}.nii.gz")
    write_volume(folder / "imagesTs/hippocampus_002.nii.gz")
    touch(folder / "._dataset.json")
    listed = ("001", "003", "004")
    content = {
        "name": "Hippocampus",
        "reference": " Vanderbilt University Medical Center",
        "licence": "CC-BY-SA 4.0",
        "tensorImageSize": "3D",
        "modality": modality or {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "numTraining": 3,
        "numTest": 1,
        "training": [
            {
                "image": f"./imagesTr/hippocampus_{n}.nii.gz",
                "label": f"./labelsTr/hippocampus_{n}.nii.gz",
            }
            for n in listed
        ],
        "test": ["./imagesTs/hippocampus_002.nii.gz"],
        **more,
    }
    write_json(folder / "dataset.json", content)
    return folder


def test_a_task_becomes_a_folder_that_nnunet_accepts(tmp_path: Path) -> None:
    done = convert(task(tmp_path / "Task04_Hippocampus"), tmp_path / "raw/hippocampus")
    assert nnunet_complaints(done.folders[0]) == []
    raw = read_raw_dataset(done.folders[0])
    assert [(case.name, case.role) for case in raw.cases] == [
        ("hippocampus_001", "train"),
        ("hippocampus_002", "test"),
        ("hippocampus_003", "train"),
        ("hippocampus_004", "train"),
    ]
    assert raw.class_names == ("Anterior", "Posterior")
    assert raw.channels[0].modality == "other"
    assert raw.licence == "CC-BY-SA 4.0"
    assert not list(raw.folder.rglob("._*"))


def test_cases_2k_minus_1_and_2k_are_one_subject(tmp_path: Path) -> None:
    assert subject_of("hippocampus_003") == subject_of("hippocampus_004")
    assert subject_of("hippocampus_002") != subject_of("hippocampus_003")
    assert subject_of("liver_003") == "liver_003"


def test_official_test_images_of_training_subjects_are_said(tmp_path: Path) -> None:
    source = task(tmp_path / "task")
    done = convert(source, tmp_path / "raw")
    said = "official test images of training subjects: no score on unseen subjects (1): "
    assert f"{said}hippocampus_002" in done.notes
    subjects = {case.name: case.subject for case in read_raw_dataset(done.folders[0]).cases}
    assert subjects["hippocampus_003"] == subjects["hippocampus_004"]
    assert subjects["hippocampus_002"] == "hippocampus_002"


def test_the_archive_itself_is_taken(tmp_path: Path) -> None:
    task(tmp_path / "Task04_Hippocampus")
    archive = tmp_path / "Task04_Hippocampus.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "Task04_Hippocampus", "Task04_Hippocampus")
    done = convert(archive, tmp_path / "raw/set")
    assert len(read_raw_dataset(done.folders[0]).cases) == 4
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["set"]
    with pytest.raises(UsageError, match="links into an archive"):
        convert(archive, tmp_path / "raw/other", mode=TransferMode.LINK)


def test_an_archive_is_not_converted_twice(tmp_path: Path) -> None:
    """It is extracted into another folder each time."""
    task(tmp_path / "Task04_Hippocampus")
    archive = tmp_path / "Task04_Hippocampus.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "Task04_Hippocampus", "Task04_Hippocampus")
    for status in ("done", "kept"):
        report = run("msd", archive, tmp_path / "raw")
        assert {outcome.status for outcome in report.run.outcomes} == {status}
    archive.write_bytes(archive.read_bytes())
    report = run("msd", archive, tmp_path / "raw")
    assert {outcome.status for outcome in report.run.outcomes} == {"done"}


def test_listed_cases_that_are_not_there_are_left_out_and_said(tmp_path: Path) -> None:
    source = task(tmp_path / "task")
    (source / "imagesTr/hippocampus_001.nii.gz").unlink()
    done = convert(source, tmp_path / "raw")
    said = "listed cases that are not here, left out (1): ./imagesTr/hippocampus_001.nii.gz"
    assert said in done.notes
    others = "files that dataset.json does not list (1): labelsTr/hippocampus_001.nii.gz"
    assert others in done.notes
    assert nnunet_complaints(done.folders[0]) == []


def test_a_4d_image_becomes_one_file_per_channel_with_equal_voxels(tmp_path: Path) -> None:
    source = task(tmp_path / "task", modality={"0": "FLAIR", "1": "T1w"})
    array = np.arange(np.prod(SHAPE_XYZ) * 2, dtype=np.int16).reshape(*SHAPE_XYZ, 2)
    for path in [*source.glob("imagesTr/h*"), *source.glob("imagesTs/h*")]:
        write_volume(path, array)
    folder = convert(source, tmp_path / "raw").folders[0]
    assert nnunet_complaints(folder) == []
    for channel in range(2):
        image = nibabel.load(folder / f"imagesTr/hippocampus_001_{channel:04d}.nii.gz")
        assert np.array_equal(np.asarray(image.dataobj), array[..., channel])
        assert image.get_data_dtype() == np.int16
        original = nibabel.load(source / "imagesTr/hippocampus_001.nii.gz")
        assert np.array_equal(image.affine, original.affine)
        assert image.header.get_xyzt_units() == original.header.get_xyzt_units()


def test_an_image_with_too_few_channels_is_refused(tmp_path: Path) -> None:
    source = task(tmp_path / "task", modality={"0": "FLAIR", "1": "T1w"})
    with pytest.raises(DataRefused, match="does not hold the channels"):
        convert(source, tmp_path / "raw/set")
    assert not (tmp_path / "raw/set/dataset.json").exists()


@pytest.mark.parametrize("name", ["../x.nii.gz", "/etc/passwd", "./../../x.nii.gz"])
def test_names_of_the_list_never_leave_the_folder(tmp_path: Path, name: str) -> None:
    source = task(tmp_path / "task", test=[name])
    with pytest.raises(DataRefused, match="leave its folder"):
        convert(source, tmp_path / "raw")


def test_what_is_no_task_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        convert(tmp_path / "absent", tmp_path / "raw")
    with pytest.raises(UsageError, match="no task of the Decathlon"):
        convert(tmp_path, tmp_path / "raw")
    write_json(tmp_path / "v2/dataset.json", {"channel_names": {"0": "CT"}, "labels": {}})
    with pytest.raises(DataRefused, match="not in the Decathlon's form"):
        convert(tmp_path / "v2", tmp_path / "raw")
    with pytest.raises(DataRefused, match="no training case"):
        convert(task(tmp_path / "task", training=[]), tmp_path / "raw")
