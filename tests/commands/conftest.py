"""Running commands in process, and small inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from iris_cli.commands.app import main
from iris_cli.dataset.phantoms import write_phantom_dataset
from iris_cli.model.model import ModelCard, save_model
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork


@dataclass(frozen=True)
class Ran:
    """Exit code and what was written."""

    code: int
    out: str
    err: str


Iris = Callable[..., Ran]


@pytest.fixture
def iris(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iris:
    """Call it with the words of a command line."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ran(int(caught.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    torch.manual_seed(0)
    network = IrisNetwork(NetworkConfig.tiny())
    card = ModelCard.of(network, name="tiny", s0=8.0, patch=32, licence="CC0-1.0")
    return save_model(tmp_path_factory.mktemp("model") / "tiny", network, card)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw folder of four coarse phantoms with a test case each way."""
    folder = tmp_path_factory.mktemp("raw") / "torso"
    return write_phantom_dataset(folder, [1, 2, 3], queries=[4, 5], voxel_mm=9.0)
