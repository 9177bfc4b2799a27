"""Which precision a run computes in, and that it computes alike each time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


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
    """What is computed inside, forward, runs in this precision.

    The backward pass may run outside: every operation goes back in the precision it had.
    """
    with torch.autocast(device.type, dtype=kind, enabled=kind is not None):
        yield


@contextlib.contextmanager
def computing_alike() -> Iterator[None]:
    """cuDNN takes the same kernels every time, of those that add up in a fixed order.

    By default it may choose others in every process, and a run that goes on would come to other
    bits than one that was never stopped. Nothing changes on a CPU.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type != "cpu":
        return False
    # Private, but torch offers no public name; absent ones only cost speed.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in checks)
