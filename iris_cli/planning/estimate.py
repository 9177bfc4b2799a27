"""How much memory preprocessing and training by a plan will want: from sizes alone, said early."""

from __future__ import annotations

import math

from iris_cli.files.schema import Record
from iris_cli.network.config import NetworkConfig
from iris_cli.planning.plan import Plan

# Float32 weights, gradient, two moments and the averaged weights.
BYTES_PER_PARAMETER = 20
# Maps kept for the backward pass per width and level: two or three units of norm, activation and
# convolution on the way down, twice the width on the way up.
MAPS_PER_BLOCK = 9
BYTES_PER_VALUE = 4

# Measured on 512 x 512 x 300 (int16) and 256 x 256 x 200 (float32) at working spacings from 0.8 to
# 3 mm: never more than 5 % above this, up to 15 % below it. Per native voxel the image, its
# normalised form and one copy; per working voxel image and label map with their intermediates.
PROCESS_BYTES = 340_000_000
BYTES_PER_NATIVE_VOXEL = 12.0
BYTES_PER_WORKING_VOXEL = 14.0


class TrainingEstimate(Record):
    """Bytes: of the state (weights to moments), and of one episode's maps for backward."""

    parameters: int
    state_bytes: int
    episode_bytes: int

    @property
    def gib(self) -> float:
        """State and one episode at a time, GiB."""
        return (self.state_bytes + self.episode_bytes) / 2**30


def estimate_training(plan: Plan) -> TrainingEstimate:
    """Memory of training with one episode at a time (accumulation = batch), fp32."""
    parameters = count_parameters(plan.network)
    passes = 1 + plan.training.task.references_max
    maps = sum(
        MAPS_PER_BLOCK * max(blocks, 1) * width * (plan.patch / plan.network.fold / 2**level) ** 3
        for level, (width, blocks) in enumerate(
            zip(plan.network.channels, (1, *plan.network.blocks), strict=True)
        )
    )
    return TrainingEstimate(
        parameters=parameters,
        state_bytes=parameters * BYTES_PER_PARAMETER,
        # The query goes up again with doubled widths, which weighs about as much as two passes.
        episode_bytes=math.ceil(maps * (passes + 2) * BYTES_PER_VALUE),
    )


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
