"""That a run computes alike each time; in which precision says `network.precision`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


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
