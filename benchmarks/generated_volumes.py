"""Raw data sets of a given size for benchmarks, made from a seed: ellipsoids in noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from iris_cli.dataset.dataset_json import write_dataset_json
from iris_cli.volume.grid import Grid
from iris_cli.volume.writing import write_image, write_labels

Shape = tuple[int, int, int]


def write_set(
    folder: Path,
    shape_zyx: Shape,
    spacing_zyx: tuple[float, float, float],
    *,
    cases: int,
    classes: int,
    modality: str = "CT",
    first: int = 1,
) -> Path:
    """A raw folder in nnU-Net's layout whose cases show `classes` ellipsoids, and nothing else.

    first: number of the first case; equal numbers give equal voxels.
    """
    grid = Grid.from_spacing(shape_zyx, spacing_zyx[::-1], (0.0, 0.0, 0.0))
    for number in range(first, first + cases):
        name = f"case_{number:03d}"
        rng = np.random.default_rng([number, 20261124])
        labels = _ellipsoids(rng, shape_zyx, classes)
        write_labels(folder / "labelsTr" / f"{name}.nii.gz", labels, grid)
        image = _picture(rng, labels)
        write_image(folder / "imagesTr" / f"{name}_0000.nii.gz", image, grid, dtype=np.int16)
    write_dataset_json(
        folder,
        channel_names={"0": modality},
        labels={f"class_{k:03d}": k for k in range(1, classes + 1)},
        num_training=cases,
        file_ending=".nii.gz",
    )
    return folder


def _ellipsoids(rng: np.random.Generator, shape: Shape, classes: int) -> np.ndarray:
    """(z, y, x) uint8 or uint16; later classes lie over earlier ones, so many of them touch."""
    size = np.array(shape)
    labels = np.zeros(shape, np.uint8 if classes < 256 else np.uint16)
    for value in range(1, classes + 1):
        radius = np.maximum(size * rng.uniform(0.04, 0.16, 3), 2.0)
        centre = size * rng.uniform(0.2, 0.8, 3)
        low = np.maximum(np.floor(centre - radius).astype(int), 0)
        high = np.minimum(np.ceil(centre + radius).astype(int) + 1, size)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        z, y, x = (
            ((np.arange(a, b) - c) / r) ** 2
            for a, b, c, r in zip(low, high, centre, radius, strict=True)
        )
        inside = z[:, None, None] + y[:, None] + x < 1
        labels[box][inside] = value
    return labels


def _picture(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """int16 HU: air outside of a cylinder of tissue, a level for every class, noise."""
    _, size_y, size_x = labels.shape
    y, x = (((np.arange(n) - n / 2) / (0.45 * n)) ** 2 for n in (size_y, size_x))
    body = y[:, None] + x < 1
    levels = np.concatenate([[30.0], rng.uniform(-80.0, 400.0, int(labels.max()))])
    image = np.empty(labels.shape, np.int16)
    for plane, target in zip(labels, image, strict=True):
        tissue = np.where(body | (plane > 0), levels[plane], -1000.0)
        target[...] = tissue + rng.normal(0.0, 20.0, plane.shape)
    return image
