"""Task encoder: reference features and masks become the tokens of a task.

A class never sees another one here, and what does not depend on the class is computed once per
reference. Two ways lead through the same steps: `StageEncoder.forward` takes a flat list of P valid
(episode, class) pairs at once, as training needs it; `StageEncoder.encode_classes` takes the
classes of one reference one by one, for inference, where `kernels` do the work and memory does not
grow with the number of classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iris_cli.network.attention import CROSS_NORM_EPS, CrossAttention, FeedForward, SelfAttention
from iris_cli.network.blocks import fold, linear_matrix, norm_relu, unfold
from iris_cli.network.config import POSITION_VOLUME_SIZE, ForegroundToken, NetworkConfig
from iris_cli.network.kernels.absorbed_attention import absorbed_attention
from iris_cli.network.kernels.few_channels import convolve_to_one
from iris_cli.network.kernels.mask_crop import MaskCrop, UpsampleTransposed, crop_masks
from iris_cli.network.recompute import run

MAP_NORM_EPS = 1e-5
NOTHING_POOLED = 1e-4
"""Of the length that the normalised features of one voxel have: a mean below it counts as 0."""
TOKEN_BLOCKS = 2
MAP_VALUES_AT_ONCE = 2**22
"""How many values the context maps that exist together hold: 17 MB in fp32. The weights of the
token blocks are read once for all of them, so that several deep maps are better than one."""

ReadMap = Callable[[CrossAttention, Tensor], Tensor]
"""What tokens (P, M, C) gain by reading the context map of their class through a block."""


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
    with torch.autocast(features.device.type, enabled=False):
        if variant is ForegroundToken.FULL:
            weights = _upsample_transposed(masks, size)
        else:
            weights = _reduced(masks, masks.shape[1] // size[0], variant)
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

    def forward(self, tokens: Tensor, read: ReadMap | None) -> Tensor:
        """tokens: (P, M, C) -> (P, M, C); read: None for a block without map."""
        tokens = tokens + self.query_attn_block_1(tokens)
        tokens = tokens + self.query_ffn_1(tokens)
        if read is not None:
            tokens = tokens + read(self.query_aggregate_block, tokens)
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
        self.stride, self.fold = config.stage_stride(stage), config.fold
        self.with_context = config.context_tokens
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
        read, pooled = None, None
        if of_masks is not None:
            context_map = self.context_map(features, pairs.episode, of_masks)
            read = partial(_read, context=context_map.flatten(2).transpose(1, 2))
        if self.foreground is not ForegroundToken.NONE:
            pooled = pool_foreground(self._features_to_pool(features), pairs, self.foreground)
        return self._exchange(self._first_tokens(pooled, len(pairs.episode)), read)

    def encode_classes(
        self, features: Tensor, crops: Sequence[MaskCrop], weights: Tensor | None
    ) -> Tensor:
        """The same for the classes of one reference, without gradient.

        features: (1, C, d, h, w); crops: of the K masks; weights: (K, d * h * w) of the features
        in the foreground token, or None -> tokens (K, M, C).
        """
        pooled = None
        if weights is not None:
            pooled = _weighted_mean(self._features_to_pool(features), weights)
        tokens = self._first_tokens(pooled, len(crops))
        if not self.with_context:
            return self._exchange(tokens, None)
        shared, found = self._shared_map(features), []
        at_once = max(1, MAP_VALUES_AT_ONCE // features.numel())
        for start in range(0, len(crops), at_once):
            some = slice(start, start + at_once)
            maps = [self._normed_map(features, shared, crop) for crop in crops[some]]
            found.append(self._exchange(tokens[some], partial(absorbed_attention, maps=maps)))
        return torch.cat(found)

    def _first_tokens(self, pooled: Tensor | None, count: int) -> Tensor:
        """pooled: (P, C) or None -> (P, M, C)."""
        rows = []
        if self.with_context:
            rows.append(self.norm_query(self.task_query).expand(count, -1, -1))
        if pooled is not None:
            rows.append(self.norm_foreground(self._without_rounding(pooled))[:, None])
        return self.norm_combined(torch.cat(rows, dim=1))  # type: ignore[no-any-return]

    def _exchange(self, tokens: Tensor, read: ReadMap | None) -> Tensor:
        for block in self.attn_layers:
            tokens = block(tokens, read)
        return self.norm_post(tokens)  # type: ignore[no-any-return]

    def _features_to_pool(self, features: Tensor) -> Tensor:
        if self.foreground_norm:
            return F.group_norm(features.float(), features.shape[1], eps=MAP_NORM_EPS)
        return features

    def _without_rounding(self, pooled: Tensor) -> Tensor:
        """Zero where rounding is all there is: normalised features over everything have mean 0.

        pooled: (P, C). The norm of tokens would make a token of what is left, another one for
        every order of the sum.
        """
        if not self.foreground_norm:
            return pooled
        of_one_voxel = math.sqrt(pooled.shape[1])
        something = pooled.norm(dim=1, keepdim=True) >= NOTHING_POOLED * of_one_voxel
        return torch.where(something, pooled, 0.0)

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
        merged = convolve_to_one(norm_relu(full, MAP_NORM_EPS), conv.weight[:, :1], conv.bias)
        return merged if self.pos_embed is None else merged + self.pos_embed(full.shape[2:])

    def _shared_map(self, features: Tensor) -> Tensor:
        """What all masks share of the merged map, folded: (1, C, d, h, w) -> (1, s^3, d, h, w)."""
        return fold(self.merge_image(self.full_resolution_map(features)), self.stride)

    def _normed_map(self, features: Tensor, shared: Tensor, crop: MaskCrop) -> Tensor:
        """`context_map` of one mask, normalised per voxel as `absorbed_attention` reads it: (N, C).

        The mask changes the merged map inside its crop only.
        """
        merged, (z, y, x) = shared.clone(), crop.cells(self.stride * self.fold)
        mask = crop.norm_relu(self.fold, MAP_NORM_EPS)
        of_mask = convolve_to_one(mask, self.merge.conv.weight[:, 1:])
        merged[:, :, z, y, x] += fold(of_mask, self.stride)
        squeeze = self.squeeze.conv
        channels = norm_relu(merged, MAP_NORM_EPS)[0].flatten(1)
        rows = F.linear(channels.T, squeeze.weight.flatten(1), squeeze.bias)
        rows += features[0].flatten(1).T
        return F.layer_norm(rows, rows.shape[1:], eps=CROSS_NORM_EPS)


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
        shapes = [(*valid.shape, self.config.tokens, f.shape[1]) for f in features[: len(self)]]
        tokens = [torch.zeros(shape, device=masks.device) for shape in shapes]
        if not bool(valid.any()):
            return tokens
        if torch.is_grad_enabled():
            return self._encode_pairs(features, masks, valid, tokens, recompute)
        for episode in range(len(masks)):
            of_one = [f[episode : episode + 1] for f in features[: len(self)]]
            found = self._encode_reference(of_one, masks[episode], valid[episode])
            for stage, stage_tokens in zip(tokens, found, strict=True):
                stage[episode, valid[episode]] = stage_tokens.float()
        return tokens

    def _encode_pairs(
        self,
        features: Sequence[Tensor],
        masks: Tensor,
        valid: Tensor,
        tokens: list[Tensor],
        recompute: bool,
    ) -> list[Tensor]:
        pairs = MaskPairs.select(masks, valid)
        of_masks = self.merge_masks(pairs)
        for i, encode in enumerate(self):
            part = None if of_masks is None else of_masks[:, i : i + 1]
            found = run(encode, features[i], pairs, part, recompute=recompute)
            tokens[i] = tokens[i].index_put((valid,), found.float())
        return tokens

    def _encode_reference(
        self, features: Sequence[Tensor], masks: Tensor, valid: Tensor
    ) -> list[Tensor]:
        """features: (1, C_i, d, h, w); masks: (K, Z, Y, X) -> per stage (valid ones, M, C_i)."""
        cell = self.config.fold * self.config.stage_stride(0)
        crops = crop_masks(masks, cell, margin=self.config.fold)
        crops = [crop for crop, wanted in zip(crops, valid.tolist(), strict=True) if wanted]
        if not crops:
            return [f.new_empty(0, self.config.tokens, f.shape[1]) for f in features]
        weights = self._pooling_weights(crops, [f.shape[2:] for f in features])
        stages = (cast(StageEncoder, stage) for stage in self)
        return [
            stage.encode_classes(f, crops, w)
            for stage, f, w in zip(stages, features, weights, strict=True)
        ]

    def _pooling_weights(
        self, crops: Sequence[MaskCrop], sizes: Sequence[torch.Size]
    ) -> list[Tensor] | list[None]:
        """The share of every coarse voxel in the foreground tokens: per stage (K, d * h * w)."""
        variant = self.config.foreground_token
        if variant is ForegroundToken.NONE:
            return [None] * len(sizes)
        device = crops[0].mask.device
        with torch.autocast(device.type, enabled=False):
            if variant is ForegroundToken.FULL:
                transposed = UpsampleTransposed(crops[0].size, sizes, device)
                per_class = [transposed(crop) for crop in crops]
            else:
                per_class = [_reduced_crop(crop, sizes, variant) for crop in crops]
        return [torch.stack(stage).flatten(1) for stage in zip(*per_class, strict=True)]

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


def _read(attend: CrossAttention, tokens: Tensor, context: Tensor) -> Tensor:
    return attend(tokens, context)  # type: ignore[no-any-return]


def _weighted_mean(features: Tensor, weights: Tensor) -> Tensor:
    """(1, C, d, h, w), (K, d * h * w) -> (K, C) float32; a mass below one divides by 1."""
    with torch.autocast(features.device.type, enabled=False):
        sums = weights @ features[0].float().flatten(1).T
        return sums / weights.sum(1).clamp(min=1)[:, None]


def _reduced(masks: Tensor, step: int, variant: ForegroundToken) -> Tensor:
    """Masks on a grid `step` times coarser, nearest or area: (P, Z, Y, X) -> (P, d, h, w)."""
    if variant is ForegroundToken.NEAREST:
        return masks[:, step // 2 :: step, step // 2 :: step, step // 2 :: step]
    return F.avg_pool3d(masks[:, None], step)[:, 0]


def _reduced_crop(
    crop: MaskCrop, sizes: Sequence[torch.Size], variant: ForegroundToken
) -> list[Tensor]:
    """The same of a whole mask to several grids, from what of it is not zero: (d, h, w) each."""
    mask, out = crop.mask.float()[None], []
    for size in sizes:
        step = crop.size[0] // size[0]
        coarse = torch.zeros(size, device=mask.device)
        coarse[crop.cells(step)] = _reduced(mask, step, variant)[0]
        out.append(coarse)
    return out


def _upsample_transposed(masks: Tensor, size: torch.Size) -> Tensor:
    """Transpose of trilinear up-sampling (align_corners): (P, Z, Y, X) -> (P, d, h, w)."""
    matrix = [linear_matrix(n, m, masks.device) for n, m in zip(masks.shape[1:], size, strict=True)]
    z, y, x = matrix
    rows = y.T @ (masks @ x)
    return (z.T @ rows.flatten(2)).reshape(-1, *size)
