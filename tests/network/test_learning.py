"""Trained from scratch, the network asks the reference what to segment."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork

EDGE = 32
STEPS = 160


def _ball(generator: torch.Generator) -> Tensor:
    grid = torch.stack(torch.meshgrid(*[torch.arange(EDGE)] * 3, indexing="ij"))
    centre = torch.randint(7, EDGE - 7, (3, 1, 1, 1), generator=generator)
    return ((grid - centre) ** 2).sum(0) < torch.randint(16, 40, (), generator=generator)


def _pair(brightness: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two balls in noise: image (1, Z, Y, X), masks (2, Z, Y, X). Only brightness tells which."""
    first, second = _ball(generator), _ball(generator)
    second &= ~first
    masks = torch.stack([first, second])
    noise = 0.3 * torch.randn(EDGE, EDGE, EDGE, generator=generator)
    return (noise + (masks * brightness[:, None, None, None]).sum(0))[None], masks


def _batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    items = []
    for _ in range(4):
        brightness = torch.tensor([1.0, 2.5])[torch.randperm(2, generator=generator)]
        items.append((*_pair(brightness, generator), *_pair(brightness, generator)))
    query, truth, reference, masks = (torch.stack(part) for part in zip(*items, strict=True))
    return query, truth.float(), reference, masks


def _step(network: IrisNetwork, generator: torch.Generator) -> tuple[Tensor, float]:
    query, truth, reference, masks = _batch(generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = network.encode_image(torch.cat([query, reference]))
        tokens = network.encode_task([f[4:] for f in features], masks)
        logits = network.decode([f[:4] for f in features], tokens)
    p, axes = logits.sigmoid(), (2, 3, 4)
    dice = ((2 * (p * truth).sum(axes) + 1) / (p.sum(axes) + truth.sum(axes) + 1)).mean()
    loss = 1 - dice + F.binary_cross_entropy_with_logits(logits, truth)
    return loss, float(dice.detach())


@pytest.mark.slow
def test_training_from_scratch_learns_to_tell_classes_apart() -> None:
    torch.manual_seed(0)
    network = IrisNetwork(NetworkConfig(channels=(16, 32, 32, 64, 64), blocks=(1, 1, 1, 1)))
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    generator, dice = torch.Generator().manual_seed(0), []
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 50)
        loss, value = _step(network, generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        dice.append(value)
    # One answer for both classes cannot get beyond 0.65.
    assert sum(dice[-20:]) / 20 > 0.8
