"""How much memory preprocessing and training by a plan will want: from sizes alone, said early."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal

from iris_cli.files.schema import Record
from iris_cli.network.config import NetworkConfig
from iris_cli.planning.plan import Plan

# Float32: weights, averaged weights and two moments, held from the first step on.
BYTES_PER_PARAMETER = 16
# What the first step brings into a process beside its tensors: the kernels of torch and oneDNN.
KERNEL_BYTES = 150_000_000
# Maps below 32 MB lie in malloc's heap, which keeps up to 64 MB at its top and is full of holes: in
# tiny and small networks steps held 20 to 40 % more than was alive, in wide ones nothing.
HEAP_TOP_BYTES = 64 << 20
HEAP_HOLES = 0.25

# Measured on 512 x 512 x 300 (int16) and 256 x 256 x 200 (float32) at working spacings from 0.8 to
# 3 mm: never more than 5 % above this, up to 15 % below it. Per native voxel the image, its
# normalised form and one copy; per working voxel image and label map with their intermediates.
PROCESS_BYTES = 340_000_000
BYTES_PER_NATIVE_VOXEL = 12.0
BYTES_PER_WORKING_VOXEL = 14.0


class TrainingEstimate(Record):
    """Peak memory of a training step, bytes, on one device.

    device: for `cuda`, of the memory of the device; for `cpu`, of the process beyond what it holds
    once everything is imported. state_bytes: weights, averages and moments. step_bytes: most that
    is alive at one time of everything else: maps kept for the backward pass, gradients, batch.
    overhead_bytes: kernels, and what malloc keeps; nothing on CUDA, where it is not counted.
    """

    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]
    parameters: int
    episodes: int
    references: int
    classes: int
    recompute: bool
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
        numbers = self.model_dump(mode="json")
        return {**numbers, "total_bytes": self.total_bytes, "text": self.text()}

    def text(self) -> str:
        """One sentence for people."""
        shape = f"{self.episodes} x {self.references} references, {self.classes} classes"
        again = ", recomputing" if self.recompute else ""
        return f"{self.gib:.3g} GiB on {self.device.upper()} ({self.precision}, {shape}{again})"


@cache
def estimate_step(
    network: NetworkConfig,
    patch: int,
    *,
    episodes: int,
    references: int,
    classes: int,
    recompute: bool = False,
    gradients: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
) -> TrainingEstimate:
    """Memory of a step whose parts hold `episodes`, of so many references and classes each.

    gradients: whether the step has several parts, so that those of one are there in the next.
    """
    import torch

    from iris_cli.planning.step_memory import peak_of_step

    parameters = count_parameters(network)
    peak = peak_of_step(
        network,
        patch,
        episodes=episodes,
        references=references,
        classes=classes,
        recompute=recompute,
        precision=torch.bfloat16 if precision == "bfloat16" else None,
        cuda=device == "cuda",
        gradients=gradients,
    )
    overhead = KERNEL_BYTES + HEAP_TOP_BYTES + HEAP_HOLES * peak.heap
    return TrainingEstimate(
        device=device,
        precision=precision,
        parameters=parameters,
        episodes=episodes,
        references=references,
        classes=classes,
        recompute=recompute,
        state_bytes=parameters * BYTES_PER_PARAMETER,
        step_bytes=peak.total,
        overhead_bytes=int(overhead) if device == "cpu" else 0,
    )


def estimate_training(
    plan: Plan, device: Literal["cpu", "cuda"] = "cpu", *, ranks: int = 1
) -> TrainingEstimate:
    """Memory of the largest step of a plan: every episode with all references and classes it may.

    precision `auto` is taken as bfloat16 on CUDA; on a CPU as what this machine computes in.
    ranks: devices that share the episodes of a step.
    """
    training = plan.training
    return estimate_step(
        plan.network,
        plan.patch,
        episodes=max(1, training.batch // (training.accumulation * ranks)),
        references=training.task.references_max,
        classes=training.task.classes_max,
        recompute=training.recompute,
        gradients=training.accumulation > 1,
        device=device,
        precision=_precision(training.precision, device),
    )


def _precision(
    setting: Literal["auto", "float32", "bfloat16"], device: Literal["cpu", "cuda"]
) -> Literal["float32", "bfloat16"]:
    if setting != "auto":
        return setting
    if device == "cuda":
        return "bfloat16"
    import torch

    from iris_cli.training.precision import autocast_type

    return "float32" if autocast_type(setting, torch.device("cpu")) is None else "bfloat16"


def preprocessing_bytes(native_voxels: float, working_voxels: float) -> int:
    """Peak memory (bytes) of one process that preprocesses a case of these sizes."""
    return int(
        PROCESS_BYTES
        + BYTES_PER_NATIVE_VOXEL * native_voxels
        + BYTES_PER_WORKING_VOXEL * working_voxels
    )


def estimate_preprocessing(plan: Plan) -> int:
    """Most memory (bytes) that one worker of `iris preprocess` takes for any case of the plan.

    From the largest size along each axis, so it is more than enough where shapes differ much.
    """
    needed = [0]
    for planned in plan.sets.values():
        found = planned.fingerprint
        native = math.prod(found.shape_max)
        volume_mm3 = native * math.prod(found.spacing_mm_max)
        needed.append(preprocessing_bytes(native, volume_mm3 / planned.spacing_mm**3))
    return max(needed)


def count_parameters(config: NetworkConfig) -> int:
    """Trainable values of the network, built without memory for them."""
    import torch

    from iris_cli.network.iris_network import IrisNetwork

    with torch.device("meta"):
        network = IrisNetwork(config)
    return sum(parameter.numel() for parameter in network.parameters())
