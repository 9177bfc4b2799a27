"""The six commands in a row, on small phantoms with a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

from iris_cli.dataset.phantoms import CLASSES
from iris_cli.volume.grid import GridMatch
from iris_cli.volume.reading import read_grid, read_labels
from tests.commands.conftest import Iris


def test_from_a_raw_folder_to_scores(iris: Iris, phantoms: Path, tmp_path: Path) -> None:
    workspace = ("-w", tmp_path)
    assert (
        iris("plan", phantoms, *workspace, "--preset", "tiny", "--set", "training.steps=2").code
        == 0
    )
    assert iris("preprocess", *workspace).code == 0
    again = iris("preprocess", *workspace, "--json")
    assert json.loads(again.out)["sets"][0]["done"] == "0"
    trained = iris("train", "first", *workspace, "--validate-cases", "1", "--json")
    assert trained.code == 0, trained.err
    model = Path(json.loads(trained.out)["model"])
    run = tmp_path / "runs" / "first"
    for name in ("plan.json", "manifest.json", "metrics.jsonl", "progress.png"):
        assert (run / name).exists(), name
    task = tmp_path / "torso.task.pt"
    encoded = iris("encode-task", phantoms, "-o", task, "-m", model)
    assert encoded.code == 0, encoded.err
    assert "kidney_left" in encoded.out
    out = tmp_path / "out"
    line = ("predict", "-t", task, "-m", model, "-i", phantoms / "imagesTs", "-o", out)
    dry = iris(*line, "--dry-run")
    assert dry.code == 0
    assert not out.exists()
    assert iris(*line).code == 0
    kept = iris(*line, "--json")
    assert {case["status"] for case in json.loads(kept.out)["cases"]} == {"kept"}
    scored = iris("evaluate", out, phantoms / "labelsTs", "--json")
    assert scored.code == 0, scored.err
    assert set(json.loads(scored.out)["classes"]) == set(CLASSES)
    for path in (phantoms / "imagesTs").iterdir():
        output = out / path.name.replace("_0000", "")
        same = read_grid(output).grid.compare(read_grid(path).grid)
        assert same is GridMatch.EQUAL
        assert set(read_labels(output).array.ravel().tolist()) <= {0, *CLASSES.values()}
    for path in (phantoms, run, model, task, tmp_path / "plans" / "default.json",
                 out / "torso_004.nii.gz", out / ".iris" / "torso_004.json"):  # fmt: skip
        described = iris("info", path)
        assert described.code == 0, described.err


def test_references_in_place_of_a_task(
    iris: Iris, phantoms: Path, tiny_model: Path, tmp_path: Path
) -> None:
    ran = iris(
        "predict", "--refs", phantoms, "-m", tiny_model, "-i", phantoms / "imagesTs",
        "-o", tmp_path / "out", "--classes", "liver,aorta", "-j", "1",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    labels = read_labels(tmp_path / "out" / "torso_004.nii.gz").array
    assert set(labels.ravel().tolist()) <= {0, CLASSES["liver"], CLASSES["aorta"]}


def test_pairs_become_a_raw_folder(iris: Iris, phantoms: Path, tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for path in (phantoms / "imagesTr").iterdir():
        name = path.name.replace("_0000", "")
        (images / name).write_bytes(path.read_bytes())
        (labels / name).write_bytes((phantoms / "labelsTr" / name).read_bytes())
    target = tmp_path / "raw" / "Dataset001_Torso"
    names = [word for name, value in CLASSES.items() for word in ("-c", f"{name}={value}")]
    ran = iris("convert", "pairs", images, labels, *names, "--modality", "ct", "-o", target)
    assert ran.code == 0, ran.err
    content = json.loads((target / "dataset.json").read_text())
    assert content["numTraining"] == 3
    assert content["labels"] == {"background": 0, **CLASSES}
    assert iris("plan", target, "-w", tmp_path, "--preset", "tiny").code == 0


def test_converters_are_listed(iris: Iris) -> None:
    names = {row["name"] for row in json.loads(iris("convert", "list", "--json").out)}
    assert {"info_json", "msd", "bids", "pairs"} <= names


def test_doctor_reports_this_machine(iris: Iris) -> None:
    checks = {row["topic"]: row for row in json.loads(iris("doctor", "--json").out)}
    assert checks["torch"]["state"] == "ok"
    assert {"Python", "memory", "disk", "default model"} <= set(checks)
