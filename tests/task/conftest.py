"""Generated references and a random network, for the tests of tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from iris_cli.model.model import Model, ModelCard
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.task.encoding import Reference
from iris_cli.volume.grid import Grid
from iris_cli.volume.writing import write_image, write_labels

PATCH = 32
MakeReference = Callable[..., Reference]


@pytest.fixture(scope="session")
def model() -> Model:
    torch.manual_seed(0)
    network = IrisNetwork(NetworkConfig.tiny()).eval()
    return Model(network, ModelCard.of(network, name="tiny", s0=1.5, patch=PATCH))


def ball(shape: tuple[int, int, int], centre: tuple[int, ...], radius: float) -> np.ndarray:
    index = np.indices(shape) - np.asarray(centre)[:, None, None, None]
    return np.asarray((index**2).sum(axis=0) <= radius**2)


@pytest.fixture
def make_reference(tmp_path: Path) -> MakeReference:
    """Write an image (noise, brighter where labelled) and a label map; returns their paths."""

    def make(
        name: str,
        labels: np.ndarray,
        *,
        spacing_xyz: tuple[float, float, float] = (1.5, 1.5, 1.5),
        seed: int = 0,
        label_grid: Grid | None = None,
        not_annotated: frozenset[str] = frozenset(),
        ct: bool = False,
    ) -> Reference:
        grid = Grid.from_spacing(labels.shape, spacing_xyz, (3.0, -2.0, 7.0))
        image = np.random.default_rng(seed).normal(0, 20, labels.shape) + 100 * (labels > 0)
        if ct:
            image[: labels.shape[0] // 4] -= 900
            image[-labels.shape[0] // 4 :] += 900
        folder = tmp_path / "references"
        return Reference(
            write_image(folder / f"{name}.nii.gz", image.astype(np.float32), grid),
            write_labels(folder / f"{name}_seg.nii.gz", labels, label_grid or grid),
            not_annotated,
        )

    return make
