"""R9: what partial, ignored, overlapping and oddly stored labels do to loss, references, metrics.

Every set is the same scene of 1 mm voxels, 512 in all: class `a` has 27 of them, `b` has 8, and 64
(a plane) may be ignored. Only how it is stored and declared differs; all numbers are by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from iris_cli.dataset.dataset_json import write_dataset_json
from iris_cli.errors import DataRefused
from iris_cli.training.catalogue import Case, read_catalogue
from iris_cli.training.looks import number_labels
from iris_cli.training.loss import SMOOTH, episode_loss
from iris_cli.volume.grid import Grid
from iris_cli.volume.writing import write_image, write_labels
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from iris_cli.workflows.evaluate import evaluate
from iris_cli.workflows.plan import plan
from iris_cli.workflows.preprocess import preprocess
from tests.training.stores import whole

SIDE, ALL, A, B, PLANE = 8, 512, 27, 8, 64
GRID = Grid.from_spacing((SIDE,) * 3, (1.0, 1.0, 1.0), (5.0, 6.0, 7.0))


@dataclass(frozen=True)
class Kind:
    """How the scene is stored and declared, and what follows.

    values: stored for background, a, b. voxels: of each class that carries loss and scores; None
    where it was not annotated. counted: voxels that carry loss.
    """

    values: tuple[int, int, int] = (0, 1, 2)
    labels: Mapping[str, int | list[int]] = field(default_factory=lambda: {"a": 1, "b": 2})
    iris: Mapping[str, Any] = field(default_factory=dict)
    voxels: Mapping[str, int | None] = field(default_factory=lambda: {"a": A, "b": B})
    counted: int = ALL
    order: list[int] | None = None
    ignored: int | None = None
    has_b: bool = True
    as_float: bool = False


NOT_B: dict[str, int | None] = {"a": A, "b": None}
KINDS = {
    "plain": Kind(),
    "16-bit": Kind((0, 301, 40000), {"a": 301, "b": 40000}),
    "gaps": Kind((0, 3, 200), {"a": 3, "b": 200}),
    "float": Kind(as_float=True),
    "float 16-bit": Kind((0, 301, 40000), {"a": 301, "b": 40000}, as_float=True),
    "ignore": Kind(labels={"a": 1, "b": 2, "ignore": 9}, ignored=9, counted=ALL - PLANE),
    "region": Kind(
        labels={"whole": [1, 2], "b": 2}, order=[1, 2], voxels={"whole": A + B, "b": B}
    ),
    "not annotated": Kind(iris={"not_annotated": {"x": ["b"]}}, voxels=NOT_B, has_b=False),
    "not annotated but drawn": Kind(iris={"not_annotated": {"x": ["b"]}}, voxels=NOT_B),
    "absent is background": Kind(voxels={"a": A, "b": 0}, has_b=False),
    "absent is unknown": Kind(
        iris={"absent_means": "not_annotated"}, voxels=NOT_B, has_b=False
    ),
}  # fmt: skip


def scene(kind: Kind) -> np.ndarray:
    background, a, b = kind.values
    label = np.full((SIDE,) * 3, background, np.int32)
    label[1:4, 1:4, 1:4] = a
    if kind.has_b:
        label[1:3, 1:3, 5:7] = b
    if kind.ignored is not None:
        label[7] = kind.ignored
    return label


def write_map(path: Path, label: np.ndarray, *, as_float: bool = False) -> None:
    if not as_float:
        write_labels(path, label, GRID)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = nib.Nifti1Image(label.transpose(2, 1, 0).astype(np.float32), GRID.affine)
    nib.save(stored, path)


def make(folder: Path, kind: Kind) -> Path:
    """Case x as the kind says, and an ordinary case y that has both classes."""
    for number, name in enumerate("xy"):
        label = scene(kind if name == "x" else Kind(kind.values))
        image = np.random.default_rng(number).normal(0, 1, label.shape) + 9 * (label > 0)
        write_image(folder / "imagesTr" / f"{name}_0000.nii.gz", image.astype(np.float32), GRID)
        write_map(folder / "labelsTr" / f"{name}.nii.gz", label, as_float=kind.as_float)
    write_dataset_json(
        folder,
        channel_names={"0": "MR"},
        labels=dict(kind.labels),
        num_training=2,
        file_ending=".nii.gz",
        iris=kind.iris,
        regions_class_order=kind.order,
    )
    return folder


def trained_on(workspace: Path, raw: Path) -> Case:
    """Case x as training sees it, after plan and preprocess."""
    settings = ("s0=1.0", "training.steps=1")
    made = plan([raw], workspace=workspace, preset_name="tiny", overrides=settings)
    stored = preprocess(made.path, workspace=workspace)
    assert stored.exit_code == 0
    (found,) = read_catalogue([whole(stored.folders[raw.name])]).sets
    return next(case for case in found.cases if case.name == "x")


@pytest.mark.parametrize("name", KINDS)
def test_what_the_loss_is_made_of(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    case = trained_on(tmp_path, make(tmp_path / "raw" / "odd", kind))
    known = {c: case.annotated([c]) for c in kind.voxels}
    assert known == {c: voxels is not None for c, voxels in kind.voxels.items()}
    ignored = () if case.ignore_value is None else (case.ignore_value,)
    columns = [case.values([c]) if known[c] else () for c in kind.voxels] + [ignored]
    numbers, table = number_labels(case.volume.label(), columns)
    masks = torch.from_numpy(table[numbers.numpy()]).movedim(-1, 0)[None]
    counted, masks = ~masks[:, -1], masks[:, :-1]
    # Three to one for every class in every voxel: p = 3/4.
    logits = torch.full(masks.shape, math.log(3.0))
    loss = episode_loss(logits, masks, counted, torch.tensor([list(known.values())]))
    by_hand = []
    for voxels in (v for v in kind.voxels.values() if v is not None):
        total = 0.75 * kind.counted + voxels
        overlap = (2 * 0.75 * voxels + SMOOTH) / (total + SMOOTH)
        inside, outside = voxels / kind.counted, 1 - voxels / kind.counted
        by_hand.append(1 - overlap - inside * math.log(0.75) - outside * math.log(0.25))
    assert float(loss.mean) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_what_a_reference_shows(tmp_path: Path, model_folder: Path, name: str) -> None:
    kind = KINDS[name]
    raw = make(tmp_path / "odd", kind)
    source = ReferenceSource(raw, cases=("x", "y"))
    task = encode_task(source, tmp_path / "t.task.pt", model=model_folder, spacing_mm=1.0).task
    found = {entry.name: (entry.references, entry.voxels) for entry in task.header.classes}
    for index, (class_name, voxels) in enumerate(kind.voxels.items()):
        whole_scene = {"a": A, "b": B, "whole": A + B}[class_name]
        # y always has it; x where it is annotated and there.
        expected = (1 + bool(voxels), whole_scene + (voxels or 0))
        assert found[class_name] == expected, class_name
        assert task.header.classes[index].value == index + 1 or kind.order is None
    if not kind.voxels.get("b", 1):
        with pytest.raises(DataRefused, match="'b'"):
            encode_task(
                ReferenceSource(raw, cases=("x",)), tmp_path / "u.task.pt", model=model_folder
            )


@pytest.mark.parametrize("name", KINDS)
def test_what_is_scored(tmp_path: Path, name: str) -> None:
    """The answer finds a third of `a`, none of `b`, and calls four voxels of background `b`."""
    kind = KINDS[name]
    raw = make(tmp_path / "odd", kind)
    (raw / "labelsTr" / "y.nii.gz").unlink()
    outputs = {
        c: kind.order[i] if kind.order else v for i, (c, v) in enumerate(kind.labels.items())
    }
    answer = np.zeros((SIDE,) * 3, np.int32)
    first, second = (outputs[c] for c in kind.voxels)
    answer[1, 1:4, 1:4] = first
    answer[5, 0, :4] = second
    if kind.ignored is not None:
        answer[7] = first  # counts nowhere
    write_map(tmp_path / "out" / "x.nii.gz", answer)
    report = evaluate(tmp_path / "out", raw / "labelsTr")
    case = json.loads(json.dumps(report.summary.to_json()))["metric_per_case"][0]["metrics"]
    rows = list(case.values())
    for row, (class_name, voxels) in zip(rows, kind.voxels.items(), strict=True):
        if voxels is None:
            assert all(math.isnan(row[key]) for key in ("TP", "FP", "FN", "Dice")), class_name
            continue
        hit = {"a": 9, "whole": 9, "b": 0}[class_name]
        wrong = {"a": 0, "whole": 4, "b": 4}[class_name]  # `b` is part of the whole
        assert (row["TP"], row["FP"], row["FN"]) == (hit, wrong, voxels - hit), class_name
        assert row["TN"] == kind.counted - voxels - wrong
        size = 2 * hit + wrong + voxels - hit
        assert row["Dice"] == pytest.approx(2 * hit / size), class_name
