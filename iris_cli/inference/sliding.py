"""The network over all windows of a volume: blended logits on the working grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iris_cli.inference.windows import gaussian_weight, window_starts
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.task.crops import Shape3, cut


def predict_logits(
    network: IrisNetwork,
    tokens: Sequence[Tensor],
    image: npt.NDArray[np.float32],
    fill: float,
    patch: Shape3,
    *,
    device: torch.device | str = "cpu",
    groups: Sequence[Sequence[int]] | None = None,
    keep: Sequence[int] | None = None,
    window_batch: int = 1,
    on_window: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Logits of a task for a whole volume.

    tokens: (K, M, C) per stage. image: (Z, Y, X) float32, normalised, on the working grid; `fill`
        stands outside of it.
    groups: indices of the classes that are decoded together, default all in one. keep: indices of
        the classes to return, in that order, default all; a group runs whole or not at all, so
        dropping classes changes no logit of the others.
    window_batch: windows in one pass. on_window: called with (done, total).
    returns: (len(keep), Z, Y, X) float32 on `device`, blended with `gaussian_weight`.
    """
    kept = list(range(tokens[0].shape[0])) if keep is None else list(keep)
    rows = {index: row for row, index in enumerate(kept)}
    wanted = [list(group) for group in groups or [range(tokens[0].shape[0])] if rows.keys() & group]
    starts = window_starts(image.shape, patch)
    weight = torch.from_numpy(gaussian_weight(patch)).to(device)
    total = torch.zeros((len(kept), *image.shape), device=device)
    weights = torch.zeros(image.shape, device=device)
    network = network.to(device).eval()
    tokens = [stage.to(device) for stage in tokens]
    with torch.inference_mode():
        for first in range(0, len(starts), window_batch):
            batch = starts[first : first + window_batch]
            crops = np.stack([cut(image, start, patch, fill) for start in batch])[:, None]
            features = network.encode_image(torch.from_numpy(crops).to(device))
            for group in wanted:
                expanded = [stage[group].expand(len(batch), -1, -1, -1) for stage in tokens]
                logits = network.decode(features, expanded)
                for position, index in enumerate(group):
                    if index in rows:
                        _blend(total[rows[index]], logits[:, position], weight, batch)
            for start in batch:
                inside, seen = _overlap(start, patch, image.shape)
                weights[inside] += weight[seen]
            if on_window is not None:
                on_window(first + len(batch), len(starts))
        return total.div_(weights)


def _blend(total: Tensor, windows: Tensor, weight: Tensor, starts: Sequence[Shape3]) -> None:
    """Add the weighted windows (B, Z, Y, X) of one class to its volume; no copy of a window."""
    patch = _shape3(weight.shape)
    for start, window in zip(starts, windows, strict=True):
        inside, seen = _overlap(start, patch, total.shape)
        total[inside].addcmul_(window[seen].float(), weight[seen])


def _shape3(shape: Sequence[int]) -> Shape3:
    z, y, x = shape
    return z, y, x


def _overlap(
    start: Shape3, patch: Shape3, shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a window lies in the volume, and which part of the window that is."""
    inside, seen = [], []
    for first, size, length in zip(start, patch, shape, strict=True):
        low, high = max(first, 0), min(first + size, length)
        inside.append(slice(low, high))
        seen.append(slice(low - first, high - first))
    return tuple(inside), tuple(seen)
