"""A raw folder as nnU-Net's users have them, with everything that is legal and rare in one.

Two channels, `.nrrd`, 16-bit label values with gaps, regions that overlap, an ignore label, stored
left-posterior-superior with anisotropic voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iris_cli.dataset.dataset_json import write_dataset_json
from iris_cli.volume.grid import Grid
from iris_cli.volume.writing import write_image, write_labels

EDGE, CORE, CYST, IGNORED = 7, 301, 40000, 65535
LABELS: dict[str, int | list[int]] = {
    "whole": [EDGE, CORE], "core": CORE, "cyst": CYST, "ignore": IGNORED,
}  # fmt: skip
ORDER = [1, 2, 3]
SHAPE = (20, 26, 30)
AFFINE = np.array([[-1.5, 0, 0, 20], [0, -1.5, 0, 30], [0, 0, 2.5, -10], [0, 0, 0, 1.0]])


def odd_grid() -> Grid:
    return Grid(SHAPE, AFFINE)


def odd_labels(seed: int) -> np.ndarray:
    """Boxes: a core inside an edge, a cyst beside them, and a stripe that nobody judged."""
    z, y, x = np.random.default_rng(seed).integers(0, 3, 3)
    label = np.zeros(SHAPE, np.uint16)
    label[3 + z : 14 + z, 3 + y : 16 + y, 2 + x : 13 + x] = EDGE
    label[5 + z : 11 + z, 6 + y : 12 + y, 4 + x : 10 + x] = CORE
    label[4 + z : 12 + z, 5 + y : 14 + y, 17 + x : 25 + x] = CYST
    label[:2] = IGNORED
    return label


def odd_image(label: np.ndarray, seed: int) -> np.ndarray:
    bright = np.select([label == EDGE, label == CORE, label == CYST], [60.0, 120.0, 200.0], 20.0)
    return (bright + np.random.default_rng(seed).normal(0, 4, label.shape)).astype(np.float32)


def make_odd_set(
    folder: Path, cases: Sequence[str] = ("a", "b", "c", "d", "e"), test: Sequence[str] = ("q",)
) -> Path:
    for number, name in enumerate([*cases, *test]):
        split = "Ts" if name in test else "Tr"
        label = odd_labels(number)
        for channel in (0, 1):
            image = odd_image(label, 10 * number + channel) * (1 + channel)
            path = folder / f"images{split}" / f"{name}_{channel:04d}.nrrd"
            write_image(path, image, odd_grid())
        write_labels(folder / f"labels{split}" / f"{name}.nrrd", label, odd_grid())
    write_dataset_json(
        folder,
        channel_names={"0": "T1w", "1": "FLAIR"},
        labels=LABELS,
        num_training=len(cases),
        file_ending=".nrrd",
        regions_class_order=ORDER,
    )
    return folder
