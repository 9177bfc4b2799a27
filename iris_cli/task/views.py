"""What a profile decides about references: the protocol that `encoding` works by.

A *view* is one look of the encoder at a reference: a crop of the model's patch and the masks of the
classes that are read in it. `iris_views` and `mass_views` hold the two profiles' ways of choosing
them; `encoding.RECIPES` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from iris_cli.dataset.classes import Modality
from iris_cli.network.precision import Precision
from iris_cli.task.spacing import ReferenceSize, SpacingChoice
from iris_cli.volume.reading import Volume

TaskModality = Literal["ct", "other", "auto"]
"""As a task notes it; `auto` leaves it to the voxels of every crop and query."""

Array = np.ndarray[Any, np.dtype[Any]]
Values = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class View:
    """One crop of a reference.

    image: (Z, Y, X) float32, as the network reads it. weights: class -> how much its tokens from
    here count among those of its other views. masks: (K, Z, Y, X) of some of these classes, bool,
    or float32 in [0, 1].
    """

    image: npt.NDArray[np.float32]
    weights: Mapping[str, float]
    masks: Callable[[Sequence[str]], Array]


@dataclass(frozen=True)
class ClassViews:
    """What the tokens of one class rest on; see `TaskClass`."""

    crops: int
    voxels: int
    coverage: float
    soft: bool = False


@dataclass(frozen=True)
class ReferenceViews:
    """The views of one reference, made one after the other, and the classes that are in them."""

    views: Iterator[View]
    classes: Mapping[str, ClassViews]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class LabelledReference:
    """One reference: image and label map, and the classes to look at by their values.

    number: by which warnings call it. modality: as the task says.
    """

    number: int
    image: Volume
    labels: Volume
    values: Values
    modality: TaskModality


class ReferenceRecipe(Protocol):
    """How models of one profile are shown references."""

    strict: bool
    """Whether a label map on another grid than its image, and a class that no reference shows, are
    refused; if not, the one is read where it lies, the other left out, and both are noted."""

    def modality(self, image: Volume, declared: Modality | None) -> TaskModality:
        """What a reference is, where the user does not say it. declared: by its data set."""

    def spacing(self, s0: float, patch: int, references: Sequence[ReferenceSize]) -> SpacingChoice:
        """The working spacing, where the user does not say it."""

    def precision(self, wanted: Precision, device: str) -> Precision:
        """What the network computes in, for references and queries alike."""

    def views(
        self, reference: LabelledReference, spacing_mm: float, patch: tuple[int, int, int]
    ) -> ReferenceViews:
        """Where the encoder looks; a class without a voxel there is missing in the answer."""
