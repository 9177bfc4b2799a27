"""Networks and expected arrays of the published implementation, from `conformance/`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iris_cli.network.config import ClassToken, NetworkConfig
from iris_cli.network.iris_network import IrisNetwork

FOLDER = Path(__file__).with_name("conformance")
KEYS: list[dict[str, Any]] = json.loads((FOLDER / "mass_base_keys.json").read_text())["tensors"]


@dataclass(frozen=True)
class Vectors:
    network: IrisNetwork
    io: dict[str, Tensor]
    tolerance: float

    def check(self, name: str, found: Tensor) -> None:
        expected = self.io[name]
        assert found.shape == expected.shape, name
        error = float((found - expected).abs().max())
        assert error <= self.tolerance * max(1.0, float(expected.abs().max())), name


def stored(name: str) -> Vectors:
    """`tiny` or `small`."""
    with np.load(FOLDER / f"{name}.npz") as file:
        values = json.loads(str(file["config_json"]))
        weights = {k[2:]: torch.from_numpy(file[k]) for k in file if k.startswith("w/")}
        io = {k[3:]: torch.from_numpy(file[k]) for k in file if k.startswith("io/")}
    config = NetworkConfig(
        channels=tuple(values["channels"]),
        blocks=tuple(values["num_block"]),
        kernel_sizes=tuple(values["kernel_size"]),
        scales=tuple(values["scale"]),
        stages=values["num_prior_stage"],
        bank_size=values["tn"],
        position_volume=True,
        class_token=ClassToken.FIRST,
        foreground_norm=False,
    )
    return Vectors(_network(config, weights), io, 2e-5)


def full_width() -> tuple[Vectors, np.ndarray, dict[str, Tensor]]:
    """The released widths with generated weights; also the probe of the generator."""
    with np.load(FOLDER / "full_width.npz") as file:
        io = {k[3:]: torch.from_numpy(file[k]) for k in file if k.startswith("io/")}
        probe = file["weight_probe"]
    weights = {
        t["name"]: torch.from_numpy(_generated(i, t["name"], tuple(t["shape"])))
        for i, t in enumerate(KEYS)
    }
    return Vectors(_network(NetworkConfig.released(), weights), io, 1e-4), probe, weights


def _network(config: NetworkConfig, weights: dict[str, Tensor]) -> IrisNetwork:
    with torch.device("meta"):
        network = IrisNetwork(config)
    network.load_state_dict(weights, strict=True, assign=True)
    return network.eval()


def _generated(number: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    x = np.arange(np.prod(shape), dtype=np.uint32)
    x *= np.uint32(2654435761)
    x += np.uint32(number * 40503 + 12345)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    u = (x >> np.uint32(8)).astype(np.float32) / np.float32(2**24) - np.float32(0.5)
    if len(shape) == 1:
        u = u * np.float32(0.25)
        if "norm" in name and name.endswith("weight"):
            u += np.float32(1)
    elif "pos_embed" in name:
        u *= np.float32(0.5)
    elif name.startswith("task_prior_") or name.endswith("task_query"):
        u *= np.float32(2)
    else:
        u *= np.float32(2.0 ** round(np.log2(2 / np.sqrt(np.prod(shape[1:])))))
    return u.reshape(shape)
