"""R2: kill -9 at random moments of encode-task and predict; the same line then finishes.

Long: every run of the command pays for starting Python and torch.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iris_cli.execution.receipts import read_receipt
from iris_cli.task.task_file import read_task
from iris_cli.volume.reading import read_labels
from iris_cli.volume.writing import write_image
from tests.workflows.conftest import GRID, scene

KILLS = 20
ENCODE = """
import sys
from pathlib import Path
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
references, output, model = sys.argv[1:]
for _ in range(4):
    encode_task(ReferenceSource(Path(references)), Path(output), model=model)
"""
PREDICT = """
import sys
from pathlib import Path
from iris_cli.workflows.predict import PredictSettings, predict
queries, output, task, model = sys.argv[1:]
report = predict(Path(queries), Path(output), task=Path(task), settings=PredictSettings(model))
sys.exit(report.exit_code)
"""


def start(script: str, *arguments: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    words = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(words, env=environment)


def finish(script: str, *arguments: Path) -> float:
    """Run to the end; returns the seconds it took."""
    started = time.monotonic()
    assert start(script, *arguments).wait(300) == 0
    return time.monotonic() - started


def kill_once(seconds: float, script: str, *arguments: Path) -> None:
    process = start(script, *arguments)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_killed_encoding_leaves_no_torn_task(
    references: Path, model_folder: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.task.pt"
    seconds = finish(ENCODE, references, whole, model_folder)
    chooser, path = random.Random(0), tmp_path / "out" / "killed.task.pt"
    for _ in range(KILLS):
        kill_once(seconds * chooser.uniform(0.3, 1), ENCODE, references, path, model_folder)
        if path.exists():
            assert read_task(path).fingerprint() == read_task(whole).fingerprint()
    finish(ENCODE, references, path, model_folder)
    assert path.read_bytes() == whole.read_bytes()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.slow
def test_a_killed_prediction_leaves_whole_cases_and_finishes_later(
    references: Path, model_folder: Path, tmp_path: Path
) -> None:
    task, queries = tmp_path / "t.task.pt", tmp_path / "many"
    finish(ENCODE, references, task, model_folder)
    for index in range(60):
        write_image(queries / f"{index:02d}.nii.gz", scene(index)[0], GRID)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    seconds = finish(PREDICT, queries, whole, task, model_folder)
    chooser = random.Random(0)
    for _ in range(KILLS):
        kill_once(seconds * chooser.uniform(0.2, 0.7), PREDICT, queries, killed, task, model_folder)
        for path in killed.glob("[0-9]*.nii.gz"):
            assert read_labels(path).content_hash() == read_labels(whole / path.name).content_hash()
    finish(PREDICT, queries, killed, task, model_folder)
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(killed) for path in killed.rglob("*") if path.is_file())
    for path in whole.glob(".iris/*.json"):
        one, other = read_receipt(path), read_receipt(killed / ".iris" / path.name)
        assert one is not None
        assert other is not None
        assert one.content == other.content
