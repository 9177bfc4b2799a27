"""References on disk to a task file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from iris_cli.errors import DataRefused, UsageError
from iris_cli.task import encoding
from iris_cli.task.task_file import read_task
from iris_cli.volume.writing import write_labels
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from tests.workflows.conftest import GRID, SHAPE, forget_position


def test_a_folder_becomes_a_task_file(references: Path, model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "tasks" / "boxes.task.pt"
    report = encode_task(ReferenceSource(references), path, model=model_folder)
    task = read_task(path)
    assert task.fingerprint() == report.task.fingerprint()
    assert [(entry.name, entry.value) for entry in task.header.classes] == [
        ("left", 1),
        ("right", 2),
    ]
    assert report.references == ("one", "two")
    assert report.class_rows()[0]["references"] == 2
    assert report.to_json()["fingerprint"] == task.fingerprint()
    before = path.read_bytes()
    encode_task(ReferenceSource(references), path, model=model_folder)
    assert path.read_bytes() == before


def test_pairs_names_and_picked_classes(
    references: Path, model_folder: Path, tmp_path: Path
) -> None:
    pair = (references / "images" / "one.nii.gz", references / "labels" / "one.nii.gz")
    path = tmp_path / "x.task.pt"
    named = ReferenceSource(pairs=(pair,), names=("box=2", "other=1"))
    task = encode_task(named, path, model=model_folder, classes=["box"]).task
    assert [(entry.name, entry.value) for entry in task.header.classes] == [("box", 2)]
    unnamed = encode_task(ReferenceSource(pairs=(pair,)), path, model=model_folder).task
    assert [entry.name for entry in unnamed.header.classes] == ["1", "2"]
    with pytest.raises(DataRefused, match="no class declares"):
        encode_task(ReferenceSource(pairs=(pair,), names=("box=2",)), path, model=model_folder)


def test_an_empty_mask_is_refused_with_exit_code_four_file_and_class(
    references: Path, model_folder: Path, tmp_path: Path
) -> None:
    label = references / "labels" / "one.nii.gz"
    write_labels(label, np.zeros(SHAPE, np.uint8), GRID)
    source = ReferenceSource(references, cases=("one",))
    with pytest.raises(DataRefused, match="'left'") as caught:
        encode_task(source, tmp_path / "x.task.pt", model=model_folder)
    assert caught.value.exit_code == 4
    assert str(label) in str(caught.value)
    unnamed = ReferenceSource(pairs=((references / "images" / "one.nii.gz", label),))
    with pytest.raises(DataRefused, match="hold no class"):
        encode_task(unnamed, tmp_path / "x.task.pt", model=model_folder)
    assert not (tmp_path / "x.task.pt").exists()


def test_wrong_use_is_said_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"boxes\.task\.pt"):
        encode_task(ReferenceSource(tmp_path), tmp_path / "boxes.pt")
    with pytest.raises(UsageError, match="one folder, or pairs"):
        ReferenceSource().find()
    with pytest.raises(UsageError, match="one folder, or pairs"):
        ReferenceSource(tmp_path, pairs=((tmp_path, tmp_path),)).find()


@pytest.mark.parametrize("named", [True, False])
def test_references_without_position_are_encoded_with_an_assumed_spacing(
    references: Path, model_folder: Path, tmp_path: Path, named: bool
) -> None:
    for path in references.rglob("*.nii.gz"):
        forget_position(path)
    if not named:
        (references / "labels.json").unlink()
    path = tmp_path / "x.task.pt"
    with pytest.raises(DataRefused, match="does not say where") as caught:
        encode_task(ReferenceSource(references), path, model=model_folder)
    assert "encode-task" in str(caught.value.fix)
    task = encode_task(
        ReferenceSource(references), path, model=model_folder, assume_spacing=1.5
    ).task
    assert [entry.value for entry in task.header.classes] == [1, 2]
    assert any("spacing 1.5 x 1.5 x 1.5 mm" in warning for warning in task.header.warnings)


def test_pairs_keep_the_channel_and_refuse_cases(references: Path) -> None:
    pair = (references / "images" / "one.nii.gz", references / "labels" / "one.nii.gz")
    assert ReferenceSource(pairs=(pair,), names=("a=1",)).find(channel=1).channel == 1
    with pytest.raises(UsageError, match="here are pairs"):
        ReferenceSource(pairs=(pair,), cases=("one",)).find()


def test_chosen_output_values_are_a_warning_of_the_task(
    references: Path, model_folder: Path, tmp_path: Path
) -> None:
    source = ReferenceSource(references, names=("left=1", "both=1,2"))
    task = encode_task(source, tmp_path / "x.task.pt", model=model_folder).task
    assert [(entry.name, entry.value) for entry in task.header.classes] == [
        ("left", 1),
        ("both", 2),
    ]
    assert "both = 2" in task.header.warnings[0]


def test_a_task_is_kept_for_the_same_references_and_the_same_format(
    references: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.task.pt"

    def written() -> int:
        encode_task(ReferenceSource(references), path, model=model_folder, reuse=True)
        return path.stat().st_ino

    first = written()
    assert written() == first
    monkeypatch.setattr(encoding, "MINOR", encoding.MINOR + 1)
    assert written() != first
