"""What every kind of episode hands over before intensities are changed and classes checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from iris_cli.training.catalogue import TrainingSet

Kind = Literal["real", "pseudo", "synthetic"]


@dataclass(frozen=True)
class Draft:
    """Images and masks of an episode, query first, then references.

    images: each (P, P, P) float32. masks: each (K, P, P, P) bool, classes in the order of `names`.
    annotated: (1 + R, K) bool, whether the class was annotated in that image.
    counted: (P, P, P) bool, voxels of the query that carry loss.
    strong: whether the images are views of one image, to be changed strongly.
    """

    kind: Kind
    source: str
    names: tuple[str, ...]
    images: list[npt.NDArray[np.float32]]
    masks: list[torch.Tensor]
    annotated: npt.NDArray[np.bool_]
    counted: torch.Tensor
    strong: bool


def draw_scale(rng: np.random.Generator, low: float, high: float) -> float:
    """Log-uniform in [low, high]."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def draw_count(rng: np.random.Generator, most: int, one_share: float) -> int:
    """1 with probability `one_share`, else uniform in 2..most."""
    if most == 1 or rng.random() < one_share:
        return 1
    return int(rng.integers(2, most + 1))


def draw_set(
    rng: np.random.Generator, sets: Sequence[TrainingSet], temperature: float
) -> TrainingSet:
    """A set, with probability weight x cases ** temperature."""
    weights = np.array([s.settings.weight * len(s.cases) ** temperature for s in sets])
    return sets[int(rng.choice(len(sets), p=weights / weights.sum()))]
