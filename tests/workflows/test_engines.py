"""One result for every engine (RELIABILITY.md, R17): outputs and receipts, whoever dies."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from iris_cli.execution.parts import Part
from iris_cli.execution.receipts import read_receipt
from iris_cli.files.hashing import hash_bytes, hash_json
from iris_cli.volume.writing import write_image
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from iris_cli.workflows.predict import PredictSettings, predict
from tests.workflows.conftest import GRID, scene

distributed = pytest.importorskip("distributed")

CASES = tuple("abcdef")
Run = Callable[..., str]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("queries")
    for number, name in enumerate(CASES):
        write_image(folder / f"{name}.nii.gz", scene(30 + number)[0], GRID)
    return folder


@pytest.fixture
def task(references: Path, model_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "boxes.task.pt"
    encode_task(ReferenceSource(references), path, model=model_folder)
    return path


def content(out: Path) -> str:
    """One hash of all that was made: the files but their receipts, and what these prove."""
    files = {path.name: hash_bytes(path.read_bytes()) for path in out.iterdir() if path.is_file()}
    receipts = [read_receipt(path) for path in sorted((out / ".iris").glob("*.json"))]
    proofs = {receipt.case: receipt.content_hash() for receipt in receipts if receipt is not None}
    assert sorted(proofs) == list(CASES)
    assert not (out / ".iris" / "failed").exists() or not any((out / ".iris" / "failed").iterdir())
    return hash_json([files, proofs])


@contextmanager
def killer(cluster: distributed.LocalCluster, out: Path) -> Iterator[list[int]]:
    """Kill one worker as soon as a label map is there: it has the next case in work."""
    killed: list[int] = []

    def kill() -> None:
        while not list(out.glob("*.nii.gz")):
            time.sleep(0.005)
        pid = next(iter(cluster.workers.values())).pid
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    yield killed
    thread.join()


@pytest.fixture
def run(many: Path, task: Path, model_folder: Path, tmp_path: Path) -> Run:
    """Predict with these settings, one after the other; returns the hash of what was made."""
    plain = PredictSettings(model=str(model_folder))

    def run(name: str, *options: dict[str, Any]) -> str:
        for some in options:
            settings = dataclasses.replace(plain, **some)
            report = predict(many, tmp_path / name, task=task, settings=settings)
            assert report.exit_code == 0, report.run.failed
        return content(tmp_path / name)

    return run


def test_parts_and_a_killed_dask_worker_make_what_one_process_makes(
    run: Run, tmp_path: Path
) -> None:
    here = run("here", {})
    assert run("parts", *({"part": Part(index, 2, "--part-id")} for index in (1, 0))) == here
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
        memory_limit=None,
    ) as cluster:
        with killer(cluster, tmp_path / "killed") as killed:
            assert run("killed", {"dask": cluster.scheduler_address}) == here
        assert killed


@pytest.mark.slow
def test_workers_and_a_local_dask_cluster_make_what_one_process_makes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run("here", {})
    assert run("workers", {"workers": 2}) == here
    assert run("devices", {"workers": 3, "devices": ("cpu", "cpu")}) == here
    monkeypatch.chdir(tmp_path)
    assert run("local", {"dask": "local:2"}) == here
