"""Small raw data sets on disk, made voxel by voxel, for the tests of planning and preparation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iris_cli.dataset.dataset_json import write_dataset_json
from iris_cli.volume.grid import Grid
from iris_cli.volume.writing import write_image, write_labels

SHAPE = (12, 16, 20)
SPACING_XYZ = (1.0, 1.0, 2.0)


def grid(shape: Sequence[int] = SHAPE, spacing_xyz: Sequence[float] = SPACING_XYZ) -> Grid:
    return Grid.from_spacing(shape, spacing_xyz, (5.0, -3.0, 7.0))


def blobs(seed: int, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """A label map with boxes 1 and 2, at places that depend on the seed."""
    z, y, x = np.random.default_rng(seed).integers(0, 3, 3)
    label = np.zeros(shape, np.uint8)
    label[2 + z : 8 + z, 2 + y : 9 + y, 2 + x : 9 + x] = 1
    label[3 + z : 7 + z, 4 + y : 8 + y, 10 + x : 15 + x] = 2
    return label


def picture(label: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 5, label.shape)
    return (100 + 40 * label.astype(float) + noise).astype(np.float32)


def make_set(
    folder: Path,
    cases: Sequence[str] = ("a", "b", "c", "d", "e"),
    *,
    channels: Mapping[str, str] | None = None,
    labels: Mapping[str, int | list[int]] | None = None,
    iris: Mapping[str, Any] | None = None,
    unlabelled: Sequence[str] = (),
    test: Sequence[str] = (),
    a_grid: Grid | None = None,
) -> Path:
    """A raw set of box phantoms; `test` cases go to imagesTs and labelsTs."""
    channels = channels or {"0": "MR"}
    a_grid = a_grid or grid()
    for number, name in enumerate([*cases, *unlabelled, *test]):
        split = "Ts" if name in test else "Tr"
        label = blobs(number, a_grid.shape_zyx)
        for channel in range(len(channels)):
            write_image(
                folder / f"images{split}" / f"{name}_{channel:04d}.nii.gz",
                picture(label, 10 * number + channel),
                a_grid,
            )
        if name not in unlabelled:
            write_labels(folder / f"labels{split}" / f"{name}.nii.gz", label, a_grid)
    write_dataset_json(
        folder,
        channel_names=channels,
        labels=labels or {"one": 1, "two": 2},
        num_training=len(cases),
        file_ending=".nii.gz",
        iris={**({"roles": dict.fromkeys(unlabelled, "unlabelled")} if unlabelled else {}),
              **(iris or {})},
    )  # fmt: skip
    return folder


def image_file(folder: Path, case: str, channel: int = 0) -> Path:
    return folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz"


def label_file(folder: Path, case: str) -> Path:
    return folder / "labelsTr" / f"{case}.nii.gz"
