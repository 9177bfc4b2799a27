"""The fingerprint of a model: one hash for weights and everything that decides the output."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from iris_cli.files.hashing import hash_json
from iris_cli.network.config import NetworkConfig


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
        # Without defaults: a switch added later does not change the hash of earlier models.
        "network": config.model_dump(mode="json", exclude_defaults=True),
        "profile": profile,
        "s0": float(s0),
        "patch": patch,
    }
    digest.update(hash_json(settings).encode())
    return digest.hexdigest()
