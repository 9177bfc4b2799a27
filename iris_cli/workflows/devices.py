"""Which device a job runs on."""

from __future__ import annotations

import torch

from iris_cli.errors import EnvironmentProblem, UsageError


def choose_device(wanted: str) -> str:
    """Turn auto, cpu, cuda or cuda:N into a device that is there.

    raises EnvironmentProblem where the device is missing, UsageError for other words.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return "cuda:0" if available else "cpu"
    if wanted == "cpu":
        return wanted
    kind, _, number = wanted.partition(":")
    digits = number or "0"
    if kind != "cuda" or not (digits.isascii() and digits.isdecimal()):
        raise UsageError(
            "no such device", found=wanted, expected="auto, cpu, cuda or cuda:N", fix="use auto"
        )
    index = int(digits)
    if index >= available:
        raise EnvironmentProblem(
            "the device is not there",
            found=", ".join(f"cuda:{number}" for number in range(available)) or "no CUDA device",
            expected=wanted,
            fix="use --device cpu, or see `iris doctor`",
        )
    return f"cuda:{index}"


def choose_devices(wanted: str) -> tuple[str, ...]:
    """Turn `0,1` or `cuda:0,cuda:1` or `cpu,cpu` into devices that are there, one for each process.

    raises UsageError where a CUDA device is named twice or kinds are mixed, and as `choose_device`
    does.
    """
    words = [word.strip() for word in wanted.split(",")]
    devices = tuple(choose_device(f"cuda:{w}" if w.isdecimal() else w) for w in words)
    twice = sorted({d for d in devices if d != "cpu" and devices.count(d) > 1})
    if twice:
        raise UsageError(
            "a CUDA device is named twice",
            found=wanted,
            expected=f"{', '.join(twice)} once",
            fix="name every device once; only cpu may be repeated",
        )
    if len({device.partition(":")[0] for device in devices}) > 1:
        raise UsageError(
            "devices of two kinds do not compute the same",
            found=wanted,
            expected="CUDA devices alone, or cpu alone",
        )
    return devices


def choose_rank_device(wanted: str, local_rank: int) -> str:
    """The device of one of several processes on this machine: auto and cuda count them through."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return choose_device(f"cuda:{local_rank}" if wanted == "cuda" else wanted)
