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
            found=f"{available} CUDA devices",
            expected=wanted,
            fix="use --device cpu, or see `iris doctor`",
        )
    return f"cuda:{index}"
