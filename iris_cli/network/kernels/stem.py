"""The first convolution of the encoder, from one or a few channels, in inference on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from iris_cli.network.kernels.residual_stack import compute_type
from iris_cli.network.kernels.slices import slabs


def run_stem(image: Tensor, weight: Tensor) -> Tensor:
    """Convolution of an odd kernel that keeps the grid; the result is channels-last.

    image: (B, C_in, Z, Y, X), weight: (C_out, C_in, k, k, k) -> (B, C_out, Z, Y, X).
    The k slices a slice of the output reads become k channels of a plane convolution: torch has no
    fast convolution in space for so few channels, and the plane one is three times faster.
    """
    kind = compute_type(image)
    b, _, depth, y, x = image.shape
    width, half = weight.shape[0], weight.shape[-1] // 2
    size, last = (b * depth, width, y, x), torch.channels_last
    out = torch.empty(size, dtype=kind, memory_format=last)
    kernel = weight.detach().transpose(1, 2).flatten(1, 2).to(kind, memory_format=last)
    with torch.autocast("cpu", enabled=False):
        for i, volume in enumerate(image):
            slices = F.pad(volume.transpose(0, 1), (0, 0, 0, 0, 0, 0, half, half)).to(kind)
            for low, high in slabs(depth, out[0].nbytes, 1):
                read = [slices[low + k : high + k] for k in range(weight.shape[-1])]
                joined = torch.cat(read, dim=1).contiguous(memory_format=last)
                out[i * depth + low : i * depth + high] = F.conv2d(joined, kernel, padding=half)
    return out.permute(0, 2, 3, 1).view(b, depth, y, x, width).permute(0, 4, 1, 2, 3)
