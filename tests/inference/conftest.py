"""A random network on disk, a task for it, and generated queries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iris_cli.model.model import Model, ModelCard, load_model, save_model
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.task.task_file import ModelRecord, Task, TaskClass, TaskHeader, write_task
from iris_cli.volume.grid import Grid
from iris_cli.volume.writing import write_image

PATCH = 32
MakeTask = Callable[..., Task]
WriteQuery = Callable[..., Path]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = IrisNetwork(NetworkConfig.tiny()).eval()
    card = ModelCard.of(network, name="tiny", s0=1.5, patch=PATCH)
    return save_model(tmp_path_factory.mktemp("model") / "tiny", network, card)


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Model:
    return load_model(model_folder)


@pytest.fixture(scope="session")
def make_task(model: Model) -> MakeTask:
    """A task of random tokens: four classes in one group unless said otherwise."""

    def make(classes: int = 4, seed: int = 7, **changes: Any) -> Task:
        config = model.network.config
        stages = tuple((config.tokens, config.stage_channels(i)) for i in range(config.stages))
        values: dict[str, Any] = {
            "model": ModelRecord(name="tiny", version="1", fingerprint=model.card.fingerprint),
            "profile": "iris-1",
            "spacing_mm": 1.5,
            "modality": "other",
            "classes": tuple(
                TaskClass(name=f"c{i}", value=5 - i, references=1, crops=1, voxels=9, coverage=1)
                for i in range(classes)
            ),
            "groups": (tuple(range(classes)),),
            "stages": stages,
        }
        generator = np.random.default_rng(seed)
        tokens = [generator.normal(size=(classes, *stage)).astype(np.float32) for stage in stages]
        return Task(TaskHeader(**(values | changes)), tuple(tokens))

    return make


@pytest.fixture
def task_file(tmp_path: Path, make_task: MakeTask) -> Path:
    return write_task(tmp_path / "tiny.task.pt", make_task())


def noise(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A smooth random image: something for a network to see."""
    generator = np.random.default_rng(seed)
    z, y, x = (np.linspace(0, 6, n) for n in shape)
    waves = np.sin(z + generator.random())[:, None, None] * np.cos(y + seed)[:, None] * np.sin(x)
    return (100 * waves + generator.normal(0, 10, shape)).astype(np.float32)


@pytest.fixture
def write_query(tmp_path: Path) -> WriteQuery:
    def write(
        name: str,
        shape: tuple[int, int, int] = (30, 34, 20),
        *,
        seed: int = 0,
        spacing_xyz: tuple[float, float, float] = (1.5, 1.5, 1.5),
        folder: str = "queries",
    ) -> Path:
        grid = Grid.from_spacing(shape, spacing_xyz, (3.0, -2.0, 7.0))
        return write_image(tmp_path / folder / name, noise(shape, seed), grid)

    return write
