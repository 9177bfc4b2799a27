"""Small files in the layout of the released weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork

# One token stage: a position volume of 8 MB is most of the file.
SMALL = NetworkConfig.released(5).model_copy(
    update={"channels": (4, 8, 8, 16, 16), "blocks": (1, 1, 1, 1), "stages": 1}
)


def config_of(network: NetworkConfig = SMALL) -> dict[str, Any]:
    """What the published trainer notes of a network."""
    model = {
        "in_ch": network.in_channels, "channels": list(network.channels),
        "scale": list(network.scales), "kernel_size": list(network.kernel_sizes),
        "block": "BasicBlock", "num_block": list(network.blocks), "pool": True, "norm": "in",
        "tn": network.bank_size, "num_prior_stage": network.stages, "ema_moment": 0.99,
    }  # fmt: skip
    return {"model": model, "training": {"lr": 0.002}}


def weights_of(network: NetworkConfig = SMALL, seed: int = 0) -> dict[str, Tensor]:
    """Random weights with the released names, the bank with them."""
    torch.manual_seed(seed)
    return dict(IrisNetwork(network).state_dict())


def write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path
