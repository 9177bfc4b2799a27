"""Synthetic episodes: scenes of random shapes, and real label maps painted anew.

A scene is one label map; query and references see it through different turns, stretches and bends,
each painted from the same table of intensities with its own bias field, blur and noise. What is
painted is the label map as it lies in the store; image and masks are then warped alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from iris_cli.training.drafts import Draft, draw_count
from iris_cli.training.looks import Look, number_labels
from iris_cli.training.real import RealTasks
from iris_cli.training.settings import TrainingSettings
from iris_cli.training.views import Frame, draw_view, smooth_field

Image = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int16]
Curve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

SHIFT = 0.1
# Share of episodes whose images are painted from different tables: only shape and place tell.
OTHER_CONTRAST = 0.1


class SyntheticTasks:
    """Draws painted scenes; repaints label maps where there are real ones."""

    def __init__(self, settings: TrainingSettings, patch: int, real: RealTasks | None) -> None:
        self.settings = settings
        self.patch = patch
        self.real = real

    def draw(self, rng: np.random.Generator) -> Draft | None:
        if self.real is not None and rng.random() < self.settings.task.repaint_share:
            return self._repainted(rng, self.real)
        return self.draw_scene(rng)

    def draw_scene(self, rng: np.random.Generator) -> Draft:
        """A scene of random shapes; always succeeds."""
        task, geometry = self.settings.task, self.settings.geometry
        scene = random_scene(rng, self.patch)
        count = 1 + draw_count(rng, task.references_max, task.one_reference_share)
        values = np.flatnonzero(np.bincount(scene.reshape(-1))[1:] >= 27) + 1
        most = int(rng.integers(1, task.classes_max + 1))
        chosen = [int(v) for v in rng.permutation(values)[:most]]
        tables = _tables(rng, int(scene.max()) + 1, count)
        labels, table = number_labels(scene, [*((value,) for value in chosen), ()])
        frame = Frame((0.0, 0.0, 0.0))
        looks = []
        for levels in tables:
            centre = (self.patch - 1) / 2 + SHIFT * self.patch * rng.uniform(-1, 1, 3)
            scale = float(rng.uniform(0.8, 1.1))
            view = draw_view(rng, centre, scale, self.patch, geometry, strong=True)
            image = torch.from_numpy(paint(scene, levels, rng))
            looks.append(Look(view, image, frame, float(image.min()), labels, frame, table))
        return Draft(
            kind="synthetic",
            source="scene",
            names=tuple(f"shape_{i}" for i in range(len(chosen))),
            keys=(None,) * len(chosen),
            looks=tuple(looks),
            annotated=np.ones((count, len(chosen)), bool),
            strong=False,
        )

    def _repainted(self, rng: np.random.Generator, real: RealTasks) -> Draft | None:
        draft = real.draw(rng)
        if draft is None:
            return None
        count = len(draft.names)
        tables = _tables(rng, count, len(draft.looks))
        curve = np.sort(rng.uniform(-1.5, 1.5, 6)), rng.standard_normal(6)
        looks = (
            _repaint_look(look, table, curve, rng)
            for look, table in zip(draft.looks, tables, strict=True)
        )
        return replace(
            draft,
            kind="synthetic",
            source=f"repaint:{draft.source}",
            keys=(None,) * count,
            looks=tuple(looks),
        )


def random_scene(rng: np.random.Generator, size: int) -> Labels:
    """A label map (size^3): tissue from smooth noise, then ellipsoids, shells and tubes on top."""
    scene = np.zeros((size,) * 3, np.int16)
    if rng.random() < 0.7:
        scene[...] = _tissue(rng, size)
    value = int(scene.max()) + 1
    for _ in range(int(rng.integers(2, 9))):
        maker = (_ellipsoid, _ellipsoid, _shell, _tube)[int(rng.integers(4))]
        scene[maker(rng, size)] = value
        value += 1
    return scene


def paint(label: Labels, table: npt.NDArray[np.float64], rng: np.random.Generator) -> Image:
    """An image of a label map: level and texture per value, partial volume, bias field, noise.

    table: (values, 2), level and standard deviation. returns: mean 0, standard deviation 1.
    """
    levels, spreads = table.astype(np.float32).T
    texture = rng.standard_normal(label.shape, dtype=np.float32)
    if rng.random() < 0.5:
        texture = ndimage.gaussian_filter(texture, float(rng.uniform(0.5, 1.5)))
        texture /= max(float(texture.std()), 1e-6)
    image = levels[label] + spreads[label] * texture
    image = ndimage.gaussian_filter(image, float(rng.uniform(0.3, 1.2)))
    image = image * _bias(rng, label.shape)
    image += rng.standard_normal(label.shape, dtype=np.float32) * np.float32(rng.uniform(0, 0.15))
    return _standardised(image)


def repaint(
    image: Image,
    masks: Iterable[npt.NDArray[np.bool_]],
    table: npt.NDArray[np.float64],
    curve: Curve,
    rng: np.random.Generator,
    *,
    fill: float,
    voxel: float = 1.0,
) -> tuple[Image, float]:
    """Classes painted with random levels over a background that passed through a random curve.

    image: (z, y, x), masks: K of its shape, table: (K, 2), curve: knots and heights, shared by the
    images of an episode (the background keeps its anatomy and loses its contrast).
    fill: the value outside of the image, which is background too; returned as it has become.
    voxel: voxel edge of the patch in voxels of the image: what blurs is meant in the patch's.
    """
    result = np.interp(image, *curve).astype(np.float32)
    for mask, (level, spread) in zip(masks, table, strict=True):
        number = int(np.count_nonzero(mask))
        result[mask] = level + spread * rng.standard_normal(number, dtype=np.float32)
    result = ndimage.gaussian_filter(result, float(rng.uniform(0.3, 0.8)) * voxel)
    result = result * _bias(rng, image.shape)
    result += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0, 0.1))
    outside = (np.interp(fill, *curve) - result.mean()) / max(float(result.std()), 1e-6)
    return _standardised(result), float(outside)


def _repaint_look(
    look: Look, levels: npt.NDArray[np.float64], curve: Curve, rng: np.random.Generator
) -> Look:
    """A look whose image is painted over; where it is the coarser one, the labels follow it."""
    step = round(look.image_frame.step / look.label_frame.step)
    labels = look.labels[::step, ::step, ::step].contiguous()
    if labels.shape != look.image.shape:
        # No class is annotated in this image: all of it is background.
        labels = labels.new_zeros(look.image.shape)
    masks = (column[labels.numpy()] for column in look.table.T[:-1])
    image, fill = repaint(
        look.image.numpy(), masks, levels, curve, rng, fill=look.fill, voxel=look.coarseness
    )
    return replace(
        look,
        image=torch.from_numpy(image),
        fill=fill,
        labels=labels,
        label_frame=look.image_frame,
    )


def _tables(rng: np.random.Generator, values: int, images: int) -> list[npt.NDArray[np.float64]]:
    """Level and texture per value for every image: one table with small changes, seldom several."""
    several = rng.random() < OTHER_CONTRAST
    tables: list[npt.NDArray[np.float64]] = []
    for _ in range(images):
        if several or not tables:
            level = rng.uniform(-1.5, 1.5, values)
            table = np.stack([level, rng.uniform(0.02, 0.35, values)], axis=1)
            tables.append(table)
        else:
            change = np.stack([0.06 * rng.standard_normal(values), np.zeros(values)], axis=1)
            tables.append(tables[0] + change)
    return tables


def _tissue(rng: np.random.Generator, size: int) -> Labels:
    """Arg-max of smooth random fields."""
    kinds = int(rng.integers(2, 7))
    points = int(rng.integers(4, 11))
    best = np.full((size,) * 3, -np.inf, np.float32)
    label = np.zeros((size,) * 3, np.int16)
    for kind in range(kinds):
        controls = rng.standard_normal((points,) * 3, dtype=np.float32)
        field = smooth_field(controls, label.shape).numpy()
        higher = field > best
        np.copyto(best, field, where=higher)
        label[higher] = kind
    return label


def _offsets(rng: np.random.Generator, size: int) -> tuple[Image, npt.NDArray[np.float64]]:
    """Positions (3, size^3) about a random centre, turned at random, and radii drawn for them."""
    centre = rng.uniform(0.2, 0.8, 3) * size
    radii = np.exp(rng.uniform(np.log(0.05), np.log(0.28), 3)) * size
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    ramp = np.arange(size, dtype=np.float32)
    axes = [ramp - np.float32(c) for c in centre]
    turned = turn.astype(np.float32)
    rows = [
        (row[0] * axes[0])[:, None, None] + (row[1] * axes[1])[:, None] + row[2] * axes[2]
        for row in turned
    ]
    return np.stack(rows), radii


def _ellipsoid(rng: np.random.Generator, size: int) -> npt.NDArray[np.bool_]:
    position, radii = _offsets(rng, size)
    squared = sum((p / np.float32(r)) ** 2 for p, r in zip(position, radii, strict=True))
    if rng.random() < 0.5:
        controls = rng.standard_normal((6, 6, 6), dtype=np.float32)
        squared = squared + 0.5 * smooth_field(controls, (size,) * 3).numpy()
    return np.asarray(squared < 1)


def _shell(rng: np.random.Generator, size: int) -> npt.NDArray[np.bool_]:
    position, radii = _offsets(rng, size)
    radii = np.maximum(radii, 0.1 * size)
    distance = np.sqrt(sum((p / np.float32(r)) ** 2 for p, r in zip(position, radii, strict=True)))
    thickness = max(float(rng.uniform(0.1, 0.35)), 3 / float(radii.min()))
    return np.asarray(np.abs(distance - 1) < thickness / 2)


def _tube(rng: np.random.Generator, size: int) -> npt.NDArray[np.bool_]:
    """A tube around a random smooth walk."""
    steps = np.cumsum(rng.standard_normal((5, 3)), axis=0)
    fine = np.stack([np.interp(np.linspace(0, 4, 60), np.arange(5), s) for s in steps.T], axis=1)
    fine = ndimage.gaussian_filter1d(fine, 4, axis=0)
    fine = (fine - fine.mean(axis=0)) / max(float(np.abs(fine - fine.mean(axis=0)).max()), 1e-6)
    path = size * (0.5 + rng.uniform(0.2, 0.5) * fine + rng.uniform(-0.15, 0.15, 3))
    radius = float(rng.uniform(0.025, 0.08)) * size
    empty = np.ones((size,) * 3, bool)
    for a, b in pairwise(path):
        for t in (0.0, 0.5):
            index = np.clip(np.rint(a + t * (b - a)).astype(int), 0, size - 1)
            empty[tuple(index)] = False
    return np.asarray(ndimage.distance_transform_edt(empty) < max(radius, 1.5))


def _bias(rng: np.random.Generator, shape: Sequence[int]) -> Image:
    """Smooth positive factor about 1."""
    strength = rng.uniform(0, 0.3)
    controls = (strength * rng.standard_normal((5, 5, 5))).astype(np.float32)
    return np.asarray(np.exp(smooth_field(controls, shape).numpy()), np.float32)


def _standardised(image: Image) -> Image:
    scaled: Image = ((image - image.mean()) / max(float(image.std()), 1e-6)).astype(np.float32)
    return scaled
