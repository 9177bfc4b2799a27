"""What every kind of episode hands over: where to look, at what, and for which classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from iris_cli.training.catalogue import TrainingSet
from iris_cli.training.looks import Look

Kind = Literal["real", "pseudo", "synthetic"]


@dataclass(frozen=True)
class Draft:
    """What an episode asks and shows, query first, then references.

    keys: per class its entry in the memory bank, `<set>/<class>`, or None (training.bank).
    looks: one per image, classes in the order of `names`.
    annotated: (1 + R, K) bool, whether the class was annotated in that image.
    strong: whether the images are views of one image, to be changed strongly.
    """

    kind: Kind
    source: str
    names: tuple[str, ...]
    keys: tuple[str | None, ...]
    looks: tuple[Look, ...]
    annotated: npt.NDArray[np.bool_]
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
