"""The fingerprint of a model: one hash for weights and everything that decides the output."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from iris_cli.files.hashing import hash_json
from iris_cli.network.config import ADDED_FIELDS, NetworkConfig


def fingerprint(
    tensors: Mapping[str, Tensor], config: NetworkConfig, *, profile: str, s0: float, patch: int
) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the tensors, and the settings.

    The tensors are hashed as they are given: fp16 weights and their fp32 copies differ.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    settings = {
        "network": _stated(config),
        "profile": profile,
        "s0": float(s0),
        "patch": patch,
    }
    digest.update(hash_json(settings).encode())
    return digest.hexdigest()


def _stated(config: NetworkConfig) -> dict[str, Any]:
    """Every field, defaults too: another default must not pass as the same model.

    A field added later is left out while it has its old value: earlier models keep their hash.
    """
    values = config.model_dump(mode="json")
    return {
        key: value
        for key, value in values.items()
        if key not in ADDED_FIELDS or value != ADDED_FIELDS[key]
    }
