"""Synthetic episodes: scenes of random shapes, and real label maps painted anew.

A scene is one label map; query and references see it through different turns, stretches and bends,
each painted from the same table of intensities with its own bias field, blur and noise. Pixels and
masks come from the same warped label map, so they agree voxel for voxel.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from iris_cli.training.drafts import Draft, draw_count
from iris_cli.training.real import RealTasks
from iris_cli.training.settings import TrainingSettings
from iris_cli.training.views import draw_view, sample_nearest, smooth_field

Image = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int16]

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
        shape = (self.patch,) * 3
        count = 1 + draw_count(rng, task.references_max, task.one_reference_share)
        values = np.flatnonzero(np.bincount(scene.reshape(-1))[1:] >= 27) + 1
        most = int(rng.integers(1, task.classes_max + 1))
        chosen = [int(v) for v in rng.permutation(values)[:most]]
        tables = _tables(rng, int(scene.max()) + 1, count)
        images, masks = [], []
        for i in range(count):
            centre = (self.patch - 1) / 2 + SHIFT * self.patch * rng.uniform(-1, 1, 3)
            scale = float(rng.uniform(0.8, 1.1))
            view = draw_view(rng, centre, scale, self.patch, geometry, strong=True)
            seen = sample_nearest(view, self.patch, shape, lambda region: scene[region])
            images.append(paint(seen.numpy(), tables[i], rng))
            masks.append(torch.stack([seen == value for value in chosen]))
        return Draft(
            kind="synthetic",
            source="scene",
            names=tuple(f"shape_{i}" for i in range(len(chosen))),
            images=images,
            masks=masks,
            annotated=np.ones((count, len(chosen)), bool),
            counted=torch.ones(shape, dtype=torch.bool),
            strong=False,
        )

    def _repainted(self, rng: np.random.Generator, real: RealTasks) -> Draft | None:
        draft = real.draw(rng)
        if draft is None:
            return None
        count = len(draft.names)
        tables = _tables(rng, count, len(draft.images))
        curve = np.sort(rng.uniform(-1.5, 1.5, 6)), rng.standard_normal(6)
        images = [
            repaint(image, mask.numpy(), table, curve, rng)
            for image, mask, table in zip(draft.images, draft.masks, tables, strict=True)
        ]
        return Draft(
            kind="synthetic",
            source=f"repaint:{draft.source}",
            names=draft.names,
            images=images,
            masks=draft.masks,
            annotated=draft.annotated,
            counted=draft.counted,
            strong=draft.strong,
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


def paint(
    label: npt.NDArray[np.int64], table: npt.NDArray[np.float64], rng: np.random.Generator
) -> Image:
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
    image = image * _bias(rng, label.shape[0])
    image += rng.standard_normal(label.shape, dtype=np.float32) * np.float32(rng.uniform(0, 0.15))
    return _standardised(image)


def repaint(
    image: Image,
    masks: npt.NDArray[np.bool_],
    table: npt.NDArray[np.float64],
    curve: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    rng: np.random.Generator,
) -> Image:
    """Classes painted with random levels over a background that passed through a random curve.

    image: (P, P, P), masks: (K, P, P, P), table: (K, 2), curve: knots and heights, shared by the
    images of an episode (the background keeps its anatomy and loses its contrast).
    """
    result = np.interp(image, *curve).astype(np.float32)
    for mask, (level, spread) in zip(masks, table, strict=True):
        number = int(np.count_nonzero(mask))
        result[mask] = level + spread * rng.standard_normal(number, dtype=np.float32)
    result = ndimage.gaussian_filter(result, float(rng.uniform(0.3, 0.8)))
    result = result * _bias(rng, image.shape[0])
    result += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0, 0.1))
    return _standardised(result)


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
        field = smooth_field(rng.standard_normal((points,) * 3, dtype=np.float32), size).numpy()
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
        squared = squared + 0.5 * smooth_field(controls, size).numpy()
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


def _bias(rng: np.random.Generator, size: int) -> Image:
    """Smooth positive factor about 1."""
    strength = rng.uniform(0, 0.3)
    controls = (strength * rng.standard_normal((5, 5, 5))).astype(np.float32)
    return np.asarray(np.exp(smooth_field(controls, size).numpy()), np.float32)


def _standardised(image: Image) -> Image:
    scaled: Image = ((image - image.mean()) / max(float(image.std()), 1e-6)).astype(np.float32)
    return scaled
