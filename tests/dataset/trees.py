"""Small raw data sets and folders for tests: real files where voxels matter, empty ones else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

SHAPE_XYZ = (7, 6, 5)


def write_volume(
    path: Path,
    array_xyz: npt.NDArray[Any] | None = None,
    *,
    spacing: Sequence[float] = (1.0, 1.5, 2.0),
    origin: Sequence[float] = (0.0, 0.0, 0.0),
) -> Path:
    """Write a NIfTI volume with nibabel; by default a ramp of int16."""
    if array_xyz is None:
        array_xyz = np.arange(np.prod(SHAPE_XYZ), dtype=np.int16).reshape(SHAPE_XYZ)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array_xyz, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def label_array(values: Sequence[int], dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
    """A label map that holds each of the values in one voxel at least."""
    array = np.zeros(SHAPE_XYZ, dtype=dtype)
    array.reshape(-1)[1 : 1 + len(values)] = values
    return array


def touch(path: Path) -> Path:
    """An empty file: enough where only names are read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def raw_tree(
    folder: Path,
    train: Sequence[str] = ("a", "b"),
    test: Sequence[str] = (),
    *,
    channels: Sequence[str] = ("CT",),
    ending: str = ".nii.gz",
    labels: Mapping[str, Any] | None = None,
    iris: Mapping[str, Any] | None = None,
    **more: Any,
) -> Path:
    """A raw folder of empty files with a dataset.json in nnU-Net's version 2 form."""
    for split, names in (("Tr", train), ("Ts", test)):
        for name in names:
            for channel in range(len(channels)):
                touch(folder / f"images{split}" / f"{name}_{channel:04d}{ending}")
            touch(folder / f"labels{split}" / f"{name}{ending}")
    content: dict[str, Any] = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": labels or {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": len(train),
        "file_ending": ending,
        **more,
    }
    if iris is not None:
        content["iris"] = dict(iris)
    write_json(folder / "dataset.json", content)
    return folder
