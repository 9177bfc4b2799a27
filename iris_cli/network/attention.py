"""Pre-normalised attention and MLP, the two steps all token blocks are made of.

Parameter names follow the released weights: `norm`, `norm1`, `norm2`, `fn.mha`, `fn.fc1`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from iris_cli.network.kernels.rows import feed_forward, linear, pays

SELF_NORM_EPS = 1e-4
CROSS_NORM_EPS = 1e-5
MLP_RATIO = 4


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with packed projections, as `nn.MultiheadAttention`.

    Written out because keys and values are always the same tensor here, and masks are per key.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        packed = nn.Linear(channels, 3 * channels)
        self.in_proj_weight = packed.weight
        self.in_proj_bias = packed.bias
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries: Tensor, keys: Tensor, key_valid: Tensor | None = None) -> Tensor:
        """queries: (B, N, C), keys: (B, L, C), key_valid: (B, L) bool or None -> (B, N, C).

        At least one key of every item must be valid.
        """
        c = queries.shape[-1]
        if queries is keys:
            q, k, v = linear(queries, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            q = linear(queries, self.in_proj_weight[:c], self.in_proj_bias[:c])
            k, v = linear(keys, self.in_proj_weight[c:], self.in_proj_bias[c:]).chunk(2, -1)
        mask = None if key_valid is None else key_valid[:, None, None, :]
        mixed = F.scaled_dot_product_attention(
            self._split(q), self._split(k), self._split(v), attn_mask=mask
        )
        joined = mixed.transpose(1, 2).flatten(2)
        return linear(joined, self.out_proj.weight, self.out_proj.bias)

    def _split(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        return x.reshape(b, n, self.heads, c // self.heads).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, channels_in: int, hidden: int, channels_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels_in, hidden)
        self.fc2 = nn.Linear(hidden, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., C_in) -> (..., C_out)."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Holder of the name `mha`."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.mha = MultiHeadAttention(channels, heads)


class SelfAttention(nn.Module):
    """The change of x by attention over itself: SelfAttn(LN(x))."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=SELF_NORM_EPS)
        self.fn = _Attention(channels, heads)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x: (B, N, C), valid: (B, N) bool -> (B, N, C)."""
        normed = self.norm(x)
        return self.fn.mha(normed, normed, valid)  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """The change of x by attention over y: CrossAttn(q=LN1(x), k=v=LN2(y))."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=CROSS_NORM_EPS)
        self.norm2 = nn.LayerNorm(channels, eps=CROSS_NORM_EPS)
        self.fn = _Attention(channels, heads)

    def forward(self, x: Tensor, y: Tensor, y_valid: Tensor | None = None) -> Tensor:
        """x: (B, N, C), y: (B, L, C), y_valid: (B, L) bool -> (B, N, C)."""
        return self.fn.mha(self.norm1(x), self.norm2(y), y_valid)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """The change of x by an MLP: MLP(LN(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=SELF_NORM_EPS)
        self.fn = Mlp(channels, MLP_RATIO * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, C) -> (B, N, C)."""
        if pays(x):
            return feed_forward(self, x)
        return self.fn(self.norm(x))  # type: ignore[no-any-return]
