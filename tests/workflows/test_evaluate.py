"""Predictions against label maps: which classes, where the summary goes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from iris_cli.dataset.raw import write_dataset_json
from iris_cli.errors import DataRefused, UsageError
from iris_cli.inference.legend import write_legend
from iris_cli.volume.reading import read_labels
from iris_cli.volume.writing import write_labels
from iris_cli.workflows.evaluate import evaluate
from tests.workflows.conftest import GRID, SHAPE, forget_position, scene


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    folder = tmp_path / "predictions"
    for index, name in enumerate(("a", "b", "c")):
        labels = scene(10 + index)[1]
        labels[labels == 2] = np.uint8(0 if index == 0 else 2)
        write_labels(folder / f"{name}.nii.gz", labels, GRID)
    return folder


def test_every_value_of_the_truth_is_a_class_without_names(predictions: Path, truth: Path) -> None:
    report = evaluate(predictions, truth)
    assert report.path == predictions / "summary.json"
    assert report.exit_code == 0
    rows = report.class_rows()
    assert [row["class"] for row in rows] == ["1", "2", "mean"]
    assert [row["Dice"] for row in rows] == pytest.approx([1, 2 / 3, 5 / 6])
    assert (predictions / "summary.csv").exists()
    text = json.dumps(report.to_json(), allow_nan=False)
    assert json.loads(text)["headline_dice"]["mean"] == pytest.approx(5 / 6)


def test_dataset_json_gives_names_subjects_and_what_was_not_contoured(
    predictions: Path, truth: Path
) -> None:
    write_dataset_json(
        truth.parent,
        channel_names={"0": "CT"},
        labels={"left": 1, "right": 2},
        num_training=3,
        file_ending=".nii.gz",
        iris={"not_annotated": {"a": ["right"]}, "subjects": {"a": "s", "b": "s", "c": "s"}},
    )
    found = evaluate(predictions, truth).to_json()
    assert found["classes"]["right"]["dice"]["mean"] == 1.0
    assert found["classes"]["right"]["cases_not_annotated"] == 1
    assert found["subjects"] == 1


def test_classes_the_predictions_do_not_know_are_left_out_and_named(
    predictions: Path, truth: Path
) -> None:
    (truth / "labels.json").write_text(json.dumps({"left": 1, "right": 2}))
    write_legend(predictions, {1: "left"})
    report = evaluate(predictions, truth)
    assert [row["class"] for row in report.class_rows()] == ["left", "mean"]
    assert "right" in report.notes[0]
    both = evaluate(predictions, truth, classes=["left", "right"])
    assert [row["class"] for row in both.class_rows()] == ["left", "right", "mean"]
    named = evaluate(predictions, truth, names=["right=2"])
    assert [row["class"] for row in named.class_rows()] == ["right", "mean"]
    with pytest.raises(UsageError, match="did you mean 'left'"):
        evaluate(predictions, truth, classes=["lefd"])


def test_two_tables_that_contradict_each_other_are_refused(predictions: Path, truth: Path) -> None:
    (truth / "labels.json").write_text(json.dumps({"left": 1, "right": 2}))
    write_legend(predictions, {2: "left", 1: "right"})
    with pytest.raises(DataRefused, match="another value") as caught:
        evaluate(predictions, truth)
    assert caught.value.found == "left = 2"


def test_some_cases_can_be_chosen(predictions: Path, truth: Path, tmp_path: Path) -> None:
    (predictions / "c.nii.gz").unlink()
    assert evaluate(predictions, truth).exit_code == 3
    report = evaluate(predictions, truth, cases=["a", "b"], output=tmp_path / "x" / "s.json")
    assert report.exit_code == 0
    assert (tmp_path / "x" / "s.csv").exists()


def test_empty_truth_is_refused(predictions: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataRefused, match="no class"):
        evaluate(predictions, tmp_path / "nothing")


def test_a_folder_or_case_that_is_not_there_is_wrong_use(
    predictions: Path, truth: Path, tmp_path: Path
) -> None:
    for folders in ((tmp_path / "none", truth), (predictions, tmp_path / "none")):
        with pytest.raises(UsageError, match="no such folder"):
            evaluate(*folders)
    with pytest.raises(UsageError, match="case 'z' has no label map"):
        evaluate(predictions, truth, cases=["a", "z"])


def test_values_that_no_class_declares_are_named(predictions: Path, truth: Path) -> None:
    report = evaluate(predictions, truth, names=["left=1"])
    assert report.exit_code == 0
    (note,) = report.notes
    assert "truth 2; predictions 2" in note
    assert evaluate(predictions, truth, names=["left=1", "right=2"]).notes == ()
    assert evaluate(predictions, truth, names=["a=1", "b=2"], classes=["a"]).notes == ()


def test_values_that_the_predictions_declare_themselves_are_not_named(
    predictions: Path, truth: Path
) -> None:
    for path in truth.iterdir():
        labels = read_labels(path).array
        write_labels(path, np.where(labels == 1, labels, 0), GRID)
    (truth / "labels.json").write_text(json.dumps({"left": 1}))
    assert "predictions 2" in evaluate(predictions, truth).notes[0]
    write_legend(predictions, {1: "left", 2: "right"})
    assert evaluate(predictions, truth).notes == ()


def test_names_of_values_that_occur_nowhere_are_refused(predictions: Path, truth: Path) -> None:
    with pytest.raises(DataRefused, match="no class has a voxel") as caught:
        evaluate(predictions, truth, names=["foo=9"])
    assert caught.value.exit_code == 4
    assert caught.value.found == "truth 1, 2; predictions 1, 2"
    assert caught.value.expected == "foo = 9"
    assert not (predictions / "summary.json").exists()


def test_empty_maps_of_a_declared_class_are_scored(tmp_path: Path) -> None:
    for folder in (tmp_path / "p", tmp_path / "t"):
        write_labels(folder / "a.nii.gz", np.zeros(SHAPE, np.uint8), GRID)
    (tmp_path / "t" / "labels.json").write_text(json.dumps({"tumour": 1}))
    found = evaluate(tmp_path / "p", tmp_path / "t").to_json()
    assert found["classes"]["tumour"]["false_positive_rate"] == 0.0


def test_maps_without_position_are_scored_with_an_assumed_spacing(
    predictions: Path, truth: Path
) -> None:
    for folder in (predictions, truth):
        for path in folder.iterdir():
            forget_position(path)
    with pytest.raises(DataRefused, match="does not say where"):
        evaluate(predictions, truth)
    report = evaluate(predictions, truth, assume_spacing=2.0)
    assert report.class_rows()[0]["Dice"] == pytest.approx(1)


def test_a_folder_as_summary_is_refused_before_anything_is_scored(
    predictions: Path, truth: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="this is a folder"):
        evaluate(predictions, truth, output=tmp_path)


@pytest.mark.parametrize(
    "options",
    [{}, {"classes": ["liver"]}, {"names": ["liver=1", "spleen=2"]}],
    ids=["found", "picked", "named"],
)
def test_predictions_of_other_classes_are_not_scored_as_those_of_the_truth(
    predictions: Path, truth: Path, options: dict[str, list[str]]
) -> None:
    (truth / "labels.json").write_text(json.dumps({"liver": 1, "spleen": 2}))
    write_legend(predictions, {1: "aorta", 2: "stomach"})
    with pytest.raises(DataRefused, match="another class") as caught:
        evaluate(predictions, truth, **options)
    assert caught.value.found == "aorta = 1"
    assert caught.value.expected == "liver = 1"
    assert not (predictions / "summary.json").exists()


@pytest.mark.parametrize(
    ("named", "predicted"),
    [
        ({"liver": 1, "spleen": 2}, {1: "1", 2: "2"}),
        ({"1": 1, "2": 2}, {1: "liver", 2: "spleen"}),
        ({"Left kidney": 1, "spleen": 2}, {1: "left_kidney", 2: "spleen"}),
    ],
)
def test_names_that_are_numbers_or_spelt_otherwise_contradict_nothing(
    predictions: Path, truth: Path, named: dict[str, int], predicted: dict[int, str]
) -> None:
    (truth / "labels.json").write_text(json.dumps(named))
    write_legend(predictions, predicted)
    assert evaluate(predictions, truth, classes=list(named)).exit_code == 0


def test_parts_with_names_of_their_own_may_be_scored_as_a_region_with_a_note(
    predictions: Path, truth: Path
) -> None:
    write_legend(predictions, {1: "core", 2: "edema"})
    report = evaluate(predictions, truth, names=["whole=1,2"])
    assert report.notes == ("whole is scored over values that the predictions call core, edema",)
    parts = ["core=1", "edema=2", "whole=1,2"]
    assert evaluate(predictions, truth, names=parts).notes == ()


def test_notes_on_classes_and_on_cases_both_reach_the_json(predictions: Path, truth: Path) -> None:
    found = evaluate(predictions, truth, names=["left=1"]).to_json()
    assert "truth 2; predictions 2" in found["class_notes"][0]
    assert found["notes"] == {}


@pytest.mark.parametrize("name", ["x.csv", "x.CSV"])
def test_a_summary_never_has_the_name_of_its_table(
    predictions: Path, truth: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UsageError, match="beside it") as caught:
        evaluate(predictions, truth, output=tmp_path / name)
    assert caught.value.fix == "call it x.json"
    assert not (tmp_path / name).exists()
