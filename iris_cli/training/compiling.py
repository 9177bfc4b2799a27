"""Compiling the network with torch.compile, where there is something to compile with."""

from __future__ import annotations

import logging
from typing import TypeVar

import torch

Module = TypeVar("Module", bound=torch.nn.Module)


def compiled(model: Module, device: torch.device) -> Module:
    """The model compiled for a device; the model itself, with a warning, where that fails.

    CPUs need a C++ compiler, CUDA devices triton: a small function is tried first.
    """
    try:
        torch.compile(_probe)(torch.ones(8, device=device))
    except Exception as error:  # one kind for each compiler that may be missing
        reason = str(error).strip().partition("\n")[0]
        logging.getLogger(__name__).warning("training.compile is left out: %s", reason)
        return model
    return torch.compile(model)  # type: ignore[return-value]


def _probe(x: torch.Tensor) -> torch.Tensor:
    return (x * 2 + 1).sigmoid()
