"""Folders to summaries: nnU-Net's keys and numbers, the headline, what is refused."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iris_cli.dataset.classes import ClassLabel
from iris_cli.errors import DataRefused
from iris_cli.evaluation.summary import Summary, evaluate_folders, write_summary
from iris_cli.volume.grid import Grid
from iris_cli.volume.writing import write_labels

A = ClassLabel("a", (1,), 1)
B = ClassLabel("b", (2,), 2)
REGION = ClassLabel("ab", (1, 2), 1)
SHAPE = (4, 5, 6)


def write(folder: Path, name: str, array: np.ndarray, shift_mm: float = 0.0) -> None:
    grid = Grid.from_spacing(array.shape, (1.0, 1.5, 2.0), (shift_mm, 0.0, 0.0))
    write_labels(folder / name, array, grid)


def labels(**voxels: int) -> np.ndarray:
    """A label map with so many voxels of each value, `v1=3`, from the first voxel on."""
    array = np.zeros(SHAPE, np.uint8)
    first = 0
    for name, count in voxels.items():
        array.reshape(-1)[first : first + count] = int(name[1:])
        first += count
    return array


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    prediction, truth = tmp_path / "prediction", tmp_path / "truth"
    # one: a: tp 6, fp 2, fn 0; b: tp 4, fp 0, fn 2.
    write(truth, "one.nii.gz", labels(v1=6, v2=6))
    write(prediction, "one.nii.gz", labels(v1=8, v2=4))
    # two: b is absent in the truth and falsely found.
    write(truth, "two.nii.gz", labels(v1=4))
    write(prediction, "two.nii.gz", labels(v1=2, v2=2))
    # three: both empty.
    write(truth, "three.nrrd", labels())
    write(prediction, "three.nii.gz", labels())
    return prediction, truth


def by_case(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        Path(case["prediction_file"]).name.partition(".")[0]: case["metrics"]
        for case in summary["metric_per_case"]
    }


def test_the_summary_has_nnunets_keys_and_numbers(folders: tuple[Path, Path]) -> None:
    summary = evaluate_folders(*folders, (A, B)).to_json()
    assert set(summary) == {"foreground_mean", "mean", "metric_per_case", "iris"}
    keys = {"Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref"}
    assert set(summary["foreground_mean"]) == keys
    assert set(summary["mean"]) == {"1", "2"}
    assert set(summary["metric_per_case"][0]) == {"metrics", "prediction_file", "reference_file"}
    cases = by_case(summary)
    assert cases["one"]["1"] == {
        "Dice": 12 / 14,
        "IoU": 6 / 8,
        "TP": 6,
        "FP": 2,
        "FN": 0,
        "TN": 112,
        "n_pred": 8,
        "n_ref": 6,
    }
    assert cases["two"]["2"]["Dice"] == 0.0
    assert math.isnan(cases["three"]["1"]["Dice"])
    # nanmean over cases: a: (12/14 + 4/6) / 2, b: (8/10 + 0) / 2.
    assert summary["mean"]["1"]["Dice"] == pytest.approx((12 / 14 + 4 / 6) / 2)
    assert summary["mean"]["2"]["Dice"] == pytest.approx(0.4)
    assert summary["mean"]["1"]["n_ref"] == pytest.approx(10 / 3)
    expected = ((12 / 14 + 4 / 6) / 2 + 0.4) / 2
    assert summary["foreground_mean"]["Dice"] == pytest.approx(expected)


def test_the_headline_counts_absent_classes_as_false_positive_rate(
    folders: tuple[Path, Path],
) -> None:
    iris = evaluate_folders(*folders, (A, B)).to_json()["iris"]
    a, b = iris["classes"]["a"], iris["classes"]["b"]
    assert a["dice"]["mean"] == pytest.approx((12 / 14 + 4 / 6) / 2)
    assert b["dice"] == {key: pytest.approx(0.8) for key in ("mean", "low", "high")}
    assert (b["cases_with_class"], b["cases_without_class"]) == (1, 2)
    assert b["false_positive_rate"] == 0.5
    assert a["false_positive_rate"] == 0.0
    assert iris["headline_dice"]["mean"] == pytest.approx((a["dice"]["mean"] + 0.8) / 2)
    assert iris["headline_dice"]["low"] <= iris["headline_dice"]["mean"]
    assert (iris["cases"], iris["subjects"]) == (3, 3)


def test_a_class_that_nobody_contoured_is_not_scored(folders: tuple[Path, Path]) -> None:
    summary = evaluate_folders(*folders, (A, B), not_annotated={"two": frozenset({"b"})})
    found = summary.to_json()
    assert math.isnan(by_case(found)["two"]["2"]["Dice"])
    assert math.isnan(by_case(found)["two"]["2"]["FP"])
    assert found["mean"]["2"]["Dice"] == pytest.approx(0.8)
    assert found["iris"]["classes"]["b"]["false_positive_rate"] == 0.0
    assert found["iris"]["classes"]["b"]["cases_not_annotated"] == 1


def test_where_absent_means_not_contoured_it_is_not_scored(folders: tuple[Path, Path]) -> None:
    iris = evaluate_folders(*folders, (A, B), absent_is_background=False).to_json()["iris"]
    assert iris["classes"]["b"]["cases_without_class"] == 0
    assert iris["classes"]["b"]["false_positive_rate"] is None
    assert iris["classes"]["b"]["cases_not_annotated"] == 2


def test_regions_and_ignored_voxels_are_counted_as_nnunet_does(tmp_path: Path) -> None:
    prediction, truth = tmp_path / "p", tmp_path / "t"
    write(truth, "x.nii.gz", labels(v1=3, v2=3, v9=10))
    predicted = labels(v2=3, v1=1)
    predicted.reshape(-1)[8:12] = 1  # on ignored voxels
    write(prediction, "x.nii.gz", predicted)
    summary = evaluate_folders(prediction, truth, (REGION, A), ignore_value=9).to_json()
    metrics = by_case(summary)["x"]
    assert set(metrics) == {"(1, 2)", "1"}
    assert (metrics["(1, 2)"]["TP"], metrics["(1, 2)"]["FN"], metrics["(1, 2)"]["FP"]) == (4, 2, 0)
    assert metrics["1"]["TN"] == 120 - 10 - 3 - 1


def test_other_grids_are_refused_with_numbers_and_the_rest_is_scored(
    folders: tuple[Path, Path],
) -> None:
    write(folders[0], "two.nii.gz", labels(v1=2), shift_mm=0.5)
    summary = evaluate_folders(*folders, (A, B))
    assert summary.exit_code == 3
    assert list(summary.failed or {}) == ["two"]
    assert "one grid" in (summary.failed or {})["two"]
    assert summary.to_json()["iris"]["cases"] == 2
    write(folders[1], "three.nrrd", np.zeros((4, 5, 7), np.uint8))
    write(folders[1], "one.nii.gz", np.zeros((4, 5, 7), np.uint8))
    with pytest.raises(DataRefused, match="one grid"):
        evaluate_folders(*folders, (A, B))


def test_grids_that_differ_by_rounding_are_scored_with_a_note(folders: tuple[Path, Path]) -> None:
    write(folders[0], "one.nii.gz", labels(v1=8, v2=4), shift_mm=0.05)
    summary = evaluate_folders(*folders, (A, B)).to_json()
    assert by_case(summary)["one"]["1"]["Dice"] == 12 / 14
    assert "rounding" in summary["iris"]["notes"]["one"][0]


def test_missing_predictions_are_named(folders: tuple[Path, Path]) -> None:
    (folders[0] / "two.nii.gz").unlink()
    summary = evaluate_folders(*folders, (A, B))
    assert summary.missing == ("two",)
    assert summary.exit_code == 3
    for path in folders[0].iterdir():
        path.unlink()
    with pytest.raises(DataRefused, match="one, three, two"):
        evaluate_folders(*folders, (A, B))


def test_a_subject_is_one_draw_of_the_interval(folders: tuple[Path, Path]) -> None:
    same = evaluate_folders(*folders, (A,), subjects=dict.fromkeys(("one", "two", "three"), "s"))
    assert same.to_json()["iris"]["headline_dice"]["low"] is None
    assert same.to_json()["iris"]["subjects"] == 1


def test_files_are_json_and_csv_with_one_row_per_case_and_class(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    summary = evaluate_folders(*folders, (A, B), not_annotated={"two": frozenset({"b"})})
    write_summary(tmp_path / "summary.json", summary)
    read = json.loads((tmp_path / "summary.json").read_text())
    assert read["mean"]["1"] == summary.to_json()["mean"]["1"]
    json.dumps(read["iris"], allow_nan=False)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "summary.csv").read_text())))
    assert [(row["case"], row["class"]) for row in rows] == [
        ("one", "a"),
        ("one", "b"),
        ("three", "a"),
        ("three", "b"),
        ("two", "a"),
    ]
    assert rows[0]["Dice"] == repr(12 / 14)
    assert rows[2]["Dice"] == ""


def test_workers_give_the_same_summary(folders: tuple[Path, Path]) -> None:
    def text(summary: Summary) -> str:
        return json.dumps(summary.to_json())

    here = evaluate_folders(*folders, (A, B))
    assert text(evaluate_folders(*folders, (A, B), workers=1)) == text(here)
