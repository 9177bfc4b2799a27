"""Miniature archives: what a converter must make of a tree that is laid out as the real one.

A builder writes the tree below a folder and gives a `Truth` per case: arrays in canonical RAS+
order (x to the patient's right). Stored order, direction and file format are the builder's choice,
through nibabel and SimpleITK, so that the truth does not come from the code under test.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import SimpleITK
from nibabel.orientations import axcodes2ornt, ornt_transform

SHAPE = (10, 9, 8)
RIGHT, MIDDLE, LEFT = 8, 5, 1
MARKER = 3000
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Truth:
    """What a case must be. images, label: canonical (x, y, z); folder: Tr or Ts."""

    images: tuple[Array, ...]
    label: Array | None
    subject: str
    folder: str = "Tr"
    role: str = "train"
    not_annotated: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Miniature:
    """A converter's name, the builder of its tree, and what must be reported.

    says: parts of the deviations. failed: cases that must fail. author: roles by case of the
    author's split, where there is one.
    """

    name: str
    build: Callable[[Path], Mapping[str, Truth]]
    says: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    author: Mapping[str, str] | None = None
    spacing: tuple[float, float, float] = (1.0, 1.5, 2.0)

    def __str__(self) -> str:
        return self.name


def anatomy(labels: Mapping[str, Any], without: Iterable[str] = ()) -> Array:
    """A label map with a voxel of every class on its side of the patient, (x, y, z) RAS+."""
    array = np.zeros(SHAPE, np.uint8)
    for name, value in labels.items():
        if name not in without:
            array[_side(name), value % SHAPE[1], value // SHAPE[1] + 2] = value
    return array


def image(seed: int = 0, *, low: int = -900) -> Array:
    """Noise with a marker on the patient's right, (x, y, z) RAS+."""
    rng = np.random.default_rng(seed)
    array = rng.integers(low, low + 1500, SHAPE).astype(np.int16)
    array[RIGHT, 4, 4] = MARKER
    return array


def mr(seed: int = 0) -> Array:
    """The same without negative numbers."""
    return image(seed, low=0)


def _side(name: str) -> int:
    words = name.replace("_", " ").split()
    if "ventricle" in words:
        return MIDDLE
    if "right" in words or name == "liver":
        return RIGHT
    return LEFT if "left" in words or name == "spleen" else MIDDLE


def ras_affine(spacing: Iterable[float] = (1.0, 1.5, 2.0), origin: float = -7.0) -> Array:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def write(
    path: Path,
    canonical: Array,
    axes: str = "RAS",
    *,
    affine: Array | None = None,
    claimed: Array | None = None,
    spacing: Iterable[float] = (1.0, 1.5, 2.0),
) -> Path:
    """Write a canonical array in the axis order `axes`.

    affine: canonical one. claimed: what the header says instead, wrong or not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    right = nibabel.Nifti1Image(canonical, ras_affine(spacing) if affine is None else affine)
    turn = ornt_transform(axcodes2ornt(("R", "A", "S")), axcodes2ornt(tuple(axes)))
    turned = right.as_reoriented(turn)
    stored = np.ascontiguousarray(turned.dataobj)
    header = turned.affine if claimed is None else claimed
    nibabel.save(nibabel.Nifti1Image(stored, header), path)
    return path


def companion(path: Path) -> None:
    """A Mac's companion of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")


def write_dicom(
    folder: Path,
    canonical: Array,
    *,
    modality: str = "MR",
    spacing: tuple[float, float, float] = (1.5, 1.5, 3.0),
    names: str = "IMG-0001-{:05d}.dcm",
    feet_first: bool = True,
    tags: Mapping[str, str] | None = None,
) -> list[Path]:
    """A DICOM series of axial slices: rows to posterior, columns to the patient's left.

    names: numbered from 1 in the order written; feet_first: that order is from inferior up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = np.ascontiguousarray(canonical[::-1, ::-1].transpose(2, 1, 0))
    order = range(len(stored)) if feet_first else range(len(stored))[::-1]
    uid = f"1.2.826.0.1.{zlib.crc32(str(folder).encode())}"
    written = []
    for number, z in enumerate(order, start=1):
        slice_image = SimpleITK.GetImageFromArray(stored[z])
        slice_image.SetSpacing(spacing[:2])
        values = {
            "0008|0060": modality,
            "0020|000e": uid,
            "0020|000d": f"{uid}.1",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0032": f"-4\\-5\\{z * spacing[2]:g}",
            "0018|0050": f"{spacing[2]:g}",
            "0020|0013": str(number),
            **(tags or {}),
        }
        for tag, value in values.items():
            slice_image.SetMetaData(tag, value)
        writer = SimpleITK.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(folder / names.format(number)))
        writer.Execute(slice_image)
        written.append(folder / names.format(number))
    return written


def write_png(path: Path, rows_columns: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(rows_columns.astype(np.uint8)), str(path))
    return path


def read_canonical(path: Path) -> tuple[Array, Array]:
    """Voxels (x, y, z) in RAS+ order and the affine, as nibabel sees them."""
    found: Any = nibabel.as_closest_canonical(nibabel.load(path))
    return np.asarray(found.dataobj), found.affine
