"""How long a training step takes: the operations it needs, over what this machine does of them."""

from __future__ import annotations

import time
from functools import cache
from statistics import median

import torch

from iris_cli.planning.step_memory import peak_of_step
from iris_cli.planning.step_shape import Device, StepShape

# A convolution like most of those in the network.
CHANNELS, EDGE, KERNEL = 32, 32, 3
ROUNDS = 5
# Norms, attention of few tokens and the optimiser count few operations and take their time.
BESIDE_CONVOLUTIONS = 1.5


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
    work = parts * peak_of_step(step).operations
    return BESIDE_CONVOLUTIONS * work / operations_per_second(step.device)
