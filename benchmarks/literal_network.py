"""The network as it is defined, step by step, with no rewrite: what `iris_cli.network` is timed
against.

Every line follows the definition: reference features are up-sampled to the full grid before they
are pooled, every class is concatenated with the map of its image and convolved by itself, shortcut
and first convolution of a block run apart, InstanceNorm and attention are torch's own modules.
Names of parameters are those of the released weights, so `IrisNetwork.state_dict()` loads here and
both compute the same function; memory banks, which no gradient reaches, are left out.

Not here: the half-resolution stem and the ablations of the token set.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iris_cli.network.config import POSITION_VOLUME_SIZE, ForegroundToken, NetworkConfig, Stem


class LiteralNetwork(nn.Module):
    """`forward(query, reference, masks)` of one reference per episode.

    raises ValueError for a configuration that has no literal form here.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        plain = (
            config.stem is Stem.FULL
            and config.foreground_token is ForegroundToken.FULL
            and config.context_tokens
        )
        if not plain:
            raise ValueError(f"no literal form of {config}")
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.task_embedding = nn.ModuleList(
            StageEncoder(config, stage) for stage in range(config.stages)
        )
        self.out = Head(config)

    def forward(self, query: Tensor, reference: Tensor, masks: Tensor) -> Tensor:
        """query, reference: (B, 1, Z, Y, X); masks: (B, K, Z, Y, X) -> logits (B, K, Z, Y, X)."""
        return self.decode(self.encoder(query), self.encode_task(self.encoder(reference), masks))

    def encode_task(self, features: Sequence[Tensor], masks: Tensor) -> list[Tensor]:
        """features: deepest first; masks: (B, K, Z, Y, X) -> per stage (B, K, m + 1, C_i)."""
        masks = masks.to(features[0].dtype)
        return [encode(f, masks) for f, encode in zip(features, self.task_embedding, strict=False)]

    def decode(self, features: Sequence[Tensor], tokens: Sequence[Tensor]) -> Tensor:
        """features: of the query, deepest first; tokens: per stage -> logits (B, K, Z, Y, X)."""
        x, posteriors = self.decoder(features, tokens)
        logits: Tensor = self.out(x, posteriors)
        return logits


class NormReluConv(nn.Module):
    """InstanceNorm (eps 1e-4), ReLU, convolution without bias."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(channels_in, eps=1e-4)
        self.conv = nn.Conv3d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Two pre-activated convolutions and a shortcut, which is a third one where widths differ."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = NormReluConv(channels_in, channels_out, kernel)
        self.conv2 = NormReluConv(channels_out, channels_out, kernel)
        if channels_in != channels_out:
            self.shortcut = NormReluConv(channels_in, channels_out, kernel)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x) if hasattr(self, "shortcut") else x
        return self.conv2(self.conv1(x)) + shortcut  # type: ignore[no-any-return]


class Stack(nn.Module):
    """Blocks in a row under the name `conv`; `first` goes before them."""

    def __init__(self, widths: Sequence[int], kernel: int, *first: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Sequential(*first, *(Block(a, b, kernel) for a, b in pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class Stem3d(nn.Module):
    """First convolution, then a block."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
        self.conv2 = Block(channels_out, channels_out, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Five levels of features, deepest first."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        c, kernels = config.channels, config.kernel_sizes
        self.inc = Stem3d(config.in_channels, c[0], kernels[0])
        for level in range(1, 5):
            widths = [c[level - 1]] + [c[level]] * config.blocks[level - 1]
            pool = nn.MaxPool3d(config.scales[level - 1])
            self.add_module(f"down{level}", Stack(widths, kernels[level], pool))

    def forward(self, image: Tensor) -> list[Tensor]:
        features = [self.inc(image)]
        for level in range(1, 5):
            features.append(self.get_submodule(f"down{level}")(features[-1]))
        return features[::-1]


class Attention(nn.Module):
    """Holder of the names `fn.mha`, `norm` or `norm1` and `norm2`: the change of x by reading y."""

    def __init__(self, channels: int, heads: int, *, cross: bool) -> None:
        super().__init__()
        if cross:
            self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        else:
            self.norm = nn.LayerNorm(channels, eps=1e-4)
        self.fn = nn.Module()
        self.fn.mha = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        queries = self.norm(x) if y is None else self.norm1(x)
        keys = queries if y is None else self.norm2(y)
        return self.fn.mha(queries, keys, keys, need_weights=False)[0]  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, channels_in: int, hidden: int, channels_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels_in, hidden)
        self.fc2 = nn.Linear(hidden, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """The change of x by an MLP of its norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-4)
        self.fn = Mlp(channels, 4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))  # type: ignore[no-any-return]


class TokenBlock(nn.Module):
    """Tokens read each other, the map of their class, and each other again."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.query_attn_block_1 = Attention(channels, heads, cross=False)
        self.query_ffn_1 = FeedForward(channels)
        self.query_aggregate_block = Attention(channels, heads, cross=True)
        self.query_aggregate_ffn = FeedForward(channels)
        self.query_attn_block_2 = Attention(channels, heads, cross=False)
        self.query_ffn_2 = FeedForward(channels)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        tokens = tokens + self.query_attn_block_1(tokens)
        tokens = tokens + self.query_ffn_1(tokens)
        tokens = tokens + self.query_aggregate_block(tokens, context)
        tokens = tokens + self.query_aggregate_ffn(tokens)
        tokens = tokens + self.query_attn_block_2(tokens)
        return tokens + self.query_ffn_2(tokens)  # type: ignore[no-any-return]


class PositionVolume(nn.Module):
    """A learned volume, read from its corner."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(1, 1, *[POSITION_VOLUME_SIZE] * 3))

    def forward(self, x: Tensor) -> Tensor:
        z, y, x_ = x.shape[2:]
        return x + self.embedding[:, :, :z, :y, :x_]


class StageEncoder(nn.Module):
    """Task tokens of one stage; classes are folded into the batch axis."""

    def __init__(self, config: NetworkConfig, stage: int) -> None:
        super().__init__()
        c, heads = config.stage_channels(stage), config.stage_heads(stage)
        self.stride = config.stage_stride(stage)
        self.foreground_norm = config.foreground_norm
        self.task_query = nn.Parameter(torch.randn(config.queries, c))
        self.expand = _norm_relu_conv(c, self.stride**3, 1)
        self.merge = _norm_relu_conv(2, 1, 3)
        self.squeeze = _norm_relu_conv(self.stride**3, c, 1)
        if config.position_volume:
            self.pos_embed = PositionVolume()
        self.norm_query, self.norm_foreground = nn.LayerNorm(c), nn.LayerNorm(c)
        self.norm_combined, self.norm_post = nn.LayerNorm(c), nn.LayerNorm(c)
        self.attn_layers = nn.ModuleList(TokenBlock(c, heads) for _ in range(2))

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """features: (B, C, d, h, w), masks: (B, K, Z, Y, X) float -> tokens (B, K, m + 1, C)."""
        b, k = masks.shape[:2]
        context = self.context_map(features, masks).flatten(2).transpose(1, 2)
        foreground = self.norm_foreground(self.foreground(features, masks)).flatten(0, 1)
        queries = self.norm_query(self.task_query).expand(b * k, -1, -1)
        tokens = self.norm_combined(torch.cat([queries, foreground[:, None]], dim=1))
        for block in self.attn_layers:
            tokens = block(tokens, context)
        return self.norm_post(tokens).reshape(b, k, *tokens.shape[1:])  # type: ignore[no-any-return]

    def foreground(self, features: Tensor, masks: Tensor) -> Tensor:
        """Mean of the up-sampled features under each mask: (B, K, C)."""
        if self.foreground_norm:
            features = F.instance_norm(features, eps=1e-5)
        full = _upsampled(features, masks.shape[2:])
        size = masks.sum(dim=(2, 3, 4)).clamp(min=1)
        # einsum would copy the up-sampled features once more, which no definition asks for.
        return torch.bmm(masks.flatten(2), full.flatten(2).transpose(1, 2)) / size[:, :, None]

    def context_map(self, features: Tensor, masks: Tensor) -> Tensor:
        """The reference as seen through each mask: (B * K, C, d, h, w)."""
        k = masks.shape[1]
        image = pixel_shuffle(self.expand(features), self.stride)
        per_class = image.repeat_interleave(k, dim=0)
        merged = self.merge(torch.cat([per_class, masks.flatten(0, 1)[:, None]], dim=1))
        if hasattr(self, "pos_embed"):
            merged = self.pos_embed(merged)
        squeezed = self.squeeze(pixel_unshuffle(merged, self.stride))
        return squeezed + features.repeat_interleave(k, dim=0)  # type: ignore[no-any-return]


class FusionBlock(nn.Module):
    """Tokens read the image, the image reads the tokens, the tokens read each other."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.prior_aggregate_block = Attention(channels, heads, cross=True)
        self.prior_ffn = FeedForward(channels)
        self.feat_aggregate_block = Attention(channels, heads, cross=True)
        self.feat_ffn = FeedForward(channels)
        self.prior_attn_block = Attention(channels, heads, cross=False)
        self.prior_ffn_2 = FeedForward(channels)

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = tokens + self.prior_aggregate_block(tokens, image)
        tokens = tokens + self.prior_ffn(tokens)
        image = image + self.feat_aggregate_block(image, tokens)
        image = image + self.feat_ffn(image)
        tokens = tokens + self.prior_attn_block(tokens)
        return image, tokens + self.prior_ffn_2(tokens)


class Fusion(nn.Module):
    """The exchange between query and task at one stage."""

    def __init__(self, channels: int, heads: int, class_row: int) -> None:
        super().__init__()
        self.class_row = class_row
        self.attn_layers = nn.ModuleList(FusionBlock(channels, heads) for _ in range(2))

    def forward(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        image, flat = features.flatten(2).transpose(1, 2), tokens.flatten(1, 2)
        for block in self.attn_layers:
            image, flat = block(image, flat)
        return (
            image.transpose(1, 2).reshape(features.shape),
            flat.reshape(tokens.shape)[:, :, self.class_row],
        )


class Decoder(nn.Module):
    """The way up: exchange, up-sampling, concatenation with the skip, blocks."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        c = config.channels
        for number, level in enumerate((3, 2, 1, 0), start=1):
            widths = [c[level + 1] + c[level]] + [c[level]] * config.blocks[level]
            self.add_module(f"up{number}", Stack(widths, config.kernel_sizes[level]))
        self.prior_fuse = nn.ModuleList(
            Fusion(config.stage_channels(i), config.stage_heads(i), config.class_row)
            for i in range(config.stages)
        )

    def forward(
        self, features: Sequence[Tensor], tokens: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        x, posteriors = features[0], []
        for step in range(4):
            if step < len(self.prior_fuse):
                x, posterior = self.prior_fuse[step](x, tokens[step])
                posteriors.append(posterior)
            skip = features[step + 1]
            joined = torch.cat([skip, _upsampled(x, skip.shape[2:])], dim=1)
            x = self.get_submodule(f"up{step + 1}")(joined)
        return x, posteriors


class Head(nn.Module):
    """Each class' posteriors become the weights of its own 1x1x1 classifier."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, c0 = sum(config.stage_channels(i) for i in range(config.stages)), config.channels[0]
        self.norm = nn.LayerNorm(width)
        self.classifier_pred = nn.Sequential(Mlp(width, width, c0), Mlp(c0, c0, c0))

    def forward(self, x: Tensor, posteriors: Sequence[Tensor]) -> Tensor:
        weights = self.classifier_pred(self.norm(torch.cat(list(posteriors), dim=-1)))
        return torch.einsum("bkc,bczyx->bkzyx", weights, x)


def pixel_shuffle(x: Tensor, size: int) -> Tensor:
    """(B, size^3, z, y, x) -> (B, 1, z * size, y * size, x * size), offsets in z, y, x order."""
    b, _, z, y, x_ = x.shape
    blocks = x.reshape(b, size, size, size, z, y, x_).permute(0, 4, 1, 5, 2, 6, 3)
    return blocks.reshape(b, 1, z * size, y * size, x_ * size)


def pixel_unshuffle(x: Tensor, size: int) -> Tensor:
    """The inverse: (B, 1, Z, Y, X) -> (B, size^3, Z / size, Y / size, X / size)."""
    b, _, z, y, x_ = x.shape
    blocks = x.reshape(b, z // size, size, y // size, size, x_ // size, size)
    return blocks.permute(0, 2, 4, 6, 1, 3, 5).reshape(b, size**3, z // size, y // size, x_ // size)


def _norm_relu_conv(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.InstanceNorm3d(channels_in),
        nn.ReLU(),
        nn.Conv3d(channels_in, channels_out, kernel, padding=kernel // 2),
    )


def _upsampled(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=True)
