"""Task encoder: reference features and masks become the tokens of a task.

Works on a flat list of P valid (episode, class) pairs; a class never sees another one here.
What does not depend on the class is computed once per reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iris_cli.network.attention import CrossAttention, FeedForward, SelfAttention
from iris_cli.network.blocks import fold, norm_relu, unfold
from iris_cli.network.config import POSITION_VOLUME_SIZE, ForegroundToken, NetworkConfig

MAP_NORM_EPS = 1e-5
TOKEN_BLOCKS = 2


@dataclass(frozen=True)
class MaskPairs:
    """The masks of P (episode, class) pairs, and what all stages need of them.

    masks: (P, Z, Y, X) float32. episode: (P,) index of each mask's reference in the batch.
    normed: (P, F, z, y, x), the mask as the network sees it (folded by the stem into F channels
    for `stem: half`, F = 1 otherwise) after its norm and ReLU. Without context tokens: None.
    """

    masks: Tensor
    episode: Tensor
    normed: Tensor | None

    @classmethod
    def build(cls, masks: Tensor, valid: Tensor, config: NetworkConfig) -> MaskPairs:
        """masks: (B, K, Z, Y, X) bool or number in [0, 1]; valid: (B, K) bool."""
        episode = valid.nonzero()[:, 0]
        chosen = masks[valid].float()
        normed = None
        if config.context_tokens:
            normed = _norm_relu_mask(fold(chosen[:, None], config.fold))
        return cls(chosen, episode, normed)


def _norm_relu_mask(masks: Tensor) -> Tensor:
    """InstanceNorm and ReLU of masks in [0, 1]: (P, F, z, y, x) float32.

    For a binary mask with foreground share p this is the mask times (1-p)/sqrt(p(1-p)+eps):
    nothing is left of an empty mask, nor of one that fills the crop.
    """
    share = masks.mean(dim=(2, 3, 4), keepdim=True)
    if bool(((masks == 0) | (masks == 1)).all()):
        return masks * ((1 - share) / torch.sqrt(share * (1 - share) + MAP_NORM_EPS))
    return norm_relu(masks, MAP_NORM_EPS)


def pool_foreground(features: Tensor, pairs: MaskPairs, variant: ForegroundToken) -> Tensor:
    """Mean of the up-sampled features under each mask: features (B, C, d, h, w) -> (P, C) fp32.

    <upsample(F), y> = <F, upsample^T(y)>: the mask goes down by the transposed interpolation
    and the features are never up-sampled. Sums of less than one voxel divide by 1.
    """
    masks, size = pairs.masks, features.shape[2:]
    with torch.autocast(features.device.type, enabled=False):
        if variant is ForegroundToken.FULL:
            weights = _upsample_transposed(masks, size)
        elif variant is ForegroundToken.NEAREST:
            weights = _nearest_at_centres(masks, size)
        else:
            weights = F.adaptive_avg_pool3d(masks[:, None], size)[:, 0]
        flat = weights.flatten(1)
        total = masks.sum(dim=(1, 2, 3)) if variant is ForegroundToken.FULL else flat.sum(1)
        per_pair = features.float().flatten(2)[pairs.episode]
        pooled = torch.bmm(per_pair, flat[:, :, None])[:, :, 0]
        return pooled / total.clamp(min=1)[:, None]


def _upsample_transposed(masks: Tensor, size: torch.Size) -> Tensor:
    """Transpose of trilinear up-sampling (align_corners): (P, Z, Y, X) -> (P, d, h, w)."""
    matrix = [
        _linear_matrix(n, m, masks.device) for n, m in zip(masks.shape[1:], size, strict=True)
    ]
    z, y, x = matrix
    rows = y.T @ (masks @ x)
    return (z.T @ rows.flatten(2)).unflatten(2, rows.shape[2:])


def _linear_matrix(n: int, m: int, device: torch.device) -> Tensor:
    """1-D linear interpolation (align_corners) from m to n points as a matrix (n, m)."""
    identity = torch.eye(m, device=device)[None]
    return F.interpolate(identity, size=n, mode="linear", align_corners=True)[0].T


def _nearest_at_centres(masks: Tensor, size: torch.Size) -> Tensor:
    """The mask at the middle voxel of each coarse cell: (P, Z, Y, X) -> (P, d, h, w)."""
    steps = [n // m for n, m in zip(masks.shape[1:], size, strict=True)]
    z, y, x = steps
    return masks[:, z // 2 :: z, y // 2 :: y, x // 2 :: x]


class PositionVolume(nn.Module):
    """A learned volume added to the merged map, read from its corner (released weights only)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(1, 1, size, size, size))
        nn.init.normal_(self.embedding)

    def forward(self, size: torch.Size) -> Tensor:
        """The corner of the given size: (1, 1, z, y, x)."""
        return self.embedding[:, :, : size[0], : size[1], : size[2]]


class TokenBlock(nn.Module):
    """One round of tokens reading each other and the map of their class."""

    def __init__(self, channels: int, heads: int, *, with_map: bool) -> None:
        super().__init__()
        self.query_attn_block_1 = SelfAttention(channels, heads)
        self.query_ffn_1 = FeedForward(channels)
        if with_map:
            self.query_aggregate_block = CrossAttention(channels, heads)
            self.query_aggregate_ffn = FeedForward(channels)
        self.query_attn_block_2 = SelfAttention(channels, heads)
        self.query_ffn_2 = FeedForward(channels)

    def forward(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        """tokens: (P, M, C), context: (P, N, C) -> tokens (P, M, C)."""
        tokens = tokens + self.query_attn_block_1(tokens)
        tokens = tokens + self.query_ffn_1(tokens)
        if context is not None:
            tokens = tokens + self.query_aggregate_block(tokens, context)
            tokens = tokens + self.query_aggregate_ffn(tokens)
        tokens = tokens + self.query_attn_block_2(tokens)
        return tokens + self.query_ffn_2(tokens)  # type: ignore[no-any-return]


class TaskEncoder(nn.Module):
    """Task tokens of one stage."""

    def __init__(self, config: NetworkConfig, stage: int) -> None:
        super().__init__()
        c, heads = config.stage_channels(stage), config.stage_heads(stage)
        self.stride = config.stage_stride(stage)
        self.foreground = config.foreground_token
        if self.foreground is not ForegroundToken.NONE:
            self.norm_foreground = nn.LayerNorm(c)
        self.with_context = config.context_tokens
        if self.with_context:
            self._build_context(config, c)
        self.norm_combined = nn.LayerNorm(c)
        self.norm_post = nn.LayerNorm(c)
        self.attn_layers = nn.ModuleList(
            TokenBlock(c, heads, with_map=self.with_context) for _ in range(TOKEN_BLOCKS)
        )

    def _build_context(self, config: NetworkConfig, c: int) -> None:
        cells = self.stride**3
        mask_channels = config.fold**3
        self.task_query = nn.Parameter(torch.empty(config.queries, c))
        nn.init.xavier_uniform_(self.task_query)
        self.norm_query = nn.LayerNorm(c)
        self.expand = _after_norm_relu(nn.Conv3d(c, cells, 1))
        self.merge = _after_norm_relu(nn.Conv3d(1 + mask_channels, 1, 3, padding=1))
        self.squeeze = _after_norm_relu(nn.Conv3d(cells, c, 1))
        self.pos_embed = (
            PositionVolume(POSITION_VOLUME_SIZE // config.fold) if config.position_volume else None
        )

    def forward(self, features: Tensor, pairs: MaskPairs) -> Tensor:
        """features: (B, C, d, h, w) of this stage -> tokens (P, M, C)."""
        rows, context = [], None
        if self.with_context:
            context = self.context_map(features, pairs).flatten(2).transpose(1, 2)
            queries = self.norm_query(self.task_query)
            rows.append(queries.expand(len(pairs.episode), -1, -1))
        if self.foreground is not ForegroundToken.NONE:
            pooled = pool_foreground(features, pairs, self.foreground)
            rows.append(self.norm_foreground(pooled)[:, None])
        tokens = self.norm_combined(torch.cat(rows, dim=1))
        for block in self.attn_layers:
            tokens = block(tokens, context)
        return self.norm_post(tokens)  # type: ignore[no-any-return]

    def context_map(self, features: Tensor, pairs: MaskPairs) -> Tensor:
        """The reference as seen through each mask: (B, C, d, h, w) -> (P, C, d, h, w)."""
        merged = self.merge_masks(self.full_resolution_map(features), pairs)
        squeezed = self.squeeze[2](norm_relu(fold(merged, self.stride), MAP_NORM_EPS))
        return squeezed + features[pairs.episode]  # type: ignore[no-any-return]

    def full_resolution_map(self, features: Tensor) -> Tensor:
        """One channel at the resolution of the network: (B, C, d, h, w) -> (B, 1, z, y, x)."""
        return unfold(self.expand[2](norm_relu(features, MAP_NORM_EPS)), self.stride)

    def merge_masks(self, full: Tensor, pairs: MaskPairs) -> Tensor:
        """Convolve map and mask together: full (B, 1, z, y, x) -> (P, 1, z, y, x).

        The norm is per channel, so the convolution of their concatenation is the sum of two:
        one per reference, one per mask.
        """
        assert pairs.normed is not None
        weight, bias = self.merge[2].weight, self.merge[2].bias
        of_image = F.conv3d(norm_relu(full, MAP_NORM_EPS), weight[:, :1], bias, padding=1)
        if self.pos_embed is not None:
            of_image = of_image + self.pos_embed(full.shape[2:])
        return of_image[pairs.episode] + F.conv3d(pairs.normed, weight[:, 1:], padding=1)


def _after_norm_relu(conv: nn.Conv3d) -> nn.Sequential:
    """Holder of the name `<part>.2`; norm and ReLU run through `norm_relu`."""
    return nn.Sequential(nn.Identity(), nn.Identity(), conv)
