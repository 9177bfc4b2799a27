"""Forms without a fixed label table, and what the miniatures of the public sets leave open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset_conversion import msd
from dataset_conversion.registry import plan, run
from dataset_conversion.totalsegmentator import CT_V1, CT_V2, MR_V1, MR_V2
from iris_cli.dataset.raw import RawDataset, read_raw_dataset
from iris_cli.dataset.sides import suggest_mirror_pairs
from iris_cli.errors import DataRefused, UsageError
from tests.dataset.nnunet_check import nnunet_complaints
from tests.dataset.trees import write_json
from tests.dataset_conversion.favourite_sets import write_masks
from tests.dataset_conversion.miniature import SHAPE, image, mr, read_canonical, write


def converted(name: str, source: Path, target: Path) -> tuple[RawDataset, str]:
    """The raw data set, and everything that was said, one thing a line."""
    report = run(name, source, target)
    report.run.raise_for_failures()
    return read_raw_dataset(report.folders[0]), "\n".join(map(str, report.deviations))


def labels(*values: int) -> np.ndarray:
    array = np.zeros(SHAPE, np.int16)
    array.reshape(-1)[10 : 10 + len(values)] = values
    return array


def test_tables_of_totalsegmentator_have_the_authors_numbers() -> None:
    """Numbers from totalsegmentator/map_to_binary.py of the authors' repository."""
    assert [len(table) for table in (CT_V1, CT_V2, MR_V1, MR_V2)] == [104, 117, 56, 50]
    expected: list[tuple[dict[str, Any], dict[str, int]]] = [
        (CT_V1, {"kidney_right": 2, "vertebrae_C1": 41, "brain": 50, "face": 93}),
        (CT_V1, {"rib_left_1": 58, "rib_right_12": 81, "urinary_bladder": 104}),
        (CT_V2, {"kidney_cyst_left": 23, "vertebrae_S1": 26, "heart": 51, "skull": 91}),
        (CT_V2, {"subclavian_artery_right": 55, "spinal_cord": 79, "costal_cartilages": 117}),
        (MR_V1, {"lung_left": 10, "fibula": 32, "sartorius_right": 55, "brain": 56}),
        (MR_V2, {"prostate": 17, "scapula_left": 32, "hip_right": 39, "brain": 50}),
    ]
    for table, numbers in expected:
        assert {name: table[name] for name in numbers} == numbers


def test_chambers_of_the_heart_are_no_lateral_pairs() -> None:
    pairs = suggest_mirror_pairs(CT_V1)
    assert ("kidney_left", "kidney_right") in pairs
    assert ("rib_left_12", "rib_right_12") in pairs
    assert ("femur_left", "femur_right") in pairs
    assert not any("heart" in name for pair in pairs for name in pair)
    assert len(pairs) == 28


def test_the_first_release_of_totalsegmentator_is_told_by_its_masks(tmp_path: Path) -> None:
    write(tmp_path / "in/s0000/ct.nii.gz", image())
    write_masks(tmp_path / "in/s0000/segmentations", {"face": CT_V1["face"], "liver": 5})
    raw, said = converted("totalsegmentator", tmp_path / "in", tmp_path / "raw")
    assert "release v1: 104 classes" in said
    assert len(raw.classes) == 104
    assert len(raw.cases[0].not_annotated) == 102


def test_masks_of_the_other_modality_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "in/s0000/ct.nii.gz", image())
    write_masks(tmp_path / "in/s0000/segmentations", {"tibia": 1})
    with pytest.raises(DataRefused, match="no release of this set has"):
        plan("totalsegmentator", tmp_path / "in")


def test_a_value_that_an_edition_of_brats_does_not_have_is_refused(tmp_path: Path) -> None:
    for name, values in (("BraTS2021_00002", (1, 2, 4)), ("BraTS2021_00003", (1, 3))):
        for suffix in ("t1", "t1ce", "t2", "flair"):
            write(tmp_path / f"in/{name}/{name}_{suffix}.nii.gz", mr())
        write(tmp_path / f"in/{name}/{name}_seg.nii.gz", labels(*values))
    report = run("brats2021", tmp_path / "in", tmp_path / "raw")
    assert [outcome.name for outcome in report.run.failed] == ["BraTS2021_00003"]
    assert report.exit_code == 3
    (case,) = read_raw_dataset(report.folders[0]).cases
    assert case.label is not None
    assert set(np.unique(read_canonical(case.label)[0])) == {0, 1, 2, 3}


def test_children_of_2024_are_not_converted_as_those_of_2023(tmp_path: Path) -> None:
    for number, values in ((1, (1, 2, 3)), (2, (1, 4))):
        name = f"BraTS-PED-{number:05d}-000"
        for suffix in ("t1n", "t1c", "t2w", "t2f"):
            write(tmp_path / f"in/{name}/{name}-{suffix}.nii.gz", mr())
        write(tmp_path / f"in/{name}/{name}-seg.nii.gz", labels(*values))
    with pytest.raises(DataRefused, match="another edition") as caught:
        run("brats2023-ped", tmp_path / "in", tmp_path / "raw")
    assert "iris convert brats2024-ped" in str(caught.value)
    assert not (tmp_path / "raw").exists()


def test_a_task_of_the_decathlon_with_another_table_is_said(tmp_path: Path) -> None:
    task = next(task for task in msd.TASKS if task.name == "Spleen")
    write(tmp_path / "in/imagesTr/spleen_2.nii.gz", image())
    write(tmp_path / "in/labelsTr/spleen_2.nii.gz", labels(1, 2))
    files = {"image": "./imagesTr/spleen_2.nii.gz", "label": "./labelsTr/spleen_2.nii.gz"}
    table = {"0": "background", "1": "spleen", "2": "other"}
    content = {"modality": {"0": "CT"}, "labels": table, "training": [files]}
    write_json(tmp_path / "in/dataset.json", content)
    raw, said = converted("msd", tmp_path / "in", tmp_path / "raw")
    assert raw.class_names == ("spleen", "other")
    assert "dataset.json has another label table" in said
    assert f"1 labelled cases found, the archive holds {task.training}" in said


def nnunet_v1_folder(folder: Path) -> Path:
    root = folder / "Task500_Mine"
    for part, names in (("Tr", ("a", "b")), ("Ts", ("c", "d"))):
        for name in names:
            for channel in range(2):
                write(root / f"images{part}/{name}_{channel:04d}.nii.gz", mr(channel))
    for part, name in (("Tr", "a"), ("Tr", "b"), ("Ts", "c")):
        write(root / f"labels{part}/{name}.nii.gz", labels(1, 2))
    content = {
        "name": "mine",
        "licence": "CC0",
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "1": "left eye", "2": "right eye"},
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in ("a", "b", "gone")
        ],
        "test": ["./imagesTs/c.nii.gz", "./imagesTs/d.nii.gz"],
    }
    write_json(root / "dataset.json", content)
    return folder


def test_a_raw_folder_of_nnunet_version_1(tmp_path: Path) -> None:
    raw, said = converted("nnunet_v1", nnunet_v1_folder(tmp_path / "in"), tmp_path / "raw")
    assert [(c.name, c.role, c.label is not None, len(c.images)) for c in raw.cases] == [
        ("a", "train", True, 2),
        ("b", "train", True, 2),
        ("c", "test", True, 2),
        ("d", "test", False, 2),
    ]
    assert [channel.name for channel in raw.channels] == ["T1", "T2"]
    assert raw.class_names == ("left eye", "right eye")
    assert (raw.licence, raw.mirror_pairs) == ("CC0", ())
    assert "listed cases that are not here, left out (1): ./imagesTr/gone.nii.gz" in said
    assert nnunet_complaints(raw.folder) == []


def bids_folder(folder: Path) -> Path:
    """Two sessions of a subject, an image on another grid, a template's space, two pipelines."""
    for case in ("sub-01_ses-a", "sub-01_ses-b", "sub-02_ses-a", "sub-03_ses-a"):
        place = f"{case.replace('_', '/')}/anat"
        write(folder / f"{place}/{case}_T1w.nii.gz", mr(1), "LPS")
        write(folder / f"{place}/{case}_FLAIR.nii.gz", mr(2), "LPS")
        write(folder / f"{place}/{case}_T2w.nii.gz", mr(3), spacing=(2.0, 2.0, 2.0))
        if case.startswith("sub-03"):
            continue
        manual = folder / "derivatives/manual" / place
        write(manual / f"{case}_desc-expert_dseg.nii.gz", labels(2, 41), "LPS")
        if case != "sub-02_ses-a":
            auto = folder / "derivatives/auto" / place
            write(auto / f"{case}_dseg.nii.gz", labels(1), "LPS")
    write(
        folder
        / "derivatives/manual/sub-02/ses-b/anat/sub-02_ses-b_space-MNI_desc-expert_dseg.nii.gz",
        labels(2),
    )
    table = "index\tname\n0\tUnknown\n2\tLeft White Matter\n41\tRight White Matter\n"
    (folder / "derivatives/manual/desc-expert_dseg.tsv").write_text(table)
    write_json(folder / "dataset_description.json", {"Name": "mine", "BIDSVersion": "1.9.0"})
    return folder


def test_bids_derivatives(tmp_path: Path) -> None:
    raw, said = converted("bids", bids_folder(tmp_path / "in"), tmp_path / "raw")
    assert [(case.name, case.subject) for case in raw.cases] == [
        ("sub-01_ses-a", "sub-01"),
        ("sub-01_ses-b", "sub-01"),
        ("sub-02_ses-a", "sub-02"),
    ]
    assert [channel.name for channel in raw.channels] == ["FLAIR", "T1w"]
    assert {label.name: label.value for label in raw.classes} == {
        "Left White Matter": 1,
        "Right White Matter": 2,
    }
    assert "label values are renumbered: 2 -> 1, 41 -> 2" in said
    assert "segmentations taken: manual_desc-expert; left out (1): auto (2)" in said
    assert "label maps without an image on their grid, left out (1): sub-02_ses-b" in said
    assert "subjects without a segmentation, left out (1): sub-03" in said
    case = raw.case("sub-01_ses-b")
    assert np.array_equal(read_canonical(case.images[1])[0], mr(1))
    assert case.label is not None
    assert np.array_equal(read_canonical(case.label)[0], labels(1, 2))
    assert nnunet_complaints(raw.folder) == []


def test_bids_tables_of_another_pipeline_are_not_taken(tmp_path: Path) -> None:
    folder = bids_folder(tmp_path / "in")
    other = "index\tname\n2\tRight White Matter\n41\tLeft White Matter\n"
    for pipeline in ("aaa", "zzz"):
        (folder / f"derivatives/{pipeline}").mkdir()
        for name in ("desc-expert_dseg.tsv", "dseg.tsv"):
            (folder / f"derivatives/{pipeline}/{name}").write_text(other)
    (folder / "derivatives/manual/dseg.tsv").write_text(other)
    raw, _ = converted("bids", folder, tmp_path / "raw")
    assert {label.name: label.value for label in raw.classes} == {
        "Left White Matter": 1,
        "Right White Matter": 2,
    }


def test_bids_tables_that_differ_are_joined_by_name(tmp_path: Path) -> None:
    folder = bids_folder(tmp_path / "in")
    swapped = "index\tname\n2\tRight White Matter\n41\tLeft White Matter\n"
    place = folder / "derivatives/manual/sub-01/ses-b/anat"
    (place / "sub-01_ses-b_desc-expert_dseg.tsv").write_text(swapped)
    alone = "index\tname\n2\tLeft White Matter\n"
    (folder / "derivatives/manual/sub-02/ses-a/anat/dseg.tsv").write_text(alone)
    label = folder / "derivatives/manual/sub-02/ses-a/anat/sub-02_ses-a_desc-expert_dseg.nii.gz"
    write(label, labels(2), "LPS")
    raw, said = converted("bids", folder, tmp_path / "raw")
    values = {label.name: label.value for label in raw.classes}
    assert values == {"Left White Matter": 1, "Right White Matter": 2}
    expected = {"sub-01_ses-a": (1, 2), "sub-01_ses-b": (2, 1), "sub-02_ses-a": (1,)}
    for name, found in expected.items():
        path = raw.case(name).label
        assert path is not None
        assert np.array_equal(read_canonical(path)[0], labels(*found))
    assert raw.case("sub-02_ses-a").not_annotated == {"Right White Matter"}
    assert "label maps have different tables: numbered by name" in said
    assert "label values are renumbered: 2 -> 2" not in said


def test_bids_label_maps_without_a_table_among_others_are_left_out(tmp_path: Path) -> None:
    folder = bids_folder(tmp_path / "in")
    table = folder / "derivatives/manual/desc-expert_dseg.tsv"
    table.rename(folder / "derivatives/manual/sub-01/desc-expert_dseg.tsv")
    raw, said = converted("bids", folder, tmp_path / "raw")
    assert [case.name for case in raw.cases] == ["sub-01_ses-a", "sub-01_ses-b"]
    assert "without a table where others have one, left out (1): sub-02_ses-a" in said


def test_bids_images_of_four_axes_and_damaged_ones_are_set_aside(tmp_path: Path) -> None:
    folder = bids_folder(tmp_path / "in")
    func = folder / "sub-01/ses-a/func/sub-01_ses-a_task-rest_bold.nii.gz"
    write(func, np.stack([mr(1), mr(2)], axis=-1), "LPS")
    torn = folder / "sub-02/ses-a/anat/sub-02_ses-a_T2w.nii.gz"
    torn.write_bytes(b"no volume at all")
    raw, said = converted("bids", folder, tmp_path / "raw")
    assert len(raw.cases) == 3
    assert [channel.name for channel in raw.channels] == ["FLAIR", "T1w"]
    assert "sub-01_ses-a_task-rest_bold.nii.gz" in said
    assert "sub-02_ses-a_T2w.nii.gz" in said


def test_bids_files_that_are_damaged_fail_their_case_alone(tmp_path: Path) -> None:
    folder = bids_folder(tmp_path / "in")
    (folder / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz").write_bytes(b"no volume at all")
    place = folder / "derivatives/manual/sub-01/ses-b/anat"
    (place / "sub-01_ses-b_desc-expert_dseg.nii.gz").write_bytes(b"no volume at all")
    report = run("bids", folder, tmp_path / "raw")
    assert report.exit_code == 3
    assert {outcome.name for outcome in report.run.failed} == {"sub-01_ses-a", "sub-01_ses-b"}
    raw = read_raw_dataset(report.folders[0])
    assert [case.name for case in raw.cases] == ["sub-02_ses-a"]
    assert [channel.name for channel in raw.channels] == ["FLAIR", "T1w"]


def test_bids_without_a_table_names_the_values(tmp_path: Path) -> None:
    write(tmp_path / "in/sub-1/anat/sub-1_T1w.nii.gz", mr())
    write(tmp_path / "in/derivatives/mine/sub-1/anat/sub-1_dseg.nii.gz", labels(3, 7))
    raw, said = converted("bids", tmp_path / "in", tmp_path / "raw")
    assert {label.name: label.value for label in raw.classes} == {"3": 1, "7": 2}
    assert "label values are renumbered: 3 -> 1, 7 -> 2" in said


def test_bids_with_different_images_per_case_has_one_channel(tmp_path: Path) -> None:
    for name, suffix in (("sub-1", "T1w"), ("sub-2", "T2w")):
        write(tmp_path / f"in/{name}/anat/{name}_{suffix}.nii.gz", mr())
        write(tmp_path / f"in/derivatives/mine/{name}/anat/{name}_dseg.nii.gz", labels(1))
    raw, _ = converted("bids", tmp_path / "in", tmp_path / "raw")
    assert [channel.name for channel in raw.channels] == ["mixed"]
    section = json.loads((raw.folder / "dataset.json").read_text())["iris"]
    assert section["case_modality"] == {"sub-1": "T1w", "sub-2": "T2w"}


def test_bids_with_a_malformed_table_is_refused(tmp_path: Path) -> None:
    folder = bids_folder(tmp_path / "in")
    (folder / "derivatives/manual/desc-expert_dseg.tsv").write_text("value,label\n1,x\n")
    with pytest.raises(DataRefused, match="no table of a segmentation"):
        plan("bids", folder)


def test_a_dry_run_of_several_sets_asks_for_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / f"in/{name}/images/a.nii.gz", image())
        write_json(tmp_path / f"in/{name}/info.json", {"modality": "CT", "labels": {}})
    with pytest.raises(UsageError, match="several sets"):
        plan("info_json", tmp_path / "in")
    assert [row["case"] for row in plan("info_json", tmp_path / "in/one").rows()] == ["a"]
