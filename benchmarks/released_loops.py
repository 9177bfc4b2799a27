"""The sliding windows of the published code, with the literal network: sums of all classes over the
whole volume, and a decision at the end.

- `inference_path`: every window once, probabilities weighted by a Gaussian without a floor.
- `evaluation_loop`: floor(size / step) positions per axis, the last ones moved inside, so that the
  window at the border runs twice on every axis; probabilities averaged evenly.

Both decode all classes in one pass. source: NETWORK.md section 7, NETWORK-COST.md section 12.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.literal_network import LiteralNetwork
from iris_cli.inference.windows import gaussian_weight

Shape3 = tuple[int, int, int]
SMALLEST_WEIGHT = 1e-8
THRESHOLD = 0.5


def inference_path(
    network: LiteralNetwork, tokens: Sequence[Tensor], image: Tensor, patch: Shape3
) -> Tensor:
    """Labels (Z, Y, X), 1 + index of the class, of an image of the same shape.

    tokens: (K, M, C) per stage. patch: not larger than the image.
    """
    axes = [
        sorted({*range(0, n - size, size // 2), n - size})
        for n, size in zip(image.shape, patch, strict=True)
    ]
    weight = torch.from_numpy(gaussian_weight(patch, floor=0.0))
    sums, weights = _summed(network, tokens, image, patch, itertools.product(*axes), weight)
    probability = sums / weights.clamp_min(SMALLEST_WEIGHT)
    best, label = probability.max(dim=0)
    return torch.where(best >= THRESHOLD, label + 1, 0)


def evaluation_loop(
    network: LiteralNetwork, tokens: Sequence[Tensor], image: Tensor, patch: Shape3
) -> Tensor:
    """Masks (K, Z, Y, X), which may overlap; otherwise as `inference_path`."""
    axes = [
        [min(i * (size // 2), n - size) for i in range(n // (size // 2))]
        for n, size in zip(image.shape, patch, strict=True)
    ]
    starts = itertools.product(*axes)
    sums, weights = _summed(network, tokens, image, patch, starts, torch.ones(patch))
    return sums / weights >= THRESHOLD


def _summed(
    network: LiteralNetwork,
    tokens: Sequence[Tensor],
    image: Tensor,
    patch: Shape3,
    starts: Iterator[tuple[int, ...]],
    weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """Weighted probabilities (K, Z, Y, X) and weights (Z, Y, X), summed over the windows."""
    sums = torch.zeros(tokens[0].shape[0], *image.shape)
    weights = torch.zeros(image.shape)
    batch = [stage[None] for stage in tokens]
    with torch.inference_mode():
        for start in starts:
            part = tuple(slice(a, a + n) for a, n in zip(start, patch, strict=True))
            logits = network.decode(network.encoder(image[part][None, None]), batch)
            sums[(slice(None), *part)] += torch.sigmoid(logits[0]) * weight
            weights[part] += weight
    return sums, weights
