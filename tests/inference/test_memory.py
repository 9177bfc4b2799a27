"""Memory of a case: told from shapes, and made to fit rung by rung."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from iris_cli.errors import EnvironmentProblem
from iris_cli.execution.outcomes import SOME_FAILED, error_parts
from iris_cli.inference import predictor
from iris_cli.inference.job import PredictPayload, predict_case
from iris_cli.inference.memory import (
    SMALL_BLOCK,
    Case,
    Limits,
    Means,
    Sizes,
    case_of,
    in_file,
    ladder,
)
from iris_cli.inference.windows import Layout
from iris_cli.model.model import Model, ModelCard
from iris_cli.network.blocks import ResidualBlock
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.task.task_file import ModelRecord
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import read_labels
from tests.inference.conftest import PATCH, MakeTask, WriteQuery

FIRST = Means(window_batch=4)


CASE = Case(
    native=10**9,
    native_bytes=10**8,
    label_bytes=10**9,
    working=10**7,
    classes=4,
    sizes=Sizes(maps=10**9, sums=2 * 10**9, window=10**9),
    resident=10**8,
    weights=10**7,
    cuda=False,
)


def test_the_ladder_takes_one_step_at_a_time() -> None:
    small = Means(window_batch=1, on_host=True, block_values=SMALL_BLOCK)
    assert list(ladder(FIRST, cuda=True)) == [
        FIRST,
        Means(window_batch=1),
        Means(window_batch=1, on_host=True),
        small,
        dataclasses.replace(small, labels_in_file=True),
    ]
    assert not any(means.on_host for means in ladder(FIRST, cuda=False))
    assert small.said(FIRST) == [
        "window batch 1",
        "sums in host memory",
        f"blocks of {SMALL_BLOCK} logits",
    ]


@pytest.mark.parametrize("cuda", [True, False])
def test_every_rung_takes_less_and_is_taken_when_the_one_before_does_not_fit(cuda: bool) -> None:
    case = dataclasses.replace(CASE, cuda=cuda)
    rungs = list(ladder(FIRST, cuda=cuda))
    needs = [case.predict(means) for means in rungs]
    assert case.fit(FIRST, Limits()) == (FIRST, needs[0])
    for means, need in zip(rungs, needs, strict=True):
        limits = Limits(ram=need.ram if need.ram < needs[0].ram else None, vram=need.vram or None)
        assert case.fit(FIRST, limits)[0] == means
    least = min(need.ram for need in needs)
    with pytest.raises(EnvironmentProblem, match="does not fit") as refused:
        case.fit(FIRST, Limits(ram=least - 1))
    assert error_parts(refused.value)["exit_code"] == SOME_FAILED


def test_blending_does_not_grow_with_classes_or_length() -> None:
    config, patch = NetworkConfig.tiny(), (64, 64, 64)

    def blend(classes: int, length: int) -> int:
        layout = Layout((length, 100, 100), patch)
        return Sizes.of(config, layout, classes, 1, "fp32").blend

    assert blend(1, 200) < blend(30, 200) == blend(104, 200) >= blend(104, 2000)
    half = Sizes.of(config, Layout((200, 100, 100), patch), 104, 1, "bf16")
    assert half.maps < blend(104, 200)


def test_what_is_asked_for_is_counted(model: Model, make_task: MakeTask) -> None:
    grid = Grid.from_spacing((90, 60, 60), (0.5, 0.5, 0.5))
    case = case_of(model, make_task(), grid, 4 * 90 * 60 * 60, "cpu", "fp32")
    assert (case.label_bytes, case.working) == (90 * 60 * 60, 30 * 20 * 20)
    assert case.resident > 10**7
    assert not case.cuda


def test_filters_of_the_kernels_are_counted_until_they_are_made(make_task: MakeTask) -> None:
    network = IrisNetwork(NetworkConfig.tiny()).eval()
    card = ModelCard.of(network, name="tiny", s0=1.5, patch=PATCH)
    model, grid = Model(network, card), Grid.from_spacing((40, 40, 40), (1.5, 1.5, 1.5))
    task = make_task(model=ModelRecord(name="tiny", version="1", fingerprint=card.fingerprint))

    def filters(device: str, precision: str) -> int:
        return case_of(model, task, grid, 1, device, precision).filters

    blocks = [block for block in network.modules() if isinstance(block, ResidualBlock)]
    weights = sum(p.nbytes for block in blocks for p in block.parameters() if p.ndim == 5)
    assert filters("cpu", "fp32") == 2 * weights
    assert (filters("cpu", "bf16"), filters("cuda", "fp32")) == (weights, 0)
    first = dataclasses.replace(CASE, filters=10**9)
    assert first.predict(FIRST).ram == CASE.predict(FIRST).ram + 10**9
    image = torch.zeros(1, 1, PATCH, PATCH, PATCH)
    with torch.inference_mode():
        network.decode(
            network.encode_image(image), [torch.from_numpy(stage)[None] for stage in task.tokens]
        )
    assert filters("cpu", "fp32") == 0


def test_profile_mass_1_takes_no_step_that_it_does_not_know(
    model: Model, make_task: MakeTask
) -> None:
    card = ModelCard.of(model.network, name="mass", s0=1.5, patch=PATCH, profile="mass-1")
    record = ModelRecord(name="mass", version="1", fingerprint=card.fingerprint)
    task = make_task(model=record, profile="mass-1", modality="auto")
    grid = Grid.from_spacing((90, 60, 60), (1.5, 1.5, 1.5))
    case = case_of(Model(model.network, card), task, grid, 4 * 90 * 60 * 60, "cpu", "fp32")
    rungs = list(case.rungs(FIRST))
    assert rungs == [FIRST, Means(window_batch=1)]
    assert case.label_bytes == 2 * 90 * 60 * 60
    assert case.sizes.blend == 4 * 5 * 32 * 60 * 60  # four classes and the weights
    with pytest.raises(EnvironmentProblem, match="does not fit"):
        case.fit(FIRST, Limits(ram=case.predict(rungs[-1]).ram - 1))


def test_labels_in_a_file_leave_nothing_behind(tmp_path: Path) -> None:
    labels = in_file(tmp_path / "hidden", (3, 4, 5), np.dtype(np.uint16))
    assert labels.shape == (3, 4, 5)
    assert not labels.any()
    labels[1] = 7
    assert list((tmp_path / "hidden").iterdir()) == []


@pytest.mark.parametrize("steps", [1, 2])
def test_limits_that_take_each_step_give_the_same_labels(
    write_query: WriteQuery,
    task_file: Path,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    """R11: from the first rung to the last one; logits are compared in test_streaming."""
    payload = PredictPayload(
        case="q",
        query=write_query("q.nii.gz", (90, 90, 90), spacing_xyz=(0.5, 0.5, 0.55)),
        output=tmp_path / "out" / "q.nii.gz",
        task=task_file,
        model=str(model_folder),
        window_batch=4,
    )
    first = predict_case(payload).receipt
    expected = read_labels(payload.output).array
    assert len(np.unique(expected)) > 2
    payload.receipt.unlink()
    monkeypatch.setattr(predictor, "case_of", lambda *_, **__: CASE)
    needs = [CASE.predict(means).ram for means in ladder(FIRST, cuda=False)]
    tight = dataclasses.replace(payload, limits=Limits(ram=needs[steps]))
    again = predict_case(tight).receipt
    assert len(again["run"]["memory_steps"]) == steps
    assert (read_labels(payload.output).array == expected).mean() > 0.999
    assert again["content"]["inputs"] == first["content"]["inputs"]
