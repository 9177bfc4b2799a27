"""Tiny preprocessed stores with a known geometry, written through preparation.store.

Every case is a dim box with two bright balls, `left` (value 1, level 2) at low x and `right`
(value 2, level 4) at high x, and a held-out bar (value 3, level 6).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.preparation.store import StoredCase, describe_classes, list_cases, write_case
from iris_cli.training.settings import (
    CaseForTraining,
    GeometrySettings,
    IntensitySettings,
    Mixing,
    OptimiserSettings,
    SetForTraining,
    TaskSettings,
    TrainingSettings,
)

SHAPE = (26, 30, 40)
TABLE = {"left": (1,), "right": (2,), "bar": (3,), "both": (1, 2)}
LEVELS = np.array([0.0, 2.0, 4.0, 6.0], np.float32)
FILL = -1.0

NO_INTENSITY = IntensitySettings(
    noise_probability=0,
    blur_probability=0,
    brightness_probability=0,
    contrast_probability=0,
    low_resolution_probability=0,
    gamma_probability=0,
    inverted_gamma_probability=0,
    remap_probability=0,
)


def label_map(seed: int) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE)
    label = np.zeros(SHAPE, np.uint8)
    for value, x_centre in ((1, 10), (2, 29)):
        centre = np.array([12, 14, x_centre]) + rng.integers(-1, 2, 3)
        distance = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2
        label[distance <= 5**2] = value
    label[20:23, 5:25, 18:21] = 3
    return label


def write_view(
    folder: Path,
    name: str,
    *,
    seed: int = 0,
    subject: str | None = None,
    role: str = "train",
    labelled: bool = True,
    label: npt.NDArray[Any] | None = None,
    not_annotated: tuple[str, ...] = (),
    ignore_value: int | None = None,
    table: dict[str, tuple[int, ...]] | None = None,
    levels: npt.NDArray[np.float32] | None = None,
) -> None:
    label = label_map(seed) if label is None else label
    noise = 0.1 * np.random.default_rng(seed + 1000).standard_normal(label.shape)
    bright = LEVELS[np.minimum(label, 3)] if levels is None else levels[label]
    image = (bright + noise).astype(np.float32)
    classes = describe_classes(label, table or TABLE, seed=name) if labelled else {}
    stored = StoredCase(
        case=name,
        set=folder.name,
        subject=subject or name,
        role=role,  # type: ignore[arg-type]
        channel=0,
        modality="other",
        spacing_mm=1.0,
        grid={},
        shape=label.shape,
        fill=FILL,
        nonfinite=0,
        statistics={},
        classes=classes,
        not_annotated=not_annotated,
        ignore_value=ignore_value,
        labelled=labelled,
    )
    write_case(folder, stored, image, label if labelled else None, inputs={}, run={})


def balls(folder: Path, *, cases: int = 4, **settings: Any) -> SetForTraining:
    """A set of `cases` subjects with the bar held out, unless told otherwise."""
    store = folder / "balls"
    for i in range(cases):
        write_view(store, f"case_{i}", seed=i)
    return whole(store, **{"held_out_classes": ("bar",), **settings})


def whole(store: Path, **settings: Any) -> SetForTraining:
    """Every view of a store, as a set that is named like its folder."""
    views = tuple(CaseForTraining(view=name) for name in list_cases(store))
    return SetForTraining(name=store.name, store=store, cases=views, **settings)


def training(**changes: Any) -> TrainingSettings:
    """Settings for runs of a few steps of a tiny network."""
    values: dict[str, Any] = {
        "steps": 6,
        "batch": 2,
        "optimiser": OptimiserSettings(warmup=2),
        "task": TaskSettings(decoy_share=0, classes_max=3, references_max=2),
        "log_every": 2,
        "precision": "float32",
    }
    return TrainingSettings(**{**values, **changes})


def only(kind: str) -> Mixing:
    return Mixing(**{name: float(name == kind) for name in ("real", "pseudo", "synthetic")})


def still() -> GeometrySettings:
    """No augmentation of geometry."""
    return GeometrySettings(
        scale_min=1,
        scale_max=1,
        scale_jitter=0,
        affine_probability=0,
        elastic_probability=0,
    )
