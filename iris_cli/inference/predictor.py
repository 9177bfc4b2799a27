"""`Predictor`: a model and a task, loaded once, and what they make of one volume after the other.

Workers of the command line hold one and give it files; Python users hold one and give it images in
memory. Both get the same labels.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import numpy as np
import numpy.typing as npt
import torch

from iris_cli.errors import EnvironmentProblem
from iris_cli.inference.case import Prediction, check_model, kept_classes, predict_volume
from iris_cli.inference.memory import NO_LIMITS, Limits, Means, case_of, in_file
from iris_cli.inference.own_tokens import Comparison
from iris_cli.inference.streaming import How, MakeLabels, OnScores
from iris_cli.model.model import Model
from iris_cli.network.precision import Precision
from iris_cli.task.task_file import Task, TaskClass
from iris_cli.volume.memory_images import Image, open_image
from iris_cli.volume.reading import AssumedSpacing, Volume

Listen = Callable[[MakeLabels], OnScores | None]
"""Who wants the logits of one attempt, given what makes arrays on the native grid."""


def _nobody(_: MakeLabels) -> OnScores | None:
    return None


@dataclass(frozen=True)
class InMemoryPrediction(Generic[Image]):
    """Labels of an image in memory.

    labels: of the kind and geometry of the image, the smallest integer type. names: label value ->
    class. voxels: class -> voxels. confidence: class -> mean sigmoid of the logit that won, of
    classes that were found (not calibrated; empty for profile mass-1). flags: what to look at.
    """

    labels: Image
    names: dict[int, str]
    voxels: dict[str, int]
    confidence: dict[str, float]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Predictor:
    """A model with a task, ready to compute; `iris_cli.workflows.load_predictor` makes one.

    classes: names to keep, None for all. device: cpu or cuda:N, where the model is. precision: of
    the computation. skip_empty: see `streaming.How`. limits: of memory. comparison: of what is
    found with the references, where labels become files.
    """

    model: Model
    task: Task
    classes: tuple[str, ...] | None = None
    device: str = "cpu"
    precision: Precision = "fp32"
    skip_empty: bool = False
    window_batch: int = 1
    limits: Limits = NO_LIMITS
    comparison: Comparison = Comparison.NONE

    def __post_init__(self) -> None:
        check_model(self.model, self.task.header)
        kept_classes(self.task.header, self.classes)

    @property
    def entries(self) -> list[TaskClass]:
        """The classes that are kept, in the order of the task."""
        header = self.task.header
        return [header.classes[index] for index in kept_classes(header, self.classes)]

    @property
    def names(self) -> dict[int, str]:
        """Label value -> class, of the classes that are kept."""
        return {entry.value: entry.name for entry in self.entries}

    def predict(
        self,
        image: Image,
        *,
        affine: npt.ArrayLike | None = None,
        spacing_xyz: AssumedSpacing = None,
    ) -> InMemoryPrediction[Image]:
        """Segment an image in memory; the labels come back as an image of the same kind.

        image: numpy array (z, y, x), nibabel image or SimpleITK image. affine: (4, 4), voxel
        indices (x, y, z) to RAS+ mm; spacing_xyz: mm. An array needs one of them; a nibabel image
        only where its header has no position.
        raises UsageError for another kind of image, DataRefused for what is no 3-D volume of finite
        numbers, EnvironmentProblem where it does not fit the memory it may take.
        """
        opened = open_image(image, affine=affine, spacing_xyz=spacing_xyz)
        found = Sweep(self, opened.volume, Path(tempfile.gettempdir())).run()
        labels = opened.like(found.labels, self.names)
        return InMemoryPrediction(labels, self.names, found.voxels, found.confidence, found.flags)


class Sweep:
    """The labels of one volume, by means that fit the memory it may take.

    folder: of arrays that are kept in a file. listen: asked at every attempt who wants the logits.
    write_voxel: bytes of memory that writing more than labels takes for each voxel.
    raises EnvironmentProblem where it fits by no means.
    """

    def __init__(
        self,
        predictor: Predictor,
        volume: Volume,
        folder: Path,
        listen: Listen = _nobody,
        write_voxel: int = 0,
    ) -> None:
        self._predictor, self._volume = predictor, volume
        self._folder, self._listen = folder, listen
        self.first = Means(window_batch=predictor.window_batch)
        self._case = case_of(
            predictor.model,
            predictor.task,
            volume.grid,
            volume.array.nbytes,
            predictor.device,
            predictor.precision,
            write_voxel=write_voxel,
        )
        self._limits = predictor.limits.with_free_memory_of(predictor.device)
        self.means, self.need = self._case.fit(self.first, self._limits)

    def run(self) -> Prediction:
        """Where the device runs out of memory all the same, one rung further down, once more."""
        rungs: Sequence[Means] = [*self._case.rungs(self.first)]
        while True:
            try:
                return self._try(self.means)
            except torch.OutOfMemoryError as error:
                below = rungs[rungs.index(self.means) + 1 :]
                if not below:
                    raise EnvironmentProblem(
                        "the device has not enough memory for this query",
                        found=str(error).partition(".")[0],
                        fix="use a device with more memory, or --device cpu",
                    ) from error
                self.means = below[0]
            torch.cuda.empty_cache()

    def _try(self, means: Means) -> Prediction:
        predictor = self._predictor
        make: MakeLabels = np.zeros
        if means.labels_in_file:
            make = functools.partial(in_file, self._folder)
        how = How(
            device=predictor.device,
            precision=predictor.precision,
            skip_empty=predictor.skip_empty,
            means=means,
            make_labels=make,
            on_scores=self._listen(make),
        )
        return predict_volume(
            predictor.model,
            predictor.task,
            self._volume,
            classes=predictor.classes,
            how=how,
            comparison=predictor.comparison,
        )
