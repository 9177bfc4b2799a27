"""In which precision a network computes on a device.

Weights, tokens and logits are float32 always; what changes is the arithmetic in between, by
autocast.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Literal

import torch

from iris_cli.errors import UsageError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "fp32", "bf16", "fp16")

_TYPES = {"float32": None, "bfloat16": torch.bfloat16}
_TYPES |= {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(wanted: str, device: torch.device | str) -> Precision:
    """Turn a word of a user into fp32, bf16 or fp16 on this device.

    auto is bf16 where the device computes in it: CUDA devices, and CPUs with AVX512-BF16 or AMX.
    raises UsageError for other words, and for half precision that the device would only emulate:
    that is ten times slower than fp32 and less exact.
    """
    device = torch.device(device)
    if wanted == "auto":
        return "bf16" if has_bfloat16(device) else "fp32"
    if wanted == "bf16" and not has_bfloat16(device):
        raise _emulated(wanted, device, "AVX512-BF16 or AMX, or a GPU that computes in bf16")
    if wanted == "fp16" and device.type != "cuda":
        raise _emulated(wanted, device, "a CUDA device")
    for known in PRECISIONS:
        if wanted == known:
            return known
    raise UsageError("no such precision", found=wanted, expected=", ".join(PRECISIONS))


def _emulated(wanted: str, device: torch.device, expected: str) -> UsageError:
    return UsageError(
        f"this device does not compute in {wanted}",
        found=str(device),
        expected=expected,
        fix="use --precision auto",
    )


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of autocast, or None for full float32.

    precision: a `Precision`, or float32 and bfloat16 as plans call them. `auto` is bfloat16 where
    the device computes in it (on others it is emulated, and slower than float32).
    """
    if precision == "auto":
        return torch.bfloat16 if has_bfloat16(device) else None
    return _TYPES[precision]


@contextlib.contextmanager
def compute_in(kind: torch.dtype | None, device: torch.device) -> Iterator[None]:
    """What is computed inside, forward, runs in this precision.

    The backward pass may run outside: every operation goes back in the type it had. None is full
    float32 on CUDA, too, where torch would round what convolutions multiply to 10 bits (TF32); a
    backward pass outside does that as torch is set.
    """
    full = kind is None and device.type == "cuda"
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, dtype=kind, enabled=kind is not None))
        if full:
            stack.enter_context(_without_tf32)
        yield


class _WithoutTF32:
    """Convolutions and matrix products on CUDA in full float32 while anybody is inside.

    Torch has one setting for all threads: the first one to enter keeps what it was, and the last
    one to leave puts it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[Any] = []

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = [getattr(place, name) for place, name, _ in _tf32_settings()]
                for place, name, full in _tf32_settings():
                    setattr(place, name, full)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for (place, name, _full), before in zip(
                    _tf32_settings(), self._before, strict=True
                ):
                    setattr(place, name, before)


def _tf32_settings() -> list[tuple[Any, str, Any]]:
    """Object, attribute, and the value without TF32."""
    convolution, product = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(convolution, "conv"):  # since torch 2.9, which refuses a mixture with the older one
        return [(convolution.conv, "fp32_precision", "ieee"), (product, "fp32_precision", "ieee")]
    return [(convolution, "allow_tf32", False), (product, "allow_tf32", False)]


_without_tf32 = _WithoutTF32()


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 rather than emulating it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type != "cpu":
        return False
    # Private, but torch offers no public name; absent ones only cost speed.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in checks)
