"""Linear layers over many rows (voxels of a map, or tokens of many classes), on a CPU in fp32.

Rows of channels are a channels-last map of one line, and a linear layer is its 1x1 convolution:
oneDNN computes that up to twice as fast as the matrix product torch takes. The MLP runs a few rows
at a time, so that what lies between its layers stays in the cache and never exists as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from iris_cli.network.kernels.residual_stack import compute_type, serves

if TYPE_CHECKING:
    from iris_cli.network.attention import FeedForward

ROWS_AT_ONCE = 1024
# Of fewer ones the product is the faster form.
FEWEST_ROWS = 128


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear`: x: (..., C_in), weight: (C_out, C_in), bias: (C_out,) -> (..., C_out)."""
    if not pays(x):
        return F.linear(x, weight, bias)
    line = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    one = (1, 1)
    out = torch.mkldnn_convolution(line, weight[:, :, None, None], bias, (0, 0), one, one, 1)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def feed_forward(block: FeedForward, x: Tensor) -> Tensor:
    """`block(x)`, a few rows at a time: (B, N, C) -> (B, N, C)."""
    rows = x.reshape(-1, x.shape[-1])
    out, mlp = torch.empty_like(rows), block.fn
    for low in range(0, len(rows), ROWS_AT_ONCE):
        some = slice(low, low + ROWS_AT_ONCE)
        inner = F.gelu(linear(block.norm(rows[some]), mlp.fc1.weight, mlp.fc1.bias))
        out[some] = linear(inner, mlp.fc2.weight, mlp.fc2.bias)
    return out.view(x.shape)


def pays(x: Tensor) -> bool:
    """Whether linear layers over x are computed here: many rows, no gradient, a CPU, fp32."""
    onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    full = x.dtype is torch.float32 and compute_type(x) is torch.float32
    return onednn and serves(x) and full and x.numel() >= FEWEST_ROWS * x.shape[-1]
