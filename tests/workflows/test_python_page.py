"""The example of docs/python.md runs as it stands there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nibabel
import pytest

from iris_cli.workflows.encode_task import ReferenceSource, encode_task

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_example_writes_labels_of_the_scan(
    references: Path,
    queries: Path,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encode_task(ReferenceSource(references), tmp_path / "liver.task.pt", model=model_folder)
    shutil.copy(queries / "a.nii.gz", tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    # The page has the shipped model, which a test of a few voxels need not run.
    code = found[1].replace('"liver.task.pt",', f'"liver.task.pt", model={str(model_folder)!r},')
    assert code != found[1]
    exec(compile(code, PAGE, "exec"), {})
    labels, scan = nibabel.load("labels.nii.gz"), nibabel.load("scan.nii.gz")
    assert labels.shape == scan.shape
    assert (labels.affine == scan.affine).all()
    assert "left 1" in capsys.readouterr().out
