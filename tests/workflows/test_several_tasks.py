"""Several tasks in one call: one encoding, the larger logit, other groupings, masks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from iris_cli.errors import DataRefused, UsageError
from iris_cli.execution.receipts import read_receipt
from iris_cli.inference.case import kept_classes
from iris_cli.inference.class_masks import check_mask_files, mask_file
from iris_cli.inference.outputs import Outputs
from iris_cli.inference.postprocess import Cleaning
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.task.combining import Grouping, rename
from iris_cli.task.task_file import read_task, write_task
from iris_cli.volume.reading import read_class_names, read_labels
from iris_cli.workflows import load_predictor
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from iris_cli.workflows.predict import PredictSettings, predict
from tests.workflows.conftest import GRID, scene


@pytest.fixture
def settings(model_folder: Path) -> PredictSettings:
    return PredictSettings(model=str(model_folder))


@pytest.fixture
def tasks(references: Path, model_folder: Path, tmp_path: Path) -> list[Path]:
    """One of both boxes, and one of other tokens and names."""
    boxes, other = tmp_path / "boxes.task.pt", tmp_path / "other.task.pt"
    encode_task(ReferenceSource(references), boxes, model=model_folder)
    task = read_task(boxes)
    turned = dataclasses.replace(task, tokens=tuple(-stage[::-1] for stage in task.tokens))
    names, values = {"left": "up", "right": "down"}, {"left": 7, "right": 8}
    write_task(other, rename(turned, names, values))
    return [boxes, other]


@pytest.fixture
def query(queries: Path) -> Path:
    return queries / "a.nii.gz"


def test_two_tasks_share_one_encoding_and_the_larger_logit_wins(
    tasks: list[Path],
    query: Path,
    settings: PredictSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[int] = []
    encode = IrisNetwork.encode_image

    def counted(self: IrisNetwork, images: object) -> object:
        encoded.append(1)
        return encode(self, images)  # type: ignore[arg-type]

    monkeypatch.setattr(IrisNetwork, "encode_image", counted)
    outputs = Outputs(probabilities="float16", ending=".mha")
    probabilities: dict[int, np.ndarray] = {}
    windows = []
    for name, some in (("one", tasks[:1]), ("two", tasks[1:]), ("both", tasks)):
        encoded.clear()
        out = tmp_path / name
        predict(query, out, task=some, settings=dataclasses.replace(settings, outputs=outputs))
        windows.append(len(encoded))
        if name == "both":
            continue
        for path in (out / "probabilities" / "a").iterdir():
            probabilities[int(path.name.partition("_")[0])] = _image(path)
    assert windows[2] == windows[0] == windows[1]
    both = read_labels(tmp_path / "both" / "a.mha").array
    values = sorted(probabilities)
    stack = np.stack([probabilities[value] for value in values])
    top = np.sort(stack, axis=0)
    clear = (np.abs(top[-1] - 0.5) > 0.01) & (top[-1] - top[-2] > 0.01)
    winner = np.where(stack.max(axis=0) > 0.5, np.array(values)[stack.argmax(axis=0)], 0)
    assert clear.mean() > 0.3
    np.testing.assert_array_equal(both[clear], winner[clear])
    assert set(np.unique(both)) & {1, 2}
    assert set(np.unique(both)) & {7, 8}


def _image(path: Path) -> np.ndarray:
    from iris_cli.volume.reading import read_image

    return read_image(path).array


def test_receipts_name_all_tasks_and_joint_is_another_result(
    tasks: list[Path], query: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    apart = predict(query, out, task=tasks, settings=settings)
    receipt = read_receipt(out / ".iris" / "a.json")
    assert receipt is not None
    prints = [read_task(path).fingerprint() for path in tasks]
    assert receipt.content["inputs"]["tasks"] == prints
    assert receipt.content["inputs"]["joint"] is False
    assert apart.to_json()["tasks"] == prints
    assert predict(query, out, task=tasks, settings=settings).run.outcomes[0].status == "kept"
    together = dataclasses.replace(settings, grouping=Grouping.JOINT)
    again = predict(query, out, task=tasks, settings=together)
    assert again.run.outcomes[0].status == "done"
    joint = read_receipt(out / ".iris" / "a.json")
    assert joint is not None
    assert joint.content["inputs"]["joint"] is True
    assert joint.content["output"]["sha256"] != receipt.content["output"]["sha256"]
    expected = {"background": 0, "left": 1, "right": 2, "up": 7, "down": 8}
    assert json.loads((out / "labels.json").read_text()) == expected


def test_conflicts_are_refused_before_anything_is_written_unless_renumbered(
    tasks: list[Path], query: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    twin = tmp_path / "twin.task.pt"
    write_task(twin, read_task(tasks[0]))
    out = tmp_path / "out"
    with pytest.raises(DataRefused, match="'boxes' and 'twin' both have the class name 'left'"):
        predict(query, out, task=[tasks[0], twin], settings=settings)
    with pytest.raises(UsageError, match="given twice"):
        predict(query, out, task=[tasks[0], tasks[0]], settings=settings)
    assert not out.exists()
    renumbered = dataclasses.replace(settings, renumber=True)
    report = predict(query, out, task=[tasks[0], twin], settings=renumbered)
    table = {"left@boxes": 1, "right@boxes": 2, "left@twin": 3, "right@twin": 4}
    assert {entry.name: entry.value for entry in report.classes} == table
    assert json.loads((out / "labels.json").read_text()) == {"background": 0, **table}
    assert read_class_names(out / "a.nii.gz") == {value: name for name, value in table.items()}
    # Of equals the lower label value wins, so the twin has nothing.
    assert set(np.unique(read_labels(out / "a.nii.gz").array)) <= {0, 1, 2}


def test_multilabel_masks_hold_every_voxel_above_zero(
    tasks: list[Path], query: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    chosen = dataclasses.replace(
        settings, outputs=Outputs(multilabel=True, probabilities="float16")
    )
    predict(query, out, task=tasks, settings=chosen)
    masks = {p.name: read_labels(p).array for p in (out / "a").iterdir()}
    names = {"left": 1, "right": 2, "up": 7, "down": 8}
    assert set(masks) == {f"{name}.nii.gz" for name in names}
    labels = read_labels(out / "a.nii.gz").array
    assert sum(int(mask.sum()) for mask in masks.values()) > (labels > 0).sum()  # overlaps
    for name, value in names.items():
        mask = masks[f"{name}.nii.gz"]
        assert not np.any((labels == value) & (mask == 0))
        probability = _image(out / "probabilities" / "a" / f"{value}_{name}.nii.gz")
        sure = np.abs(probability - 0.5) > 1e-3
        np.testing.assert_array_equal(mask[sure], probability[sure] > 0.5)
        assert read_class_names(out / "a" / f"{name}.nii.gz") == {1: name}
    receipt = read_receipt(out / ".iris" / "a.json")
    assert receipt is not None
    written = receipt.content["output"]["masks"]
    assert written["up.nii.gz"]["voxels"] == int(masks["up.nii.gz"].sum())


def test_a_lost_or_changed_mask_is_made_again_and_an_unwanted_one_goes(
    tasks: list[Path], query: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    chosen = dataclasses.replace(settings, outputs=Outputs(multilabel=True))

    def status(settings: PredictSettings) -> str:
        return predict(query, out, task=tasks[0], settings=settings).run.outcomes[0].status

    assert [status(chosen), status(chosen)] == ["done", "kept"]
    (out / "a" / "left.nii.gz").unlink()
    assert [status(chosen), status(chosen)] == ["done", "kept"]
    cleaned = Outputs(multilabel=True, cleaning=Cleaning(min_volume_ml=((None, 1e6),)))
    assert status(dataclasses.replace(chosen, outputs=cleaned)) == "done"
    assert not read_labels(out / "a" / "left.nii.gz").array.any()
    assert status(settings) == "done"
    assert not list(out.glob("a/*"))


def test_class_names_become_file_names_or_are_refused() -> None:
    assert mask_file("left/right: lobe?", ".nii.gz") == "left_right_ lobe_.nii.gz"
    assert mask_file("..", ".mha") == "_.mha"
    with pytest.raises(DataRefused, match="one file"):
        check_mask_files(["Liver", "spleen", "liver"])
    check_mask_files(["liver", "spleen"])


def test_a_predictor_of_several_tasks_is_what_predict_makes(
    tasks: list[Path], query: Path, settings: PredictSettings, model_folder: Path, tmp_path: Path
) -> None:
    picked = dataclasses.replace(settings, classes=("left", "down"), renumber=True)
    predict(query, tmp_path / "out", task=tasks, settings=picked)
    predictor = load_predictor(
        tasks, model=model_folder, renumber=True, classes=["left", "down"], device="cpu"
    )
    assert len(kept_classes(predictor.task.header, predictor.classes)) == 2
    found = predictor.predict(scene(10)[0], affine=GRID.affine)
    written = read_labels(tmp_path / "out" / "a.nii.gz")
    np.testing.assert_array_equal(found.labels, written.array)
    assert found.names == {1: "left", 4: "down"}
    one = load_predictor(str(tasks[0]), model=str(model_folder), device="cpu")
    assert one.task.fingerprint() == read_task(tasks[0]).fingerprint()
