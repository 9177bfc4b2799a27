"""Classes of a case against those of the references: which are compared, and what is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from iris_cli.dataset.classes import ClassLabel
from iris_cli.inference import own_tokens
from iris_cli.inference.own_tokens import Comparison, own_distances
from iris_cli.inference.streaming import How
from iris_cli.model.model import Model, ModelCard
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.preparation.prepare import prepare_image
from iris_cli.task.encoding import Reference, encode_references
from iris_cli.task.task_file import Task
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import Volume, read_image
from iris_cli.volume.writing import write_image, write_labels

CLASSES = [ClassLabel("long", (7,), 7), ClassLabel("cube", (2,), 2), ClassLabel("dot", (3,), 3)]
SHAPE = (20, 24, 70)


@pytest.fixture
def labels() -> np.ndarray:
    """`long` needs two patches of 32 voxels, `cube` shares its first, `dot` has seven voxels."""
    found = np.zeros(SHAPE, np.uint8)
    found[4:8, 4:8, 5:62] = 7
    found[12:18, 12:20, 10:18] = 2
    found[1, 1, 62:69] = 3
    return found


@pytest.fixture
def query(tmp_path: Path, labels: np.ndarray) -> Volume:
    image = np.random.default_rng(0).normal(0, 20, SHAPE) + 40.0 * labels
    grid = Grid.from_spacing(SHAPE, (1.5, 1.5, 1.5))
    return read_image(write_image(tmp_path / "q.nii.gz", image.astype(np.float32), grid))


@pytest.fixture
def task(tmp_path: Path, model: Model, query: Volume, labels: np.ndarray) -> Task:
    assert query.path is not None
    truth = write_labels(tmp_path / "truth.nii.gz", labels, query.grid)
    return encode_references(model, [Reference(query.path, truth)], CLASSES)


def distances(
    model: Model, task: Task, query: Volume, labels: np.ndarray, crops: int = 9
) -> dict[str, float]:
    prepared = prepare_image(query, task.header.modality, task.header.spacing_mm)
    kept = range(len(task.header.classes))
    return own_distances(model, task, prepared, labels, query.grid, kept, How(), crops=crops)


def test_a_case_that_is_the_reference_is_like_it_and_a_moved_mask_is_not(
    model: Model, task: Task, query: Volume, labels: np.ndarray
) -> None:
    own = distances(model, task, query, labels)
    assert own["cube"] < 1e-6  # it lies in one crop, there and here
    assert own["long"] < 0.02  # one of its crops
    moved = np.roll(labels, -8, axis=1)
    assert distances(model, task, query, moved)["cube"] > 100 * own["cube"] + 0.01


def test_what_was_not_found_or_nearly_not_is_not_compared(
    model: Model, task: Task, query: Volume, labels: np.ndarray
) -> None:
    assert list(distances(model, task, query, labels)) == ["long", "cube"]
    assert list(distances(model, task, query, np.where(labels == 2, 2, 0))) == ["cube"]
    assert distances(model, task, query, np.zeros_like(labels)) == {}


def test_crops_of_most_classes_come_first_and_only_so_many(
    model: Model, task: Task, query: Volume, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    encode = own_tokens.encode_view

    def encode_view(network: IrisNetwork, view: own_tokens.View, *rest: object) -> object:
        seen.append(tuple(view.weights))
        return encode(network, view, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(own_tokens, "encode_view", encode_view)
    far = labels.copy()
    far[labels == 7] = 0
    far[12:18, 4:8, 10:18] = 7
    far[12:18, 12:20, 60:68] = 3  # a crop of its own
    assert list(distances(model, task, query, far, crops=1)) == ["long", "cube"]
    assert list(distances(model, task, query, far, crops=2)) == ["long", "cube", "dot"]
    assert [set(names) for names in seen] == [{"long", "cube"}, {"long", "cube"}, {"dot"}]
    assert distances(model, task, query, far, crops=0) == {}


def test_a_tenth_of_the_windows_or_all_classes() -> None:
    assert [Comparison.CHEAP.crops(n, 5) for n in (1, 9, 10, 108)] == [0, 0, 1, 10]
    assert [Comparison.ALL.crops(n, 5) for n in (1, 108)] == [5, 5]
    assert Comparison.NONE.crops(1000, 5) == 0


def test_large_classes_are_placed_by_a_sample(
    model: Model, task: Task, query: Volume, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distances(model, task, query, labels)
    monkeypatch.setattr(own_tokens, "SAMPLE", 100)
    monkeypatch.setattr(own_tokens, "SLAB_VOXELS", 3 * SHAPE[1] * SHAPE[2])
    points, voxels = own_tokens._points(labels, {"long": 7, "cube": 2, "dot": 3})
    assert voxels == {"long": 912, "cube": 384, "dot": 7}
    assert 60 < len(points["cube"]) < 140
    assert not len(points["dot"])
    assert all(labels[tuple(place)] == 2 for place in points["cube"])
    sampled = distances(model, task, query, labels)
    assert sampled == pytest.approx(whole, abs=0.02)
    assert distances(model, task, query, labels) == sampled


def test_a_network_whose_tokens_cannot_be_compared_has_none(
    task: Task, query: Volume, labels: np.ndarray
) -> None:
    config = NetworkConfig(**{**NetworkConfig.tiny().model_dump(), "foreground_norm": False})
    torch.manual_seed(0)
    network = IrisNetwork(config).eval()
    other = Model(network, ModelCard.of(network, name="raw", s0=1.5, patch=32))
    header = task.header.model_copy(update={"model": task.header.model})
    assert distances(other, dataclasses.replace(task, header=header), query, labels) == {}
