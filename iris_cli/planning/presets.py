"""Network presets by name: sizes that fit a kind of machine, each with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

from pydantic import Field, model_validator

from iris_cli.errors import UsageError
from iris_cli.files.schema import Record, nearest
from iris_cli.network.config import NetworkConfig, Stem
from iris_cli.training.settings import OptimiserSettings, TaskSettings, TrainingSettings


class Preset(Record):
    """What a plan takes over before it looks at the data.

    patch: edge in voxels. s0: the model's own working spacing, mm.
    """

    network: NetworkConfig
    patch: int
    s0: Annotated[float, Field(gt=0.0)]
    training: TrainingSettings
    reason: str

    @model_validator(mode="after")
    def _patch_fits(self) -> Preset:
        check_patch(self.network, self.patch)
        return self


def check_patch(network: NetworkConfig, patch: int) -> None:
    """Raise ValueError where the network cannot work on this patch."""
    multiple = network.size_multiple
    if patch < multiple * 2 or patch % multiple:
        raise ValueError(
            f"patch {patch} does not fit the network: use a multiple of {multiple}, "
            f"at least {2 * multiple}"
        )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "tiny": Preset(
            network=NetworkConfig.tiny(),
            patch=32,
            s0=6.0,
            training=TrainingSettings(
                steps=20,
                batch=1,
                task=TaskSettings(classes_max=3),
                optimiser=OptimiserSettings(warmup=2),
            ),
            reason="the smallest sensible network: it shows in seconds that everything works",
        ),
        "small": Preset(
            network=NetworkConfig(
                channels=(16, 32, 64, 64, 64), blocks=(1, 1, 1, 1), stem=Stem.HALF
            ),
            patch=64,
            s0=3.0,
            training=TrainingSettings(
                steps=20_000,
                batch=4,
                optimiser=OptimiserSettings(name="adamw", lr=1e-3, warmup=50),
            ),
            reason=(
                "trains on a CPU or any GPU: half-resolution stem, 4 M parameters, the field of "
                "view of the paper's patch (128 voxels of 1.5 mm) in 64 voxels of 3 mm, and AdamW, "
                "which left the plateau of the first steps sooner than LAMB in small batches"
            ),
        ),
        "base": Preset(
            network=NetworkConfig(channels=(32, 64, 128, 256, 512)),
            patch=128,
            s0=1.5,
            training=TrainingSettings(),
            reason="the paper's widths, patch, spacing and schedule, for GPUs of 40 GB or more",
        ),
    }
)
DEFAULT_PRESET = "small"


def preset(name: str) -> Preset:
    """The preset of this name; raises UsageError with the nearest known name."""
    if name not in PRESETS:
        guess = nearest(name, list(PRESETS))
        raise UsageError(
            f"there is no preset {name!r}",
            expected=", ".join(PRESETS),
            fix=f"did you mean {guess!r}?" if guess else "pick one of them",
        )
    return PRESETS[name]
