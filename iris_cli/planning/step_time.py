"""How long a training step takes: the operations it needs, over what this machine does of them."""

from __future__ import annotations

import time
from functools import cache
from statistics import median

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from iris_cli.network.iris_network import IrisNetwork
from iris_cli.planning.step_memory import fake_batch
from iris_cli.planning.step_shape import Device, StepShape
from iris_cli.training.loss import episode_loss
from iris_cli.training.step import EpisodeNetwork

# A convolution like most of those in the network.
CHANNELS, EDGE, KERNEL = 32, 32, 3
ROUNDS = 5
# Norms, attention of few tokens and the optimiser count few operations and take their time.
BESIDE_CONVOLUTIONS = 1.5


@cache
def operations_of_step(step: StepShape) -> int:
    """Floating point operations of forward and backward pass of a part of a step, counted on
    tensors without memory."""
    with FakeTensorMode():
        model = EpisodeNetwork(IrisNetwork(step.network), recompute=step.recompute)
        batch = fake_batch(step)
        with FlopCounterMode(display=False) as counter:
            logits, _ = model(batch)
            loss = episode_loss(
                logits, batch.query_masks, batch.counted, batch.loss_valid, batch.decoy
            )
            loss.sum.backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


@cache
def operations_per_second(device: Device) -> float:
    """What this machine does of a small convolution, forwards and backwards; half a second."""
    image = torch.randn(2, CHANNELS, EDGE, EDGE, EDGE, device=device, requires_grad=True)
    layer = torch.nn.Conv3d(CHANNELS, CHANNELS, KERNEL, padding=1).to(device)
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        layer(image).sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    forward = 2 * len(image) * CHANNELS**2 * KERNEL**3 * EDGE**3
    return 3 * forward / median(taken)


def seconds_per_step(step: StepShape, parts: int) -> float:
    """Seconds of a step that consists of so many parts of this shape, on this machine."""
    work = parts * operations_of_step(step)
    return BESIDE_CONVOLUTIONS * work / operations_per_second(step.device)
