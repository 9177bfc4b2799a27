"""Volumes for the tests of this room, and files written by other programs than iris."""

from __future__ import annotations

import gzip
import itertools
import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from hypothesis import strategies as st

from iris_cli.volume.grid import Grid

SPACING_XYZ = (0.7, 1.1, 3.0)
SHAPE_ZYX = (4, 5, 6)


def rotation(axis: tuple[float, float, float], degrees: float) -> np.ndarray[Any, Any]:
    """Rodrigues' formula."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(degrees)
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def forty_eight_axes() -> list[np.ndarray[Any, Any]]:
    """All permutations and flips of three axes, as matrices whose columns are the file's axes."""
    return [
        np.eye(3)[:, list(order)] * np.array(signs)
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1.0, -1.0), repeat=3)
    ]


TILTS = {
    "straight": np.eye(3),
    "oblique": rotation((1, 2, -1), 17),
    "steep": rotation((-1, 1, 3), 40),
}


def oriented_grid(
    axes: np.ndarray[Any, Any],
    tilt: np.ndarray[Any, Any],
    shape_zyx: tuple[int, int, int] = SHAPE_ZYX,
    spacing_xyz: tuple[float, float, float] = SPACING_XYZ,
) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = tilt @ axes * np.array(spacing_xyz)
    affine[:3, 3] = (-31.0, 12.5, 240.0)
    return Grid(shape_zyx, affine)


def voxel_centres_mm(grid: Grid) -> np.ndarray[Any, Any]:
    """(Z, Y, X, 3) RAS+ mm."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape_zyx), indexing="ij"), axis=-1)
    return np.asarray(grid.voxel_to_world(index[..., ::-1]))


def some_labels(shape_zyx: tuple[int, int, int] = SHAPE_ZYX, top: int = 7) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).integers(0, top, shape_zyx).astype(np.uint8)


def save_nifti(path: Path, stored_zyx: np.ndarray[Any, Any], affine: Any, **fields: Any) -> Path:
    """A NIfTI-1 file as nibabel writes it, sform and qform set; `fields` overrides its header."""
    image = nibabel.Nifti1Image(stored_zyx.T, affine)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    if fields:
        # Behind nibabel's back: it makes the fields of an image consistent when it saves.
        packed = path.name.endswith(".gz")
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        header = nibabel.Nifti1Header(content[:348], check=False)
        for name, value in fields.items():
            header[name] = value
        content = header.binaryblock + content[348:]
        path.write_bytes(gzip.compress(content) if packed else content)
    return path


def itk_image(stored: np.ndarray[Any, Any], affine: np.ndarray[Any, Any]) -> Any:
    """A SimpleITK image of a stored array; the affine is RAS+."""
    import SimpleITK

    lps = np.diag([-1.0, -1.0, 1.0])
    image = SimpleITK.GetImageFromArray(stored)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((lps @ affine[:3, 3]).tolist())
    image.SetDirection((lps @ affine[:3, :3] / spacing).ravel().tolist())
    return image


def patch(path: Path, offset: int, content: bytes) -> Path:
    """Overwrite bytes of a file, as no writer would."""
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(bytes(data))
    return path


@st.composite
def grids(draw: st.DrawFn, largest: int = 6) -> Grid:
    """Grids of any rotation, handedness, spacing (nanometres to metres) and position."""
    shape = draw(st.tuples(*[st.integers(1, largest)] * 3))
    axis = draw(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda a: np.linalg.norm(a) > 0.1))
    axes = draw(st.sampled_from(forty_eight_axes()))
    scale = 10.0 ** draw(st.integers(-5, 2))
    spacing = draw(st.tuples(*[st.floats(0.2, 5)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = rotation(axis, draw(st.floats(0, 180))) @ axes * np.array(spacing) * scale
    affine[:3, 3] = np.array(draw(st.tuples(*[st.floats(-500, 500)] * 3))) * scale
    return Grid(shape, affine)
