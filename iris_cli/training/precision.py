"""Which precision a run computes in, and the one place where bfloat16 on CPUs must be avoided."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# oneDNN's weight gradient of a bfloat16 3x3x3 convolution over a map with an edge of 2 reads memory
# it never wrote: garbage, sometimes not finite (torch 2.13, measured for every number of channels;
# edges of 1, 3 and more are right). Such maps cost nothing, so they are computed in float32.
SMALL_EDGE = 2


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of autocast, or None for full float32.

    precision: `auto` is bfloat16 where the device computes in it: CUDA devices and CPUs with
    AVX512-BF16 or AMX (on others it is emulated, and slower than float32).
    """
    if precision == "float32":
        return None
    if precision == "bfloat16" or _has_bfloat16(device):
        return torch.bfloat16
    return None


@contextlib.contextmanager
def compute_in(kind: torch.dtype | None, device: torch.device) -> Iterator[None]:
    """Forward and backward passes inside run in this precision."""
    with contextlib.ExitStack() as stack:
        if kind is not None:
            if device.type == "cpu":
                stack.enter_context(_SmallConvolutionsInFloat32())
            stack.enter_context(torch.autocast(device.type, dtype=kind))
        yield


class _SmallConvolutionsInFloat32(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv3d and min(args[0].shape[2:]) <= SMALL_EDGE:
            exact = [a.float() if isinstance(a, torch.Tensor) else a for a in args]
            call: Callable[..., torch.Tensor] = func
            with torch.autocast("cpu", enabled=False):
                return call(*exact, **kwargs).to(torch.bfloat16)
        return func(*args, **kwargs)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type != "cpu":
        return False
    # Private, but torch offers no public name; absent ones only cost speed.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in checks)
