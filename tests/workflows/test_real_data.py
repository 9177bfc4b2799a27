"""The model that ships on real scans: a set it was trained on, and one it never saw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataset_conversion.registry import convert
from iris_cli.dataset.raw import Case, RawDataset, read_raw_dataset
from iris_cli.evaluation.summary import Summary
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from iris_cli.workflows.evaluate import evaluate
from iris_cli.workflows.predict import predict

pytestmark = pytest.mark.real


def _raw(shared_data: Path, name: str, folder: Path) -> tuple[RawDataset, dict[str, list[str]]]:
    convert("info_json", shared_data / name, folder / "raw" / name)
    lists = json.loads((shared_data / "splits.json").read_text())["sets"][name]
    return read_raw_dataset(folder / "raw" / name, strict=False), lists


def _segment(raw: RawDataset, references: list[str], queries: list[Case], folder: Path) -> Summary:
    task = encode_task(ReferenceSource(raw.folder, cases=tuple(references)), folder / "set.task.pt")
    images = [case.images[0] for case in queries]
    predict(images, folder / "out", task=task.path).run.raise_for_failures()
    labels = queries[0].label
    assert labels is not None
    return evaluate(folder / "out", labels.parent, cases=[case.name for case in queries]).summary


def test_hippocampus_of_other_subjects_is_found(shared_data: Path, tmp_path: Path) -> None:
    raw, lists = _raw(shared_data, "hippocampus", tmp_path)
    queries = [raw.case(name) for name in lists["validate"][:3]]
    summary = _segment(raw, lists["train"][:3], queries, tmp_path)
    mean = summary.dice().headline.mean
    assert mean is not None
    assert mean > 0.4


def test_a_set_never_trained_on_is_worked_at_its_own_scale(
    shared_data: Path, tmp_path: Path
) -> None:
    raw, lists = _raw(shared_data, "sts_ct", tmp_path)
    queries = [raw.case(lists["query"][0])]
    summary = _segment(raw, lists["context"], queries, tmp_path)
    assert len(summary.scores) == 1
    assert summary.exit_code == 0
