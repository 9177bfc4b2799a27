"""Small random episodes, and the networks of every option, for the tests of this room."""

from __future__ import annotations

import torch
from torch import Tensor

from iris_cli.network.config import ClassToken, ForegroundToken, NetworkConfig, Stem
from iris_cli.network.iris_network import IrisNetwork

TINY = NetworkConfig.tiny()
HALF = TINY.model_copy(update={"stem": Stem.HALF})
OPTIONS: dict[str, NetworkConfig] = {
    "default": TINY,
    "half stem": HALF,
    "half stem, position volume": HALF.model_copy(update={"position_volume": True}),
    "position volume": TINY.model_copy(update={"position_volume": True}),
    "one stage": TINY.model_copy(update={"stages": 1}),
    "two stages": TINY.model_copy(update={"stages": 2}),
    "one query": TINY.model_copy(update={"queries": 1}),
    "no foreground token": TINY.model_copy(update={"foreground_token": ForegroundToken.NONE}),
    "nearest foreground": TINY.model_copy(update={"foreground_token": ForegroundToken.NEAREST}),
    "area foreground": TINY.model_copy(update={"foreground_token": ForegroundToken.AREA}),
    "no context tokens": TINY.model_copy(update={"context_tokens": False}),
    "foreground of raw features": TINY.model_copy(update={"foreground_norm": False}),
    "class read from the first token": TINY.model_copy(update={"class_token": ClassToken.FIRST}),
    "bank": TINY.model_copy(update={"bank_size": 5}),
    "large kernels": TINY.model_copy(update={"kernel_sizes": (5, 3, 3, 1, 3)}),
    "uneven blocks": TINY.model_copy(update={"blocks": (1, 2, 1, 2)}),
}


def build(config: NetworkConfig, seed: int = 0) -> IrisNetwork:
    torch.manual_seed(seed)
    return IrisNetwork(config)


def images(config: NetworkConfig, count: int, seed: int = 1) -> Tensor:
    """Non-cubic images: (count, 1, m, 2m, 3m) for the network's size multiple m."""
    m = config.size_multiple
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, config.in_channels, m, 2 * m, 3 * m, generator=generator)


def masks(image: Tensor, classes: int, *, seed: int = 2) -> Tensor:
    """Boxes of different place and size: (B, classes, Z, Y, X) bool."""
    generator = torch.Generator().manual_seed(seed)
    b, _, *size = image.shape
    out = torch.zeros(b, classes, *size, dtype=torch.bool)
    for item in range(b):
        for k in range(classes):
            low = [int(torch.randint(1, n // 2, (), generator=generator)) for n in size]
            z, y, x = (slice(a, a + n // 2) for a, n in zip(low, size, strict=True))
            out[item, k, z, y, x] = True
    return out


def run(
    network: IrisNetwork,
    query: Tensor,
    reference: Tensor,
    mask: Tensor,
    valid: Tensor | None = None,
    *,
    recompute: bool = False,
) -> Tensor:
    """Logits of one reference per query."""
    tokens = network.encode_task(
        network.encode_image(reference, recompute=recompute), mask, valid, recompute=recompute
    )
    features = network.encode_image(query, recompute=recompute)
    return network.decode(features, tokens, valid, recompute=recompute)
