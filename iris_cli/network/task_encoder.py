"""Task encoder: reference features and masks become the tokens of a task.

Works on a flat list of P valid (episode, class) pairs; a class never sees another one here.
What does not depend on the class is computed once per reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iris_cli.network.attention import CrossAttention, FeedForward, SelfAttention
from iris_cli.network.blocks import fold, linear_matrix, norm_relu, unfold
from iris_cli.network.config import POSITION_VOLUME_SIZE, ForegroundToken, NetworkConfig
from iris_cli.network.recompute import run

MAP_NORM_EPS = 1e-5
TOKEN_BLOCKS = 2


@dataclass(frozen=True)
class MaskPairs:
    """The masks of the P valid (episode, class) pairs.

    masks: (P, Z, Y, X) float32. episode: (P,) index of each mask's reference in the batch.
    """

    masks: Tensor
    episode: Tensor

    @classmethod
    def select(cls, masks: Tensor, valid: Tensor) -> MaskPairs:
        """masks: (B, K, Z, Y, X) bool or number in [0, 1]; valid: (B, K) bool."""
        return cls(masks[valid].float(), valid.nonzero()[:, 0])


def pool_foreground(features: Tensor, pairs: MaskPairs, variant: ForegroundToken) -> Tensor:
    """Mean of the features under each mask: (B, C, d, h, w) -> (P, C) float32.

    FULL: of the up-sampled features. <upsample(F), y> = <F, upsample^T(y)>: the mask goes down
    by the transposed interpolation and the features are never up-sampled.
    A mask of less than one voxel in all divides by 1.
    """
    masks, size = pairs.masks, features.shape[2:]
    steps = [n // m for n, m in zip(masks.shape[1:], size, strict=True)]
    with torch.autocast(features.device.type, enabled=False):
        if variant is ForegroundToken.FULL:
            weights = _upsample_transposed(masks, size)
        elif variant is ForegroundToken.NEAREST:
            z, y, x = steps
            weights = masks[:, z // 2 :: z, y // 2 :: y, x // 2 :: x]
        else:
            weights = F.avg_pool3d(masks[:, None], steps)[:, 0]
        flat = weights.flatten(1)
        per_pair = features.float().flatten(2)[pairs.episode]
        pooled = torch.bmm(per_pair, flat[:, :, None])[:, :, 0]
        return pooled / flat.sum(1).clamp(min=1)[:, None]


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


class NormReluThen(nn.Sequential):
    """Holder of the name `<part>.2`: norm and ReLU run through `norm_relu`, then `conv`."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__(nn.Identity(), nn.Identity(), conv)

    @property
    def conv(self) -> nn.Conv3d:
        """The convolution."""
        return cast(nn.Conv3d, self[2])


class StageEncoder(nn.Module):
    """Task tokens of one stage."""

    def __init__(self, config: NetworkConfig, stage: int) -> None:
        super().__init__()
        c, heads = config.stage_channels(stage), config.stage_heads(stage)
        self.stride = config.stage_stride(stage)
        self.foreground = config.foreground_token
        self.foreground_norm = config.foreground_norm
        if self.foreground is not ForegroundToken.NONE:
            self.norm_foreground = nn.LayerNorm(c)
        if config.context_tokens:
            self._build_context(config, c)
        self.norm_combined = nn.LayerNorm(c)
        self.norm_post = nn.LayerNorm(c)
        self.attn_layers = nn.ModuleList(
            TokenBlock(c, heads, with_map=config.context_tokens) for _ in range(TOKEN_BLOCKS)
        )

    def _build_context(self, config: NetworkConfig, c: int) -> None:
        cells, mask_channels = self.stride**3, config.fold**3
        self.task_query = nn.Parameter(nn.init.xavier_uniform_(torch.empty(config.queries, c)))
        self.norm_query = nn.LayerNorm(c)
        self.expand = NormReluThen(nn.Conv3d(c, cells, 1))
        self.merge = NormReluThen(nn.Conv3d(1 + mask_channels, 1, 3, padding=1))
        self.squeeze = NormReluThen(nn.Conv3d(cells, c, 1))
        self.pos_embed = (
            PositionVolume(POSITION_VOLUME_SIZE // config.fold) if config.position_volume else None
        )

    def forward(self, features: Tensor, pairs: MaskPairs, of_masks: Tensor | None) -> Tensor:
        """features: (B, C, d, h, w), of_masks: as `context_map` -> tokens (P, M, C)."""
        rows, context = [], None
        if of_masks is not None:
            context_map = self.context_map(features, pairs.episode, of_masks)
            context = context_map.flatten(2).transpose(1, 2)
            queries = self.norm_query(self.task_query)
            rows.append(queries.expand(len(pairs.episode), -1, -1))
        if self.foreground is not ForegroundToken.NONE:
            pooled = self._pool_foreground(features, pairs)
            rows.append(self.norm_foreground(pooled)[:, None])
        tokens = self.norm_combined(torch.cat(rows, dim=1))
        for block in self.attn_layers:
            tokens = block(tokens, context)
        return self.norm_post(tokens)  # type: ignore[no-any-return]

    def _pool_foreground(self, features: Tensor, pairs: MaskPairs) -> Tensor:
        if self.foreground_norm:
            features = F.group_norm(features.float(), features.shape[1], eps=MAP_NORM_EPS)
        return pool_foreground(features, pairs, self.foreground)

    def context_map(self, features: Tensor, episode: Tensor, of_masks: Tensor) -> Tensor:
        """The reference as seen through each mask.

        features: (B, C, d, h, w); episode: (P,); of_masks: (P, 1, z, y, x), this stage's merging
        convolution of the masks alone -> (P, C, d, h, w).
        """
        merged = self.merge_image(self.full_resolution_map(features))[episode] + of_masks
        squeezed = self.squeeze.conv(norm_relu(fold(merged, self.stride), MAP_NORM_EPS))
        return squeezed + features[episode]  # type: ignore[no-any-return]

    def full_resolution_map(self, features: Tensor) -> Tensor:
        """One channel at the resolution of the network: (B, C, d, h, w) -> (B, 1, z, y, x)."""
        return unfold(self.expand.conv(norm_relu(features, MAP_NORM_EPS)), self.stride)

    def merge_image(self, full: Tensor) -> Tensor:
        """The part of the merging convolution that all masks share: (B, 1, z, y, x), same."""
        conv = self.merge.conv
        merged = F.conv3d(norm_relu(full, MAP_NORM_EPS), conv.weight[:, :1], conv.bias, padding=1)
        return merged if self.pos_embed is None else merged + self.pos_embed(full.shape[2:])


class TaskEncoder(nn.ModuleList):
    """Task tokens of all stages, the deepest first."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(StageEncoder(config, stage) for stage in range(config.stages))
        self.config = config

    def forward(
        self, features: Sequence[Tensor], masks: Tensor, valid: Tensor, *, recompute: bool = False
    ) -> list[Tensor]:
        """features: deepest first; masks: (B, K, Z, Y, X); valid: (B, K) bool.

        returns: per stage (B, K, M, C_i) float32, zero for pairs that are not valid.
        """
        pairs = MaskPairs.select(masks, valid)
        shapes = [(*valid.shape, self.config.tokens, f.shape[1]) for f in features[: len(self)]]
        tokens = [torch.zeros(shape, device=masks.device) for shape in shapes]
        if len(pairs.episode) == 0:
            return tokens
        of_masks = self.merge_masks(pairs)
        for i, encode in enumerate(self):
            part = None if of_masks is None else of_masks[:, i : i + 1]
            found = run(encode, features[i], pairs, part, recompute=recompute)
            tokens[i] = tokens[i].index_put((valid,), found.float())
        return tokens

    def merge_masks(self, pairs: MaskPairs) -> Tensor | None:
        """The mask's part of every stage's merging convolution at once: (P, stages, z, y, x).

        The norm before that convolution is per channel, so convolving [image, mask] is the sum of
        two convolutions; the image's is shared by its masks, the mask's input by the stages.
        """
        if not self.config.context_tokens:
            return None
        normed = _norm_relu_mask(fold(pairs.masks[:, None], self.config.fold))
        weights = [cast(StageEncoder, stage).merge.conv.weight[:, 1:] for stage in self]
        return F.conv3d(normed, torch.cat(weights), padding=1)


def _norm_relu_mask(masks: Tensor) -> Tensor:
    """InstanceNorm and ReLU of masks in [0, 1]: (P, F, z, y, x) float32.

    For a binary mask with foreground share p this is the mask times (1-p)/sqrt(p(1-p)+eps):
    nothing is left of an empty mask, nor of one that fills the crop.
    """
    share = masks.mean(dim=(2, 3, 4), keepdim=True)
    if bool(((masks == 0) | (masks == 1)).all()):
        return masks * ((1 - share) / torch.sqrt(share * (1 - share) + MAP_NORM_EPS))
    return norm_relu(masks, MAP_NORM_EPS)


def _upsample_transposed(masks: Tensor, size: torch.Size) -> Tensor:
    """Transpose of trilinear up-sampling (align_corners): (P, Z, Y, X) -> (P, d, h, w)."""
    matrix = [linear_matrix(n, m, masks.device) for n, m in zip(masks.shape[1:], size, strict=True)]
    z, y, x = matrix
    rows = y.T @ (masks @ x)
    return (z.T @ rows.flatten(2)).reshape(-1, *size)
