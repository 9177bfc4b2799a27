"""Decoder D: query features and task tokens become one logit per class and voxel."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from iris_cli.network.attention import CrossAttention, FeedForward, Mlp, SelfAttention
from iris_cli.network.blocks import ResidualBlock, residual_stack
from iris_cli.network.config import NetworkConfig
from iris_cli.network.logit_map import LogitMap
from iris_cli.network.recompute import run

FUSION_BLOCKS = 2


class FusionBlock(nn.Module):
    """Tokens read the image, the image reads the tokens, the tokens read each other."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.prior_aggregate_block = CrossAttention(channels, heads)
        self.prior_ffn = FeedForward(channels)
        self.feat_aggregate_block = CrossAttention(channels, heads)
        self.feat_ffn = FeedForward(channels)
        self.prior_attn_block = SelfAttention(channels, heads)
        self.prior_ffn_2 = FeedForward(channels)

    def forward(
        self, image: Tensor, tokens: Tensor, valid: Tensor | None, read: slice | None = None
    ) -> tuple[Tensor, Tensor]:
        """image: (B, N, C), tokens: (B, K * M, C), valid: (B, K * M) bool -> both, updated.

        read: the rows of the tokens to return, where the others are not needed any more.
        """
        tokens = tokens + self.prior_aggregate_block(tokens, image)
        tokens = tokens + self.prior_ffn(tokens)
        image = image + self.feat_aggregate_block(image, tokens, valid)
        image = image + self.feat_ffn(image)
        if read is None:
            tokens = tokens + self.prior_attn_block(tokens, valid)
        else:
            normed = self.prior_attn_block.norm(tokens)
            attend = self.prior_attn_block.fn.mha
            tokens = tokens[:, read] + attend(normed[:, read], normed, valid)
        return image, tokens + self.prior_ffn_2(tokens)


class Fusion(nn.Module):
    """The exchange between query and task at one stage."""

    def __init__(self, channels: int, heads: int, class_row: int) -> None:
        super().__init__()
        self.class_row = class_row
        self.attn_layers = nn.ModuleList(FusionBlock(channels, heads) for _ in range(FUSION_BLOCKS))

    def forward(
        self, features: Tensor, tokens: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """features: (B, C, d, h, w), tokens: (B, K, M, C), valid: (B, K) bool or None.

        returns: features of the same shape, posteriors (B, K, C): one token of each class.
        """
        per_class = tokens.shape[2]
        image, flat = features.flatten(2).transpose(1, 2), tokens.flatten(1, 2)
        keys = None if valid is None else valid.repeat_interleave(per_class, dim=1)
        *earlier, last = self.attn_layers
        for block in earlier:
            image, flat = block(image, flat, keys)
        of_classes = slice(self.class_row % per_class, None, per_class)
        if torch.is_grad_enabled():
            image, flat = last(image, flat, keys)
            posterior = flat[:, of_classes]
        else:
            image, posterior = last(image, flat, keys, of_classes)
        return image.transpose(1, 2).reshape(features.shape), posterior


class UpLevel(nn.Module):
    """Up-sampling to the skip's size, concatenation [skip, x], residual blocks."""

    def __init__(self, channels_in: int, channels_out: int, *, blocks: int, kernel: int) -> None:
        super().__init__()
        widths = [channels_in + channels_out] + [channels_out] * blocks
        self.conv = nn.Sequential(*(ResidualBlock(a, b, kernel) for a, b in pairwise(widths)))

    def forward(self, x: Tensor, skip: Tensor, overwrite: bool = False) -> Tensor:
        """x: (B, C_in, d, h, w), skip: (B, C_out, D, H, W) -> (B, C_out, D, H, W).

        overwrite: the skip is not needed any more.
        """
        return residual_stack(list(self.conv), skip, x, overwrite=overwrite)


class Decoder(nn.Module):
    """The way up, with an exchange with the task before the first `stages` steps."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        c = config.channels
        self.up1, self.up2, self.up3, self.up4 = (
            UpLevel(
                c[level + 1],
                c[level],
                blocks=config.blocks[level],
                kernel=config.kernel_sizes[level],
            )
            for level in (3, 2, 1, 0)
        )
        self.prior_fuse = nn.ModuleList(
            Fusion(config.stage_channels(i), config.stage_heads(i), config.class_row)
            for i in range(config.stages)
        )

    def forward(
        self,
        features: tuple[Tensor, ...],
        tokens: list[Tensor],
        valid: Tensor | None,
        *,
        recompute: bool = False,
        overwrite: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """features: deepest first; tokens: per stage (B, K, M, C_i); valid: (B, K) or None.
        overwrite: the features are not needed any more.

        returns: map (B, c0, Z, Y, X) at the resolution of the network, posteriors (B, K, C_i).
        """
        x, posteriors = features[0], []
        for stage, up in enumerate((self.up1, self.up2, self.up3, self.up4)):
            if stage < len(self.prior_fuse):
                fuse = self.prior_fuse[stage]
                x, posterior = run(fuse, x, tokens[stage], valid, recompute=recompute)
                posteriors.append(posterior)
            x = run(up, x, features[stage + 1], overwrite, recompute=recompute)
        return x, posteriors


class Head(nn.Module):
    """Each class' posteriors become the weights of its own 1x1x1 classifier."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, c0 = sum(config.stage_channels(i) for i in range(config.stages)), config.channels[0]
        self.norm = nn.LayerNorm(width)
        self.classifier_pred = nn.Sequential(Mlp(width, width, c0), Mlp(c0, c0, c0))
        for module in self.classifier_pred.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.fold = config.fold
        self.unfold = nn.Conv3d(c0, c0 * self.fold**3, 1) if self.fold > 1 else None

    def class_weights(self, posteriors: list[Tensor]) -> Tensor:
        """posteriors: per stage (B, K, C_i) -> (B, K, c0)."""
        return self.classifier_pred(  # type: ignore[no-any-return]
            self.norm(torch.cat(posteriors, dim=-1))
        )

    def forward(self, x: Tensor, posteriors: list[Tensor]) -> Tensor:
        """x: (B, c0, z, y, x), posteriors -> logits (B, K, Z, Y, X) float32."""
        return self.logit_map(x, posteriors).logits()

    def logit_map(self, x: Tensor, posteriors: list[Tensor]) -> LogitMap:
        """The same, not multiplied out: x: (B, c0, z, y, x), posteriors: per stage (B, K, C_i)."""
        with torch.autocast(x.device.type, enabled=False):
            weights = self.class_weights([posterior.float() for posterior in posteriors])
            if self.unfold is None:
                return LogitMap(x, weights[:, :, None], None)
            return LogitMap(x, *self._weights_of_cells(self.unfold, weights))

    def _weights_of_cells(self, last: nn.Conv3d, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, c0) -> (B, K, fold^3, c0) and offsets (B, K, fold^3).

        The classifier is linear, so it is taken through the unfolding convolution once per class
        instead of building c0 channels at full resolution.
        """
        c0 = weights.shape[2]
        assert last.bias is not None
        kernel, bias = last.weight.float().reshape(c0, -1, c0), last.bias.float().reshape(c0, -1)
        per_cell = torch.einsum("bko,ofi->bkfi", weights, kernel)
        return per_cell, torch.einsum("bko,of->bkf", weights, bias)
