"""The demo on phantoms, and on a public archive served from this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from iris_cli.errors import DataRefused, UsageError
from iris_cli.model.model import ModelCard, save_model
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.volume.grid import Grid
from iris_cli.volume.writing import write_image, write_labels
from iris_cli.workflows import demo
from iris_cli.workflows.demo import PublicSet, run_demo


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    network = IrisNetwork(NetworkConfig.tiny())
    card = ModelCard.of(network, name="tiny", s0=10.0, patch=32)
    return str(save_model(tmp_path_factory.mktemp("model") / "tiny", network, card))


def test_phantoms_go_all_the_way_and_a_rerun_keeps_them(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "REFERENCE_SEEDS", (1, 2))
    monkeypatch.setattr(demo, "QUERY_SEEDS", (4, 5))
    monkeypatch.setattr(demo, "_workers", lambda device: 0)
    report = run_demo(tmp_path / "demo", model=model)
    assert report.task.exists()
    assert [path.name for path in report.pictures] == ["torso_004.png", "torso_005.png"]
    assert matplotlib.image.imread(report.pictures[0]).std() > 0.05
    assert len(report.evaluation.class_rows()) == 9
    again = run_demo(tmp_path / "demo", model=model)
    assert {outcome.status for outcome in again.prediction.run.outcomes} == {"kept"}


def _archive(folder: Path) -> Path:
    """A small archive in the form of Task04 of the Decathlon, `._` companions included."""
    task = folder / "Task04_Hippocampus"
    rng = np.random.default_rng(0)
    grid = Grid((16, 20, 14), np.eye(4))
    listed = []
    for number in range(1, 11):
        labels = np.zeros(grid.shape_zyx, np.uint8)
        labels[4:8, 6:12, 4:9], labels[8:12, 6:12, 4:9] = 1, 2
        image = labels * 50 + rng.normal(100, 5, labels.shape)
        name = f"hippocampus_{number:03d}.nii.gz"
        write_image(task / "imagesTr" / name, image, grid)
        write_labels(task / "labelsTr" / name, labels, grid)
        (task / "imagesTr" / f"._{name}").write_bytes(b"junk")
        listed.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    content = {
        "name": "Hippocampus",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "numTraining": len(listed),
        "numTest": 0,
        "training": listed,
        "test": [],
    }
    (task / "dataset.json").write_text(json.dumps(content))
    archive = folder / "Task04_Hippocampus.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(task, arcname=task.name)
    return archive


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """URL and checksum of the archive on a server on the loopback address."""
    archive = _archive(tmp_path / "source")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    handler = partial(Quiet, directory=str(archive.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{archive.name}"
        yield url, "md5:" + hashlib.md5(archive.read_bytes()).hexdigest()
        server.shutdown()
        thread.join()


def test_a_public_set_is_fetched_converted_and_scored(
    model: str, tmp_path: Path, served: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_workers", lambda device: 0)
    said: list[str] = []
    source = PublicSet(*served, "msd", "CC BY-SA 4.0")
    report = run_demo(
        tmp_path / "demo", data="hippocampus", source=source, model=model, on_stage=said.append
    )
    assert "CC BY-SA 4.0" in said[0]
    # Cases 2k-1 and 2k are one subject: three references and two queries of five subjects.
    assert len(report.pictures) == 2
    assert {row["class"] for row in report.evaluation.class_rows()} == {
        "Anterior", "Posterior", "mean",
    }  # fmt: skip


def test_a_changed_archive_is_refused(model: str, tmp_path: Path, served: tuple[str, str]) -> None:
    source = PublicSet(served[0], "md5:" + "0" * 32, "msd", "CC BY-SA 4.0")
    with pytest.raises(DataRefused, match="not the expected one"):
        run_demo(tmp_path / "demo", data="hippocampus", source=source, model=model)
    assert not (tmp_path / "demo" / "raw").exists()


def test_an_unknown_public_set_is_a_usage_error(model: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="hippocampus") as caught:
        run_demo(tmp_path / "demo", data="hipocampus", model=model)
    assert caught.value.exit_code == 2
