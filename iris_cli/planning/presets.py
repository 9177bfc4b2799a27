"""Presets and recipes by name, each choice with a reason.

A preset is a network, its patch and a schedule that fit a kind of machine; a recipe says how
episodes are made and learned from. Any preset goes with any recipe: the recipe's settings replace
those of the preset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from pydantic import Field, model_validator

from iris_cli.errors import UsageError
from iris_cli.files.schema import Record, nearest
from iris_cli.network.config import NetworkConfig, Stem
from iris_cli.training.settings import (
    GeometrySettings,
    IntensitySettings,
    Mixing,
    OptimiserSettings,
    TaskSettings,
    TrainingSettings,
)

Choice = TypeVar("Choice")


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
            # By the estimate, with 3 references and 13 classes: 27 GiB an episode. Recomputing
            # takes 10 GiB for one and 18 for two, and a third more time for either.
            training=TrainingSettings(accumulation=32),
            reason=(
                "the paper's widths, patch, spacing and schedule, episode by episode, for GPUs of "
                "40 GB or more (with training.recompute=true: of 16 GB or more)"
            ),
        ),
    }
)
DEFAULT_PRESET = "small"


@dataclass(frozen=True)
class Recipe:
    """How episodes are made and learned from.

    preset: the network it is meant for, taken where none is named. settings: fields of
    `TrainingSettings` by name, each with its value and the reason for it.
    """

    preset: str
    reason: str
    settings: Mapping[str, tuple[Any, str]]

    def applied_to(self, chosen: Preset) -> Preset:
        """The preset with the settings of this recipe."""
        values = {name: value for name, (value, _) in self.settings.items()}
        training = chosen.training.model_copy(update=values)
        return chosen.model_copy(update={"training": training})

    def reasons(self) -> dict[str, str]:
        """Key of the plan -> reason."""
        return {f"training.{name}": reason for name, (_, reason) in self.settings.items()}


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "robust": Recipe(
            preset=DEFAULT_PRESET,
            reason="tasks of all three kinds under strong augmentation, for images of any source",
            settings=MappingProxyType(
                {
                    "mixing": (
                        Mixing(),
                        "pseudo and synthetic tasks beside annotated classes: a network that saw "
                        "annotated classes alone knows them by heart instead of asking the mask",
                    ),
                    "geometry": (
                        GeometrySettings(),
                        "scales from half to twice the working spacing, rotation, shear, bending: "
                        "references and queries of a user match less than those of one data set",
                    ),
                    "intensity": (
                        IntensitySettings(),
                        "noise, blur, low resolution, gamma and curves that turn contrast over: "
                        "modalities and scanners that no training set has",
                    ),
                }
            ),
        ),
        "paper": Recipe(
            preset="base",
            reason="training as the paper describes it (Show and Segment, CVPR 2025)",
            settings=MappingProxyType(
                {
                    "mixing": (
                        Mixing(real=1.0, pseudo=0.0, synthetic=0.0),
                        "annotated classes only, query and reference of two subjects of one set",
                    ),
                    "task": (
                        TaskSettings(
                            references_max=1,
                            one_reference_share=1.0,
                            classes_max=13,
                            union_probability=0.0,
                            decoy_share=0.0,
                            same_image_share=0.0,
                            query_holds_class=0.5,
                        ),
                        "one reference, up to 13 classes (the code), some of them dropped at "
                        "random; half of the query crops lie anywhere, the others on a class, "
                        "where the paper crops at random or about the centre",
                    ),
                    "geometry": (
                        GeometrySettings(
                            scale_min=1.0,
                            scale_max=1.0,
                            scale_jitter=0.1,
                            anisotropy=0.0,
                            rotation_deg=10.0,
                            shear=0.0,
                            elastic_probability=0.0,
                            strong_factor=1.0,
                        ),
                        "scale 0.9 to 1.1, rotation up to 10 degrees, nothing is bent",
                    ),
                    "intensity": (
                        IntensitySettings(
                            noise_probability=0.2,
                            noise_sigma=0.02,
                            blur_probability=0.2,
                            blur_sigma=(0.7, 1.3),
                            brightness_probability=0.2,
                            brightness=(0.9, 1.1),
                            shift_sigma=0.1,
                            contrast_probability=0.2,
                            contrast=(0.8, 1.2),
                            low_resolution_probability=0.0,
                            gamma_probability=0.2,
                            inverted_gamma_probability=0.0,
                            gamma=(0.8, 1.2),
                            remap_probability=0.0,
                        ),
                        "ranges of the paper, each change with probability 0.2 as in the code",
                    ),
                    "optimiser": (
                        OptimiserSettings(name="lamb", lr=2e-3, weight_decay=1e-5, warmup=2000),
                        "LAMB, 2e-3 after 2000 steps of warm-up, exponential decay, weight decay "
                        "1e-5",
                    ),
                    "steps": (80_000, "80 000 iterations"),
                    "batch": (32, "32 episodes a step, over all devices"),
                }
            ),
        ),
    }
)
DEFAULT_RECIPE = "robust"


def recipe(name: str) -> Recipe:
    """The recipe of this name; raises UsageError with the nearest known name."""
    return _named(RECIPES, name, "recipe")


def preset(name: str) -> Preset:
    """The preset of this name; raises UsageError with the nearest known name."""
    return _named(PRESETS, name, "preset")


def _named(known: Mapping[str, Choice], name: str, what: str) -> Choice:
    if name not in known:
        guess = nearest(name, list(known))
        raise UsageError(
            f"there is no {what} {name!r}",
            expected=", ".join(known),
            fix=f"did you mean {guess!r}?" if guess else "pick one of them",
        )
    return known[name]
