"""The released loops: how often they run the network, and what they decide."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.literal_network import LiteralNetwork
from benchmarks.released_loops import evaluation_loop, inference_path
from iris_cli.network.config import NetworkConfig

PATCH = (32, 32, 32)
CLASSES = 3


@pytest.fixture
def passes() -> list[int]:
    """Gets one entry for each pass of the network."""
    return []


@pytest.fixture
def network(passes: list[int]) -> Iterator[LiteralNetwork]:
    torch.manual_seed(0)
    found = LiteralNetwork(NetworkConfig.tiny()).eval()
    found.encoder.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        yield found


def tokens() -> list[Tensor]:
    config = NetworkConfig.tiny()
    return [
        torch.randn(CLASSES, config.tokens, config.stage_channels(i)) for i in range(config.stages)
    ]


def test_a_volume_of_one_window_is_decided_as_the_network_says(
    network: LiteralNetwork, passes: list[int]
) -> None:
    task, image = tokens(), torch.randn(PATCH)
    logits = network.decode(network.encoder(image[None, None]), [t[None] for t in task])[0]
    best, label = logits.max(dim=0)
    middle = (slice(8, 24),) * 3  # in the corners the weight of the inference path is near zero
    wanted = torch.where(best >= 0, label + 1, 0)
    assert 0 < int((wanted > 0).sum()) < wanted.numel()
    found = inference_path(network, task, image, PATCH)
    assert float((found[middle] == wanted[middle]).float().mean()) > 0.999
    del passes[:]
    masks = evaluation_loop(network, task, image, PATCH)
    assert float((masks == (logits >= 0)).float().mean()) > 0.999
    assert len(passes) == 8


def test_a_window_at_the_border_runs_twice_on_every_axis_in_the_evaluation_loop(
    network: LiteralNetwork, passes: list[int]
) -> None:
    task, image = tokens(), torch.randn(64, 32, 32)
    inference_path(network, task, image, PATCH)
    assert len(passes) == 3
    del passes[:]
    evaluation_loop(network, task, image, PATCH)
    assert len(passes) == 4 * 2 * 2
