"""What a training run is told: every number that shapes episodes, loss, optimiser and loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from iris_cli.files.hashing import hash_json
from iris_cli.files.schema import Record

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]

# These change speed, logging or what is saved when, never the weights.
WITHOUT_INFLUENCE = frozenset(
    {
        "checkpoint_every_s",
        "validate_every_steps",
        "validate_every_s",
        "log_every",
        "sheet_every",
        "workers",
        "recompute",
        "timeout_s",
    }
)


class Mixing(Record):
    """Shares of the three kinds of episode; they are divided by their sum."""

    real: Annotated[float, Field(ge=0.0)] = 0.60
    """Annotated classes and their unions."""
    pseudo: Annotated[float, Field(ge=0.0)] = 0.25
    """Supervoxel groups and thresholded regions of real scans, labels unused."""
    synthetic: Annotated[float, Field(ge=0.0)] = 0.15
    """Painted label maps and random shape scenes."""

    @model_validator(mode="after")
    def _some_kind(self) -> Mixing:
        if self.real + self.pseudo + self.synthetic <= 0:
            raise ValueError("at least one kind of episode needs a share above 0")
        return self


class OptimiserSettings(Record):
    """Update rule and learning rate."""

    name: Literal["lamb", "adamw"] = "lamb"
    """LAMB as in NETWORK.md 8, or AdamW."""
    lr: Positive = 2e-3
    """Learning rate after the warm-up (paper: 2e-3 for LAMB; AdamW wants about 5e-4)."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-5
    """Weight decay (paper)."""
    beta1: Share = 0.9
    """Decay of the first moment."""
    beta2: Share = 0.999
    """Decay of the second moment."""
    warmup: Annotated[int, Field(ge=0)] = 2000
    """Steps of linear warm-up from lr / warmup to lr (paper: 2 000 of 80 000)."""
    final_lr_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Learning rate at the last step as a part of lr; exponential in between."""


class GeometrySettings(Record):
    """How views are placed, scaled, turned and bent."""

    scale_min: Positive = 0.5
    """Lowest voxel edge of an episode as a multiple of the set's working spacing."""
    scale_max: Positive = 2.0
    """Highest voxel edge of an episode as a multiple of the set's working spacing."""
    scale_jitter: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.08
    """Each image of an episode is scaled by a further factor within 1 +- this."""
    anisotropy: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.08
    """Each axis is scaled by a further factor within 1 +- this."""
    rotation_deg: Annotated[float, Field(ge=0.0, le=180.0)] = 15.0
    """Largest rotation about each axis, degrees."""
    shear: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.05
    """Largest off-diagonal element of the shear matrix."""
    affine_probability: Share = 0.8
    """Share of images that are turned, sheared and stretched (all are scaled)."""
    elastic_probability: Share = 0.3
    """Share of images that are bent by a smooth field."""
    elastic: Annotated[float, Field(ge=0.0, le=0.1)] = 0.03
    """Largest standard deviation of the bending field's control points, as a part of the patch."""
    strong_factor: Annotated[float, Field(ge=1.0, le=3.0)] = 1.8
    """Two views of one image use rotation, shear, anisotropy and bending times this."""

    @model_validator(mode="after")
    def _scale_order(self) -> GeometrySettings:
        if self.scale_min > self.scale_max:
            raise ValueError(f"scale_min {self.scale_min} is above scale_max {self.scale_max}")
        return self


class IntensitySettings(Record):
    """Probability of each intensity change of an image, and its range."""

    noise_probability: Share = 0.2
    noise_sigma: Annotated[float, Field(ge=0.0)] = 0.15
    """Largest standard deviation of added noise, in units of the normalised image."""
    blur_probability: Share = 0.15
    blur_sigma: tuple[float, float] = (0.5, 1.2)
    """Range of the Gaussian's standard deviation, voxels."""
    brightness_probability: Share = 0.2
    brightness: tuple[float, float] = (0.75, 1.25)
    """Range of the factor."""
    shift_sigma: Annotated[float, Field(ge=0.0)] = 0.1
    """Standard deviation of the added constant (with the brightness factor)."""
    contrast_probability: Share = 0.2
    contrast: tuple[float, float] = (0.7, 1.35)
    """Range of the factor about the mean."""
    low_resolution_probability: Share = 0.15
    low_resolution: tuple[float, float] = (0.5, 1.0)
    """Range of the zoom before the image is brought back to its size."""
    gamma_probability: Share = 0.2
    inverted_gamma_probability: Share = 0.1
    gamma: tuple[float, float] = (0.7, 1.5)
    """Range of the exponent."""
    remap_probability: Share = 0.15
    """Share of episodes whose images all pass through one random, not monotone curve."""


class TaskSettings(Record):
    """How the task of an episode is put together."""

    references_max: Annotated[int, Field(ge=1, le=8)] = 3
    """1 to this many references."""
    one_reference_share: Share = 0.6
    """Share of episodes with a single reference; the rest is spread over 2 to references_max."""
    classes_max: Annotated[int, Field(ge=1, le=32)] = 13
    """1 to this many classes (13 as in the paper's code)."""
    class_drop: Share = 0.3
    """Probability that a class that could be asked for is left out."""
    union_probability: Share = 0.2
    """Share of episodes that ask for a union of classes as one more class."""
    same_image_share: Share = 0.1
    """Share of real episodes whose reference and query are two views of one image."""
    query_holds_class: Share = 2 / 3
    """Share of query crops placed on a class of the episode; the rest lie anywhere."""
    reference_voxels_min: Annotated[int, Field(ge=1)] = 8
    """A class with fewer voxels in a reference crop is not learned from it."""
    decoy_share: Share = 0.15
    """Share of real episodes with a mask beside the classes as one more class, half of them with it
    alone; it must not be answered with the classes."""
    body_share: Share = 0.25
    """Share of pseudo episodes that ask for ellipsoids placed without looking at the image (the
    rest: regions found in it)."""
    repaint_share: Share = 0.4
    """Share of synthetic episodes that repaint real label maps (the rest: random shapes)."""


class TrainingSettings(Record):
    """One training run. Defaults are METHOD.md's for a GPU; a plan overrides them with reasons."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of initial weights and, with the episode's index, of every episode."""
    steps: Annotated[int, Field(ge=1)] = 80_000
    """Optimiser steps of the whole run (paper: 80 000)."""
    batch: Annotated[int, Field(ge=1)] = 32
    """Episodes per step over all ranks (paper: 32)."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Most parts into which each rank cuts its episodes of a step, to save memory."""
    mixing: Mixing = Mixing()
    task: TaskSettings = TaskSettings()
    geometry: GeometrySettings = GeometrySettings()
    intensity: IntensitySettings = IntensitySettings()
    size_temperature: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """A set is drawn with weight x cases ** this: 0 all sets alike, 1 by number of cases."""
    optimiser: OptimiserSettings = OptimiserSettings()
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Decay per step of the averaged weights (shorter in the first steps)."""
    bank_ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Decay per sighting of a class' tokens in the memory bank (shorter at first; paper: 0.999)."""
    freeze: tuple[str, ...] = ()
    """Glob patterns of parameters that are not trained, as `encoder.*`; for runs with init_from."""
    clip: Positive = 1.0
    """Largest norm of the gradient (MASS code: 1)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast on devices that compute in it (CUDA, CPUs with AVX512-BF16, AMX)."""
    recompute: bool = False
    """Compute inner activations again in the backward pass: less memory, a third more time."""
    compile: bool = False
    """Let torch.compile fuse the network: faster after minutes of compiling, other roundings. It
    is left out, with a word, where there is no compiler."""
    skipped_in_a_row_max: Annotated[int, Field(ge=1)] = 20
    """So many non-finite steps in a row end the run."""
    checkpoint_every_s: Positive = 600.0
    """Seconds between checkpoints (one is also written when the run stops)."""
    validate_every_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between validations; 0: by time only."""
    validate_every_s: Positive = 1800.0
    """Seconds between validations where validate_every_steps is 0."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between lines of metrics.jsonl."""
    sheet_every: Annotated[int, Field(ge=0)] = 500
    """Steps between contact sheets of episodes, of which the first step has one; 0: none."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that make episodes, for each rank; 0: made by the training process itself."""
    timeout_s: Positive = 600.0
    """Seconds a rank waits for the others in a step before it gives up and says for whom."""

    @model_validator(mode="after")
    def _accumulation_fits(self) -> TrainingSettings:
        if self.accumulation > self.batch:
            raise ValueError(
                f"batch {self.batch} cannot be cut into {self.accumulation} parts: "
                "set accumulation to at most batch"
            )
        return self

    def content_hash(self) -> str:
        """Hash of everything that can change the weights (RELIABILITY.md, Receipt)."""
        return hash_json(self.model_dump(mode="json", exclude=set(WITHOUT_INFLUENCE)))


class CaseDeclared(Record):
    """What a raw set says of one view, under the names of a view's receipt."""

    subject: str
    modality: str
    not_annotated: tuple[str, ...] = ()


class CaseForTraining(Record):
    """One view of the store that may be trained on."""

    view: str
    """Name in the store: `<case>`, or `<case>@<channel>`."""
    labels: bool = True
    """Whether its label map may be used; otherwise only pseudo tasks see it."""
    declared: CaseDeclared | None = None
    """What its raw set says of it now; a view that was made with another one is refused. None: the
    raw set is not there."""


class LabelTable(Record):
    """What a plan says of the label values of a set, under the names of a view's receipt."""

    classes: dict[str, tuple[int, ...]]
    ignore_value: int | None = None
    absent_is_background: bool = True


class SetForTraining(Record):
    """One data set of a run."""

    name: str
    store: Path
    """Folder of the preprocessed views, `preprocessed/<set>/<key>`."""
    cases: tuple[CaseForTraining, ...]
    """The views to train on; nothing else in the store is opened."""
    weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the set when an episode's set is drawn."""
    pairing: Literal["subjects", "image"] = "subjects"
    """image: query and reference are always views of one image (instance labels, whose values mean
    nothing from one image to the next)."""
    held_out_classes: tuple[str, ...] = ()
    """Classes that training never sees as a target, in no union and no pseudo task."""
    symmetric: bool = False
    """Left and right may be exchanged freely."""
    mirror_pairs: tuple[tuple[str, str], ...] = ()
    """Classes that change places when an image is mirrored left to right."""
    table: LabelTable | None = None
    """Views that were preprocessed with another one are refused; None: the views' own is taken."""

    def description(self) -> dict[str, object]:
        """Part of the plan's fingerprint: without the place of the store, and without what only
        the receipts of the views are compared with: these are part of the data's fingerprint."""
        return self.model_dump(
            mode="json",
            exclude={"store": True, "table": True, "cases": {"__all__": {"declared"}}},
        )
