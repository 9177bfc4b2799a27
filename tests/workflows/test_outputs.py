"""What a prediction writes: formats and tables by their documents, statistics, pictures."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import shlex
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iris_cli.errors import UsageError
from iris_cli.inference.outputs import Outputs
from iris_cli.inference.postprocess import Cleaning
from iris_cli.model.model import ModelCard, save_model
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.task.task_file import ReferenceVolumes, Task, read_task, write_task
from iris_cli.volume.reading import read_class_names, read_image, read_labels
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from iris_cli.workflows.predict import PredictReport, PredictSettings, predict
from iris_cli.workflows.watch import Watched, watch

NAMES = {1: "left", 2: "right"}


@pytest.fixture
def settings(model_folder: Path) -> PredictSettings:
    return PredictSettings(model=str(model_folder))


@pytest.fixture
def task(references: Path, model_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "boxes.task.pt"
    encode_task(ReferenceSource(references), path, model=model_folder)
    return path


def receipt(out: Path, case: str = "a") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / ".iris" / f"{case}.json").read_text())["content"]
    return content


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "statistics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def statuses(report: PredictReport) -> list[str]:
    return [outcome.status for outcome in report.run.outcomes]


def slicer_colours(path: Path) -> dict[int, tuple[str, tuple[int, ...]]]:
    """3D Slicer: lines `index name red green blue alpha`, # begins a comment."""
    found = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            value, name, *colour = line.split()
            assert len(colour) == 4
            found[int(value)] = (name, tuple(map(int, colour)))
    return found


def itk_snap_colours(path: Path) -> dict[int, tuple[str, tuple[int, ...]]]:
    """ITK-SNAP: `index red green blue alpha visible mesh "label"`, alpha 0 to 1."""
    found = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            value, red, green, blue, alpha, visible, mesh, name = shlex.split(line)
            assert 0 <= float(alpha) <= 1
            assert {visible, mesh} <= {"0", "1"}
            found[int(value)] = (name, (int(red), int(green), int(blue)))
    return found


def nifti_extensions(path: Path) -> list[tuple[int, bytes]]:
    """NIfTI-1: four bytes after 348 tell of extensions: esize, ecode, esize - 8 bytes of text."""
    content = gzip.decompress(path.read_bytes())
    (offset,) = struct.unpack_from("<f", content, 108)
    assert content[348] == 1
    found, at = [], 352
    while at < offset:
        size, code = struct.unpack_from("<ii", content, at)
        assert size % 16 == 0
        found.append((code, content[at + 8 : at + size]))
        at += size
    assert at == offset
    return found


def test_viewers_read_names_and_colours_by_their_own_documents(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(queries / "a.nii.gz", out, task=task, settings=settings)
    slicer, snap = slicer_colours(out / "labels.ctbl"), itk_snap_colours(out / "labels.txt")
    assert {value: name for value, (name, _) in slicer.items() if value} == NAMES
    assert {value: name for value, (name, _) in snap.items() if value} == NAMES
    for value in NAMES:
        assert slicer[value][1] == (*snap[value][1], 255)
    assert slicer[0][1][3] == 0  # the background is clear
    ((code, text),) = nifti_extensions(out / "a.nii.gz")
    assert code == 6  # a comment, plain text
    assert json.loads(text.rstrip(b"\0"))["labels"] == {"1": "left", "2": "right"}


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_other_formats_hold_the_same_labels_and_names(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path, ending: str
) -> None:
    import SimpleITK

    query, out = queries / "a.nii.gz", tmp_path / "out"
    predict(query, out, task=task, settings=settings)
    before = read_labels(out / "a.nii.gz")
    other = dataclasses.replace(settings, outputs=Outputs(ending=ending))
    assert statuses(predict(query, out, task=task, settings=other)) == ["done"]
    assert not (out / "a.nii.gz").exists()
    after = read_labels(out / f"a{ending}")
    assert np.array_equal(after.array, before.array)
    assert np.allclose(after.grid.affine, before.grid.affine)
    assert read_class_names(out / f"a{ending}") == NAMES
    image = SimpleITK.ReadImage(str(out / f"a{ending}"))
    assert image.GetSize() == before.grid.shape_xyz
    assert [row["case"] for row in rows(out)] == ["a", "a"]
    assert statuses(predict(query, out, task=task, settings=other)) == ["kept"]


@pytest.mark.parametrize(
    ("kind", "ending", "half", "step"),
    [("uint8", ".nii.gz", 127.5, 1.0), ("float16", ".mha", 0.5, 2.0**-11)],
)
def test_probabilities_are_those_the_labels_were_decided_by(
    queries: Path,
    task: Path,
    settings: PredictSettings,
    tmp_path: Path,
    kind: Any,
    ending: str,
    half: float,
    step: float,
) -> None:
    query, out = queries / "a.nii.gz", tmp_path / "out"
    asked = dataclasses.replace(settings, outputs=Outputs(ending=ending, probabilities=kind))
    predict(query, out, task=task, settings=asked)
    labels = read_labels(out / f"a{ending}")
    folder = out / "probabilities" / "a"
    files = [folder / f"{value}_{name}{ending}" for value, name in NAMES.items()]
    assert sorted(folder.iterdir()) == files
    left, right = (read_image(path) for path in files)
    assert np.allclose(left.grid.affine, labels.grid.affine)
    best = np.maximum(left.array, right.array)
    assert ((best >= half - step / 2) >= (labels.array > 0)).all()
    assert (best[labels.array == 0] <= half + step).all()
    assert (left.array[labels.array == 1] == best[labels.array == 1]).all()
    assert (right.array[labels.array == 2] == best[labels.array == 2]).all()
    assert left.array.max() <= 2 * half
    assert len(np.unique(left.array)) > 10
    assert statuses(predict(query, out, task=task, settings=asked)) == ["kept"]
    files[1].unlink()
    assert statuses(predict(query, out, task=task, settings=asked)) == ["done"]
    mine = folder / "7_other.nii.gz"
    mine.write_bytes(b"")
    assert statuses(predict(query, out, task=task, settings=settings)) == ["done"]
    assert list(folder.iterdir()) == [mine]


def test_statistics_are_those_of_the_written_label_maps(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(queries, out, task=task, settings=settings)
    found = rows(out)
    assert [(row["case"], row["class"]) for row in found] == [
        (case, name) for case in "abc" for name in NAMES.values()
    ]
    for row in found:
        labels = read_labels(out / f"{row['case']}.nii.gz")
        image = read_image(queries / f"{row['case']}.nii.gz")
        mask = labels.array == {"left": 1, "right": 2}[row["class"]]
        assert int(row["voxels"]) == mask.sum()
        assert float(row["volume_ml"]) == pytest.approx(mask.sum() * 1.5**3 / 1000, rel=1e-5)
        if mask.any():
            expected = image.array[mask].astype(float).mean()
            assert float(row["mean_intensity"]) == pytest.approx(expected, rel=1e-4)


def test_the_table_is_the_same_however_a_folder_was_made(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    once, parts = tmp_path / "once", tmp_path / "parts"
    predict(queries, once, task=task, settings=settings)
    for case in "cab":
        predict(queries / f"{case}.nii.gz", parts, task=task, settings=settings)
    assert (parts / "statistics.csv").read_bytes() == (once / "statistics.csv").read_bytes()
    (parts / "b.nii.gz").unlink()
    predict(queries / "a.nii.gz", parts, task=task, settings=settings)
    assert {row["case"] for row in rows(parts)} == {"a", "c"}


def test_parts_are_taken_away_where_it_is_asked_for_and_the_receipt_says_so(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    query, out = queries / "a.nii.gz", tmp_path / "out"
    predict(query, out, task=task, settings=settings)
    before, plain = read_labels(out / "a.nii.gz").array, receipt(out)
    assert "removed" not in plain["output"]
    name = max(NAMES.values(), key=lambda n: plain["classes"][n]["components"])
    assert plain["classes"][name]["components"] > 1
    cleaning = Cleaning(keep_largest=(name,))
    asked = dataclasses.replace(settings, outputs=Outputs(cleaning=cleaning))
    assert statuses(predict(query, out, task=task, settings=asked)) == ["done"]
    content = receipt(out)
    assert content["classes"][name]["components"] == 1
    assert content["inputs"]["parameters"]["keep_largest"] == [name]
    removed = content["output"]["removed"][name]
    assert removed["components"] == plain["classes"][name]["components"] - 1
    after = read_labels(out / "a.nii.gz").array
    assert (after != before).sum() == removed["voxels"] > 0
    assert set(np.unique(after[after != before])) == {0}
    wrong = dataclasses.replace(settings, outputs=Outputs(cleaning=Cleaning(("lefd",))))
    with pytest.raises(UsageError, match="no class 'lefd'") as caught:
        predict(query, out, task=task, settings=wrong)
    assert "'left'" in str(caught.value.fix)


def test_flags_of_classes_are_in_receipts_json_and_summary(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = predict(queries, out, task=task, settings=settings)
    # A random network is never sure.
    said = report.to_json()["quality"]
    assert said == {case: receipt(out, case)["quality"] for case in said}
    kinds = {kind for classes in said.values() for flags in classes.values() for kind in flags}
    assert "low confidence" in kinds
    assert any("low confidence in 3 of 3 cases (a, b, c)" in x for x in report.quality_summary())
    assert any("low confidence" in row["quality"] for row in rows(out))
    json.dumps(report.to_json())


def test_volumes_are_compared_with_those_of_the_references(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    read = read_task(task)
    noted = read.header.reference_volumes
    # Boxes of 8 x 10 x 9 and 8 x 10 x 8 voxels in both references.
    assert noted["left"].volumes_ml == pytest.approx((2.43, 2.43))
    assert noted["right"].volumes_ml == pytest.approx((2.16, 2.16))
    assert noted["left"].cut == 0
    huge = {"left": ReferenceVolumes(volumes_ml=(1e6,), cut=1)}
    header = read.header.model_copy(update={"reference_volumes": huge})
    write_task(task, Task(header, read.tokens))
    query, out = queries / "a.nii.gz", tmp_path / "out"
    predict(query, out, task=task, settings=settings)
    content = receipt(out)
    assert "right" not in content["quality"] or "unlikely" not in str(content["quality"]["right"])
    whole = not content["classes"]["left"]["touches_border"]
    assert ("unlikely volume" in content["quality"].get("left", {})) == whole


def test_tokens_are_compared_where_that_is_asked_for_and_the_numbers_are_written(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    query, out = queries / "a.nii.gz", tmp_path / "out"
    predict(query, out, task=task, settings=settings)
    assert receipt(out)["likeness"] == {}  # a query of a few windows
    asked = dataclasses.replace(settings, outputs=Outputs(check_tokens=True))
    report = predict(query, out, task=task, settings=asked)
    assert statuses(report) == ["done"]
    content = receipt(out)
    found = {name for name, voxels in content["output"]["voxels"].items() if voxels >= 100}
    assert found
    assert found <= set(content["likeness"])
    for name, said in content["likeness"].items():
        flag = content["quality"].get(name, {}).get("unlike the references")
        assert (flag is not None) == (said["token_distance"] > said["limit"])
        assert flag is None or str(said["token_distance"]) in flag
    written = {row["class"]: row["token_distance"] for row in rows(out)}
    assert {name: float(text) for name, text in written.items() if text} == {
        name: said["token_distance"] for name, said in content["likeness"].items()
    }


def test_previews_are_drawn_once_and_again_where_the_case_is(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    query, out = queries / "a.nii.gz", tmp_path / "out"
    predict(query, out, task=task, settings=settings)
    asked = dataclasses.replace(settings, outputs=Outputs(previews=True))
    assert statuses(predict(query, out, task=task, settings=asked)) == ["kept"]
    picture = out / "previews" / "a.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    drawn = picture.stat().st_mtime_ns
    predict(query, out, task=task, settings=asked)
    assert picture.stat().st_mtime_ns == drawn
    # What shows other labels does not stay.
    picked = dataclasses.replace(settings, classes=("left",))
    predict(query, out, task=task, settings=picked)
    assert not picture.exists()
    # A picture of somebody else does.
    picture.write_text("mine")
    predict(query, out, task=task, settings=settings)
    assert picture.read_text() == "mine"


def test_queries_where_outputs_go_and_names_of_their_folders_are_refused_before_anything_runs(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    query = work / "left" / "left.nii.gz"
    query.parent.mkdir(parents=True)
    query.write_bytes((queries / "a.nii.gz").read_bytes())
    masks = dataclasses.replace(settings, outputs=Outputs(multilabel=True))
    with pytest.raises(UsageError, match="replace the volume itself"):
        predict(query, work, task=task, settings=masks)
    assert [path for path in work.rglob("*") if path.is_file()] == [query]
    for name, outputs in (
        ("previews", Outputs(previews=True)),
        ("probabilities", Outputs(probabilities="uint8")),
        ("probabilities", Outputs(multilabel=True)),
    ):
        (queries / "a.nii.gz").rename(queries / f"{name}.nii.gz")
        asked = dataclasses.replace(settings, outputs=outputs)
        with pytest.raises(UsageError, match=f"named '{name}'"):
            predict(queries, tmp_path / "out", task=task, settings=asked)
        (queries / f"{name}.nii.gz").rename(queries / "a.nii.gz")
    assert not (tmp_path / "out").exists()


def test_what_a_profile_cannot_serve_is_refused_before_anything_runs(
    queries: Path, references: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = IrisNetwork(NetworkConfig.tiny()).eval()
    card = ModelCard.of(network, name="other", s0=1.5, patch=32, profile="mass-1")
    model = save_model(tmp_path / "other", network, card)
    task = tmp_path / "other.task.pt"
    encode_task(ReferenceSource(references), task, model=model)
    settings, out = PredictSettings(model=str(model)), tmp_path / "out"
    query = queries / "a.nii.gz"
    assert statuses(predict(query, out, task=task, settings=settings)) == ["done"]
    before = (out / "a.nii.gz").read_bytes()
    watched = Watched(queries, 0.05, lambda _: None, lambda *_: None)
    for changes, option in (
        ({"skip_empty": True}, "--skip-empty"),
        ({"outputs": Outputs(multilabel=True)}, "--multilabel"),
        ({"outputs": Outputs(probabilities="uint8")}, "--probabilities"),
    ):
        asked = dataclasses.replace(settings, **changes)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="profile mass-1") as caught:
            predict(query, out, task=task, settings=asked)
        assert caught.value.found == option
        with pytest.raises(UsageError, match="profile mass-1"):
            watch(watched, out, tasks=[task], settings=asked)
    assert (out / "a.nii.gz").read_bytes() == before
