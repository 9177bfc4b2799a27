"""What a file or folder is, also where a part of it is missing, torn or empty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iris_cli.errors import DataRefused
from iris_cli.workflows import info
from iris_cli.workflows.info import describe
from tests.workflows.conftest import forget_position


def test_the_last_whole_line_of_the_metrics_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3, "name": "\xc3')
    assert info._last_metrics(path) == {"step": 2}
    path.write_text('{"st')
    assert info._last_metrics(path) is None
    assert info._last_metrics(tmp_path / "none") is None


@pytest.mark.parametrize("content", [None, 3, ["a"]])
def test_a_receipt_without_content_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"content": content, "run": {}}))
    with pytest.raises(DataRefused, match="receipt") as caught:
        describe(path)
    assert caught.value.file == str(path)


def test_a_volume_without_position_is_described_with_an_assumed_spacing(truth: Path) -> None:
    path = forget_position(truth / "a.nii.gz")
    with pytest.raises(DataRefused, match="does not say where") as caught:
        describe(path)
    assert "info" in str(caught.value.fix)
    facts = describe(path, assume_spacing=2.0).facts
    assert facts["spacing (x, y, z) as stored, mm"] == [2.0, 2.0, 2.0]
