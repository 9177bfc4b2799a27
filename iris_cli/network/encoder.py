"""Image encoder E, shared by references and queries: a residual U-Net's way down.

What it rounds off goes through the whole network and is enlarged on its way, so its blocks are
`exact`; a quarter of the arithmetic makes nearly all of the rounding error of the logits.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from iris_cli.network.blocks import ResidualBlock, fold, residual_stack
from iris_cli.network.config import NetworkConfig
from iris_cli.network.kernels.residual_stack import serves
from iris_cli.network.kernels.stem import run_stem
from iris_cli.network.recompute import run


class Stem(nn.Module):
    """First convolution and first block, at the resolution of the network."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(
            channels_in, channels_out, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.conv2 = ResidualBlock(channels_out, channels_out, kernel_size, exact=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C_in, Z, Y, X) -> (B, c0, Z, Y, X)."""
        first = run_stem(x, self.conv1.weight) if serves(x) else self.conv1(x)
        return residual_stack([self.conv2], first, overwrite=True)


class DownLevel(nn.Module):
    """Max-pooling, then residual blocks; the first one widens."""

    def __init__(
        self, channels_in: int, channels_out: int, *, blocks: int, kernel_size: int, scale: int
    ) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.conv = nn.Sequential(
            nn.MaxPool3d(scale),
            *(ResidualBlock(a, b, kernel_size, exact=True) for a, b in pairwise(widths)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C_in, Z, Y, X) -> (B, C_out, Z / scale, Y / scale, X / scale)."""
        pool, *blocks = self.conv
        return residual_stack(blocks, pool(x), overwrite=True)


class ImageEncoder(nn.Module):
    """Five levels of features, deepest first."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.fold = config.fold
        c, kernels = config.channels, config.kernel_sizes
        self.inc = Stem(config.in_channels * config.fold**3, c[0], kernels[0])
        self.down1, self.down2, self.down3, self.down4 = (
            DownLevel(
                c[level - 1],
                c[level],
                blocks=config.blocks[level - 1],
                kernel_size=kernels[level],
                scale=config.scales[level - 1],
            )
            for level in (1, 2, 3, 4)
        )

    def forward(self, image: Tensor, *, recompute: bool = False) -> tuple[Tensor, ...]:
        """image: (B, in_channels, Z, Y, X) -> 5 features (B, c_j, Z/s_j, Y/s_j, X/s_j)."""
        x = run(self.inc, fold(image, self.fold), recompute=recompute)
        features = [x]
        for level in (self.down1, self.down2, self.down3, self.down4):
            x = run(level, x, recompute=recompute)
            features.append(x)
        return tuple(reversed(features))
