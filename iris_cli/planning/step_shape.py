"""The shape of one training step: what its memory depends on."""

from __future__ import annotations

from typing import Literal

from iris_cli.files.schema import Record
from iris_cli.network.config import NetworkConfig

Device = Literal["cpu", "cuda"]
Precision = Literal["float32", "bfloat16"]


class StepShape(Record):
    """One part of a step at its largest: every class in every reference of every episode.

    patch: edge in voxels. episodes: of one part of one rank; references: of each of them.
    recompute: whether inner activations are made again in the backward pass. gradients: whether
    the step has several parts, so that the gradients of one are there in the next. precision: of
    autocast.
    """

    network: NetworkConfig
    patch: int
    episodes: int
    references: int
    classes: int
    recompute: bool = False
    gradients: bool = False
    device: Device = "cpu"
    precision: Precision = "float32"

    def text(self) -> str:
        """Everything but network and patch, for people."""
        again = ", recomputing" if self.recompute else ""
        return (
            f"{self.device.upper()} ({self.precision}, {self.episodes} x {self.references} "
            f"references, {self.classes} classes{again})"
        )
