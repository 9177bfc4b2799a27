"""Attention of few tokens over a large map whose voxels are never projected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from iris_cli.network.attention import CrossAttention


def absorbed_attention(block: CrossAttention, tokens: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """`block(tokens, maps)`, the projections of keys and values moved to the side of the tokens.

    tokens: (P, M, C); maps: P of (N, C), normalised per voxel (LayerNorm without weights), which
    all blocks share. returns (P, M, C).

    <W_q t, W_k x> = <W_k^T W_q t, x>, and the mean of W_v x is W_v of the mean of x. The bias of
    the keys, and of the LayerNorm before them, adds the same to every voxel's score and so drops
    out of the softmax; biases of values are added whole because the weights sum to one.
    Saves work while M * heads < C + M: for a map of one class, with up to 31 tokens.
    """
    (p, m, c), attend = tokens.shape, block.fn.mha
    heads, width = attend.heads, c // attend.heads
    w_q, w_k, w_v = attend.in_proj_weight.chunk(3)
    b_q, _, b_v = attend.in_proj_bias.chunk(3)
    q = F.linear(block.norm1(tokens), w_q, b_q).reshape(p, m, heads, width)
    probes = torch.einsum("pmhd,hdc->phmc", q, w_k.reshape(heads, width, c))
    probes = (probes * (block.norm2.weight * width**-0.5)).flatten(1, 2)
    means = torch.stack(
        [(u @ x.T).float().softmax(-1) @ x for u, x in zip(probes, maps, strict=True)]
    )
    means = means.reshape(p, heads, m, c) * block.norm2.weight + block.norm2.bias
    v = torch.einsum("phmc,hdc->pmhd", means, w_v.reshape(heads, width, c))
    return attend.out_proj(v.flatten(2) + b_v)  # type: ignore[no-any-return]
