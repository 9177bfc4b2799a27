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
    with pytest.raises(DataRefused, match="no class"):
        evaluate(predictions, tmp_path / "nothing")


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
