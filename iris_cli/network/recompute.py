"""Gradient checkpointing: keep a part's inputs only and run it again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def run(part: Callable[..., Any], *inputs: Any, recompute: bool) -> Any:
    """part(*inputs); with `recompute`, its inner activations are not kept for the gradient."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
    return part(*inputs)
