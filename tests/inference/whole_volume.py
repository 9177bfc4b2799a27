"""The plain way from windows to labels: every logit of the volume at once.

What the streaming engine is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from iris_cli.inference.windows import gaussian_weight, window_starts
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.task.crops import Shape3, cut


def predict_logits(
    network: IrisNetwork,
    tokens: Sequence[Tensor],
    image: np.ndarray,
    fill: float,
    patch: Shape3,
    *,
    groups: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """(K, Z, Y, X) float32: all windows, weighted, added up and divided by the weights."""
    weight = torch.from_numpy(gaussian_weight(patch))
    padded = [max(n, p) for n, p in zip(image.shape, patch, strict=True)]
    total = torch.zeros((tokens[0].shape[0], *padded))
    weights = torch.zeros(padded)
    before = [max(0, (p - n) // 2) for n, p in zip(image.shape, patch, strict=True)]
    with torch.inference_mode():
        for start in window_starts(image.shape, patch):
            crop = torch.from_numpy(cut(image, start, patch, fill))[None, None]
            features = network.encode_image(crop)
            z, y, x = (
                slice(s + b, s + b + p) for s, b, p in zip(start, before, patch, strict=True)
            )
            for group in groups or [range(tokens[0].shape[0])]:
                logits = network.decode(features, [stage[list(group)][None] for stage in tokens])[0]
                for row, index in enumerate(group):
                    total[index, z, y, x] += logits[row] * weight
            weights[z, y, x] += weight
    z, y, x = (slice(b, b + n) for b, n in zip(before, image.shape, strict=True))
    return (total / weights)[:, z, y, x]


def decide(logits: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Arg-max over background 0 and classes; ties to the lower value."""
    order = np.argsort(values)
    scores = np.concatenate([np.zeros((1, *logits.shape[1:])), logits[order]])
    return np.asarray(np.array([0, *np.sort(values)])[scores.argmax(axis=0)])
