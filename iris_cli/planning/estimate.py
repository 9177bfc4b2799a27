"""How much memory training by a plan will want: from sizes alone, said early."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal

from iris_cli.files.schema import Record
from iris_cli.network.config import NetworkConfig
from iris_cli.planning.plan import Plan
from iris_cli.planning.step_shape import Device, Precision, StepShape

# Float32: weights, averaged weights and two moments, held from the first step on.
BYTES_PER_PARAMETER = 16
# What the first step brings into a process beside its tensors: the kernels of torch and oneDNN.
KERNEL_BYTES = 150_000_000
# Maps below 32 MB lie in malloc's heap, which keeps up to 64 MB at its top and is full of holes: in
# tiny and small networks steps held 20 to 40 % more than was alive, in wide ones nothing.
HEAP_TOP_BYTES = 64 << 20
HEAP_HOLES = 0.25


class TrainingEstimate(Record):
    """Peak memory of a training step, bytes, on one device.

    On `cuda`, of the memory of the device; on `cpu`, of the process beyond what it holds once
    everything is imported. step: what was asked about. state_bytes: weights, averages and moments.
    step_bytes: most that is alive at one time of everything else: maps kept for the backward pass,
    gradients, batch. overhead_bytes: kernels, and what malloc keeps; nothing on CUDA, where it is
    not counted.
    """

    step: StepShape
    parameters: int
    state_bytes: int
    step_bytes: int
    overhead_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.state_bytes + self.step_bytes + self.overhead_bytes

    @property
    def gib(self) -> float:
        """All of it, GiB."""
        return self.total_bytes / 2**30

    def to_json(self) -> dict[str, Any]:
        """All numbers, the sum among them, and the sentence."""
        step = self.step.model_dump(mode="json", exclude={"network", "patch", "gradients"})
        numbers = self.model_dump(mode="json", exclude={"step"})
        return {**step, **numbers, "total_bytes": self.total_bytes, "text": self.text()}

    def text(self) -> str:
        """One sentence for people."""
        return f"{self.gib:.3g} GiB on {self.step.text()}"


@cache
def estimate_step(step: StepShape) -> TrainingEstimate:
    """Memory of a step whose largest part has this shape."""
    from iris_cli.planning.step_memory import peak_of_step

    parameters = count_parameters(step.network)
    peak = peak_of_step(step)
    overhead = KERNEL_BYTES + HEAP_TOP_BYTES + HEAP_HOLES * peak.heap
    return TrainingEstimate(
        step=step,
        parameters=parameters,
        state_bytes=parameters * BYTES_PER_PARAMETER,
        step_bytes=peak.total,
        overhead_bytes=int(overhead) if step.device == "cpu" else 0,
    )


def estimate_training(plan: Plan, device: Device = "cpu", *, ranks: int = 1) -> TrainingEstimate:
    """Memory of the largest step of a plan: every episode with all references and classes it may.

    precision `auto` is taken as bfloat16 on CUDA; on a CPU as what this machine computes in.
    ranks: devices that share the episodes of a step.
    """
    training = plan.training
    each = max(1, training.batch // ranks)
    return estimate_step(
        StepShape(
            network=plan.network,
            patch=plan.patch,
            episodes=math.ceil(each / training.accumulation),
            references=training.task.references_max,
            classes=training.task.classes_max + (training.task.decoy_share > 0),
            recompute=training.recompute,
            gradients=min(each, training.accumulation) > 1,
            device=device,
            precision=_precision(training.precision, device),
        )
    )


def _precision(setting: Literal["auto"] | Precision, device: Device) -> Precision:
    if setting != "auto":
        return setting
    if device == "cuda":
        return "bfloat16"
    import torch

    from iris_cli.network.precision import autocast_type

    return "float32" if autocast_type(setting, torch.device("cpu")) is None else "bfloat16"


def count_parameters(config: NetworkConfig) -> int:
    """Trainable values of the network, built without memory for them."""
    import torch

    from iris_cli.network.iris_network import IrisNetwork

    with torch.device("meta"):
        network = IrisNetwork(config)
    return sum(parameter.numel() for parameter in network.parameters())
