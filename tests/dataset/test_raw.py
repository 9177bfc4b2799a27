"""Raw data sets: nnU-Net folders as they are, and the section "iris"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iris_cli.dataset.dataset_json import read_dataset_json
from iris_cli.dataset.raw import read_raw_dataset, write_dataset_json
from iris_cli.errors import DataRefused, UsageError
from tests.dataset.trees import raw_tree, touch, write_json


def test_nnunet_folder_is_read_as_it_is(tmp_path: Path) -> None:
    raw = read_raw_dataset(
        raw_tree(
            tmp_path / "Dataset042_Liver",
            ["b", "a"],
            ["t"],
            channels=["CT", "PET"],
            reference="their own key",
            overwrite_image_reader_writer="SimpleITKIO",
        )
    )
    assert raw.name == "Dataset042_Liver"
    assert [(c.index, c.name, c.modality) for c in raw.channels] == [
        (0, "CT", "ct"),
        (1, "PET", "other"),
    ]
    assert [(case.name, case.role) for case in raw.cases] == [
        ("a", "train"),
        ("b", "train"),
        ("t", "test"),
    ]
    case = raw.case("a")
    assert [path.name for path in case.images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert case.label == tmp_path / "Dataset042_Liver/labelsTr/a.nii.gz"
    assert (case.subject, case.modality, case.not_annotated) == ("a", ("ct", "other"), frozenset())


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha", ".mhd"])
def test_every_legal_ending_is_read(tmp_path: Path, ending: str) -> None:
    raw = read_raw_dataset(raw_tree(tmp_path, ending=ending))
    assert [case.name for case in raw.cases] == ["a", "b"]


def test_illegal_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="file_ending"):
        read_raw_dataset(raw_tree(tmp_path, ending=".png"))


def test_plain_names_of_the_decathlon_and_version_1_are_read(tmp_path: Path) -> None:
    for name in ("hippocampus_001", "hippocampus_003"):
        touch(tmp_path / f"imagesTr/{name}.nii.gz")
        touch(tmp_path / f"imagesTr/._{name}.nii.gz")
        touch(tmp_path / f"labelsTr/{name}.nii.gz")
    write_json(
        tmp_path / "dataset.json",
        {
            "name": "Hippocampus",
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
            "training": [{"image": "./imagesTr/hippocampus_001.nii.gz", "label": "..."}],
        },
    )
    raw = read_raw_dataset(tmp_path)
    assert [case.name for case in raw.cases] == ["hippocampus_001", "hippocampus_003"]
    assert [(label.name, label.value) for label in raw.classes] == [
        ("Anterior", 1),
        ("Posterior", 2),
    ]
    assert raw.channels[0].modality == "other"


def test_the_section_iris_is_read(tmp_path: Path) -> None:
    iris = {
        "modality": ["other"],
        "subjects": {"a": "s1", "b": "s1"},
        "not_annotated": {"a": ["tumour"]},
        "absent_means": "not_annotated",
        "mirror_pairs": [["liver", "tumour"]],
        "roles": {"b": "validate"},
        "held_out_classes": ["tumour"],
        "licence": "CC0",
        "case_modality": {"b": "CT"},
    }
    raw = read_raw_dataset(raw_tree(tmp_path, iris=iris))
    a, b = raw.cases
    assert (a.subject, b.subject) == ("s1", "s1")
    assert (a.role, b.role) == ("train", "validate")
    assert a.not_annotated == {"tumour"}
    assert (a.modality, b.modality) == (("other",), ("ct",))
    assert raw.absent_means == "not_annotated"
    assert raw.mirror_pairs == (("liver", "tumour"),)
    assert raw.held_out_classes == ("tumour",)
    assert raw.licence == "CC0"


def test_unknown_key_of_iris_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(DataRefused) as caught:
        read_raw_dataset(raw_tree(tmp_path, iris={"not_anotated": {"a": ["liver"]}}))
    assert "not_annotated" in str(caught.value)
    assert "dataset.json" in str(caught.value)


@pytest.mark.parametrize(
    ("iris", "guess"),
    [
        ({"subjects": {"aa": "s"}}, "a"),
        ({"roles": {"bb": "test"}}, "b"),
        ({"not_annotated": {"a": ["tumor"]}}, "tumour"),
        ({"held_out_classes": ["livr"]}, "liver"),
        ({"mirror_pairs": [["liver", "tumor"]]}, "tumour"),
        ({"case_modality": {"bb": "CT"}}, "b"),
    ],
)
def test_names_that_do_not_exist_are_refused(
    tmp_path: Path, iris: dict[str, Any], guess: str
) -> None:
    with pytest.raises(DataRefused, match="does not exist") as caught:
        read_raw_dataset(raw_tree(tmp_path, iris=iris))
    assert f"did you mean '{guess}'?" in str(caught.value)


@pytest.mark.parametrize(
    "iris",
    [
        {"roles": {"a": "training"}},
        {"absent_means": "unknown"},
        {"modality": "octopus"},
        {"modality": {"3": "ct"}},
        {"case_modality": {"a": "image"}},
        {"mirror_pairs": [["liver"]]},
    ],
)
def test_wrong_values_in_iris_are_refused(tmp_path: Path, iris: dict[str, Any]) -> None:
    with pytest.raises(DataRefused, match=r"modality|roles|absent_means|mirror_pairs"):
        read_raw_dataset(raw_tree(tmp_path, iris=iris))


def test_label_values_true_and_fractions_are_refused(tmp_path: Path) -> None:
    for value in (True, 1.5, "x", None):
        folder = raw_tree(tmp_path / repr(value), labels={"background": 0, "liver": value})
        with pytest.raises(DataRefused, match="labels"):
            read_raw_dataset(folder)


def test_unlabelled_cases_must_be_declared(tmp_path: Path) -> None:
    folder = raw_tree(tmp_path, ["a", "b"])
    (folder / "labelsTr/b.nii.gz").unlink()
    with pytest.raises(DataRefused, match="no label map") as caught:
        read_raw_dataset(folder)
    assert "unlabelled" in str(caught.value)
    folder = raw_tree(tmp_path / "declared", ["a", "b"], iris={"roles": {"b": "unlabelled"}})
    (folder / "labelsTr/b.nii.gz").unlink()
    case = read_raw_dataset(folder).case("b")
    assert (case.role, case.label) == ("unlabelled", None)


def test_a_test_case_needs_no_label_map(tmp_path: Path) -> None:
    folder = raw_tree(tmp_path, ["a"], ["t"])
    (folder / "labelsTs/t.nii.gz").unlink()
    case = read_raw_dataset(folder).case("t")
    assert (case.role, case.label) == ("test", None)


def test_everything_wrong_with_files_is_found_in_one_reading(tmp_path: Path) -> None:
    folder = raw_tree(tmp_path, ["a", "b", "c"], ["c"], channels=["T1", "T2"])
    (folder / "labelsTr/a.nii.gz").unlink()
    (folder / "imagesTr/b_0001.nii.gz").unlink()
    touch(folder / "labelsTr/orphan.nii.gz")
    touch(folder / "imagesTr/odd.nii.gz")
    touch(folder / "imagesTr/d_0000.nrrd")
    raw = read_raw_dataset(folder, strict=False)
    assert {(finding.code, finding.case) for finding in raw.findings} == {
        ("missing-label", "a"),
        ("missing-channel", "b"),
        ("label-without-image", "orphan"),
        ("odd-file-name", None),
        ("other-ending", None),
        ("case-twice", "c"),
    }
    with pytest.raises(DataRefused, match="no label map") as caught:
        read_raw_dataset(folder)
    assert "6 findings" in str(caught.value)


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="no images"):
        read_raw_dataset(raw_tree(tmp_path, []))


def test_a_folder_without_dataset_json_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_raw_dataset(tmp_path)


def test_files_listed_in_dataset_json_are_read_inside_the_folder(tmp_path: Path) -> None:
    touch(tmp_path / "data/x.nii.gz")
    touch(tmp_path / "data/x_seg.nii.gz")
    entry = {"images": ["data/x.nii.gz"], "label": "data/x_seg.nii.gz"}
    raw = read_raw_dataset(raw_tree(tmp_path, [], dataset={"x": entry}))
    assert raw.case("x").images == (tmp_path / "data/x.nii.gz",)
    assert raw.case("x").label == tmp_path / "data/x_seg.nii.gz"


@pytest.mark.parametrize("path", ["../x.nii.gz", "/etc/passwd", "a/../../x.nii.gz", "nul"])
def test_files_listed_in_dataset_json_never_leave_the_folder(tmp_path: Path, path: str) -> None:
    folder = raw_tree(tmp_path, [], dataset={"x": {"images": [path], "label": None}})
    with pytest.raises(DataRefused, match="leave its folder"):
        read_raw_dataset(folder)


def test_case_names_listed_in_dataset_json_never_leave_the_folder(tmp_path: Path) -> None:
    folder = raw_tree(tmp_path, [], dataset={"../x": {"images": ["x.nii.gz"]}})
    with pytest.raises(DataRefused, match="leave its folder"):
        read_raw_dataset(folder)


def test_an_unknown_case_names_the_nearest(tmp_path: Path) -> None:
    raw = read_raw_dataset(raw_tree(tmp_path, ["case_001", "case_002"]))
    with pytest.raises(UsageError, match="case_01") as caught:
        raw.case("case_01")
    assert "did you mean" in str(caught.value)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = write_dataset_json(
        tmp_path,
        channel_names={"0": "MR"},
        labels={"whole": [1, 2], "core": 2, "ignore": 3},
        num_training=0,
        file_ending=".nrrd",
        regions_class_order=[1, 2],
        iris={"licence": "CC0"},
    )
    parsed = read_dataset_json(path)
    assert parsed.labels == {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    assert parsed.class_table().ignore_value == 3
    assert parsed.iris.licence == "CC0"


def test_a_table_that_cannot_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataRefused):
        write_dataset_json(
            tmp_path,
            channel_names={"0": "MR"},
            labels={"a": 1, "b": 1},
            num_training=0,
            file_ending=".nii.gz",
        )
    assert not (tmp_path / "dataset.json").exists()


def test_a_data_set_is_called_as_the_user_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = raw_tree(tmp_path / "Dataset001_Liver")
    (tmp_path / "liver").symlink_to(folder)
    assert read_raw_dataset(tmp_path / "liver").name == "liver"
    monkeypatch.chdir(folder)
    assert read_raw_dataset(Path()).name == "Dataset001_Liver"


@pytest.mark.parametrize(
    ("declared", "role", "codes"),
    [
        (None, "unlabelled", ["missing-label"]),
        ("train", "unlabelled", ["missing-label"]),
        ("validate", "unlabelled", ["missing-label"]),
        ("unlabelled", "unlabelled", []),
        ("test", "test", []),
    ],
)
def test_a_case_without_label_map_counts_as_unlabelled_whatever_is_declared(
    tmp_path: Path, declared: str | None, role: str, codes: list[str]
) -> None:
    """Test cases stay what they are: nothing trains on them."""
    iris = {"roles": {"b": declared}} if declared else {}
    folder = raw_tree(tmp_path, ["a", "b"], iris=iris)
    (folder / "labelsTr/b.nii.gz").unlink()
    raw = read_raw_dataset(folder, strict=False)
    assert raw.case("b").role == role
    assert [finding.code for finding in raw.findings] == codes
