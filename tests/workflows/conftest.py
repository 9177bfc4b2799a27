"""A random network, a folder of references, and queries, for the tests of workflows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from iris_cli.model.model import ModelCard, save_model
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.volume.grid import Grid
from iris_cli.volume.writing import write_image, write_labels

SHAPE = (20, 24, 30)
GRID = Grid.from_spacing(SHAPE, (1.5, 1.5, 1.5), (3.0, -2.0, 7.0))


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image with two bright boxes and its label map."""
    generator = np.random.default_rng(seed)
    z, y, x = generator.integers(0, 4, 3)
    labels = np.zeros(SHAPE, np.uint8)
    labels[4 + z : 12 + z, 4 + y : 14 + y, 3 + x : 12 + x] = 1
    labels[6 + z : 14 + z, 6 + y : 16 + y, 16 + x : 24 + x] = 2
    image = generator.normal(0, 5, SHAPE) + 60 * (labels == 1) + 120 * (labels == 2)
    return image.astype(np.float32), labels


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = IrisNetwork(NetworkConfig.tiny()).eval()
    card = ModelCard.of(network, name="tiny", s0=1.5, patch=32)
    return save_model(tmp_path_factory.mktemp("model") / "tiny", network, card)


@pytest.fixture(scope="session")
def mass_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of profile mass-1."""
    torch.manual_seed(0)
    network = IrisNetwork(NetworkConfig.tiny()).eval()
    card = ModelCard.of(network, name="mass", s0=1.5, patch=32, profile="mass-1")
    return save_model(tmp_path_factory.mktemp("model") / "mass", network, card)


@pytest.fixture
def references(tmp_path: Path) -> Path:
    folder = tmp_path / "references"
    for index, name in enumerate(("one", "two")):
        image, labels = scene(index)
        write_image(folder / "images" / f"{name}.nii.gz", image, GRID)
        write_labels(folder / "labels" / f"{name}.nii.gz", labels, GRID)
    (folder / "labels.json").write_text(json.dumps({"left": 1, "right": 2}))
    return folder


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    folder = tmp_path / "queries"
    for index, name in enumerate(("a", "b", "c")):
        write_image(folder / f"{name}.nii.gz", scene(10 + index)[0], GRID)
    return folder


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    folder = tmp_path / "truth"
    for index, name in enumerate(("a", "b", "c")):
        write_labels(folder / f"{name}.nii.gz", scene(10 + index)[1], GRID)
    return folder


def forget_position(path: Path) -> Path:
    """Sets the codes of qform and sform of a .nii.gz to 0."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[252:256] = bytes(4)
    path.write_bytes(gzip.compress(bytes(content)))
    return path
