"""Whether windows leave seams in a query far larger than the patch: python -m benchmarks.seams

Ten generated phantoms beside and above each other, more than four times the patch of the shipped
model along z and three times along x, are segmented with three other phantoms as references. Looked
at are logits, probabilities and labels where windows begin and end: the steps from plane to plane
there, over those of the planes around, of all axes together; and the same half-way between borders.
1 is no seam. Windows side by side without overlap are what it would look like.

Appends a table to benchmarks/results/seams.md and draws docs/images/seams.png.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import Tensor

from benchmarks.results_table import publish
from iris_cli.dataset.classes import ClassLabel
from iris_cli.dataset.phantoms import CLASSES, phantom_name, write_phantom_dataset
from iris_cli.inference.case import predict_volume
from iris_cli.inference.streaming import How
from iris_cli.inference.windows import axis_starts
from iris_cli.model.model import Model, load_model
from iris_cli.preparation.prepare import prepare_image
from iris_cli.task.crops import cut
from iris_cli.task.encoding import Reference, encode_references
from iris_cli.task.task_file import Task
from iris_cli.volume.grid import Grid
from iris_cli.volume.orientation import AS_IT_IS
from iris_cli.volume.reading import NativeGeometry, Volume, read_image
from iris_cli.volume.resampling import resample_image
from iris_cli.volume.scores import Box

SPACING_MM = 3.0
SHOWN = ("liver", "lungs")
REFERENCES, COLUMNS, ROWS = 3, 2, 5
# One size for all, so that they can stand beside each other; their joints lie away from borders.
BLOCK = (58, 72, 104)
AIR_HU = -1000
IMAGE = Path(__file__).parents[1] / "docs" / "images" / "seams.png"
AROUND = (-3, -2, 2, 3)

Logits = npt.NDArray[np.float32]
Values = npt.NDArray[np.floating]


def steps_at(values: Values, planes: Sequence[Sequence[int]]) -> float:
    """Steps of `values` into these planes over those into the planes around them.

    values: (Z, Y, X). planes: of each axis, indices k; the step is from k - 1 to k.
    """
    at, around = 0.0, 0.0
    for axis, wanted in enumerate(planes):
        others = tuple(other for other in range(3) if other != axis)
        steps = np.abs(np.diff(values, axis=axis)).sum(axis=others, dtype=float)  # [k - 1]: into k
        for k in wanted:
            if 3 < k < values.shape[axis] - 3:
                at += steps[k - 1]
                around += float(np.mean([steps[k - 1 + offset] for offset in AROUND]))
    return at / around if around else float("nan")


def borders(length: int, patch: int) -> list[int]:
    """Planes of an axis in which a window begins, or the first one after its end."""
    starts = axis_starts(length, patch)
    return sorted({k for start in starts for k in (start, start + patch) if 0 < k < length})


def tile_borders(length: int, patch: int) -> list[int]:
    """The same of windows that lie side by side."""
    return list(range(patch, length, patch))


def between(planes: Sequence[int]) -> list[int]:
    """Planes half-way between borders."""
    return [(a + b) // 2 for a, b in pairwise(planes)]


def blended(model: Model, task: Task, volume: Volume) -> tuple[npt.NDArray[np.uint8], Logits]:
    """Labels, and the logits of every class (K, Z, Y, X), on the grid of the volume."""
    order = [entry.value for entry in task.header.classes]
    logits = np.zeros((len(order), *volume.grid.shape_zyx), np.float32)

    def keep(box: Box, value: int, scores: Tensor) -> None:
        logits[(order.index(value), *box)] = scores.numpy()

    found = predict_volume(model, task, volume, how=How(on_scores=keep))
    return found.labels, logits


def side_by_side(model: Model, task: Task, volume: Volume) -> Logits:
    """The same from windows that do not overlap and are not blended."""
    prepared = prepare_image(volume, task.header.modality, task.header.spacing_mm)
    edge, shape = model.card.patch, prepared.array.shape
    tokens = [torch.from_numpy(stage)[None] for stage in task.tokens]
    found = np.zeros((len(task.header.classes), *shape), np.float32)
    for start in product(*(range(0, length, edge) for length in shape)):
        crop = torch.from_numpy(cut(prepared.array, start, (edge,) * 3, prepared.fill))
        with torch.inference_mode():
            features = model.network.encode_image(crop[None, None])
            logits = model.network.decode(features, tokens)[0].numpy()
        part = tuple(slice(k, k + edge) for k in start)
        kept = tuple(slice(0, min(edge, n - k)) for k, n in zip(start, shape, strict=True))
        found[(slice(None), *part)] = logits[(slice(None), *kept)]
    return found


@dataclass(frozen=True)
class _Scene:
    """A query on its working grid, its labels, and the logits by both ways."""

    volume: Volume
    labels: npt.NDArray[np.uint8]
    blended: Logits
    tiles: Logits
    patch: int


def _scene() -> _Scene:
    model = load_model()
    seeds = range(11, 11 + REFERENCES + COLUMNS * ROWS)
    with tempfile.TemporaryDirectory() as folder:
        raw = write_phantom_dataset(Path(folder), seeds)
        names = [phantom_name(seed) for seed in seeds]
        files = [
            Reference(raw / "imagesTr" / f"{n}_0000.nii.gz", raw / "labelsTr" / f"{n}.nii.gz")
            for n in names
        ]
        classes = [ClassLabel(name, (value,), value) for name, value in CLASSES.items()]
        task = encode_references(model, files[:REFERENCES], classes, spacing_mm=SPACING_MM)
        volume = _mosaic([read_image(file.image) for file in files[REFERENCES:]])
    labels, logits = blended(model, task, volume)
    return _Scene(volume, labels, logits, side_by_side(model, task, volume), model.card.patch)


def _mosaic(volumes: Sequence[Volume]) -> Volume:
    """On the working grid already, so that planes of the picture are planes of the windows."""
    blocks = []
    for volume in volumes:
        working = volume.grid.working(SPACING_MM)
        array = resample_image(volume.array, volume.grid, working)
        start = [(n - size) // 2 for n, size in zip(array.shape, BLOCK, strict=True)]
        blocks.append(cut(array, start, BLOCK, AIR_HU))
    rows = [blocks[row * COLUMNS : (row + 1) * COLUMNS] for row in range(ROWS)]
    image = np.concatenate([np.concatenate(row, axis=2) for row in rows], axis=0)
    grid = Grid.from_spacing(image.shape, (SPACING_MM,) * 3)
    return Volume(image, grid, NativeGeometry(grid, AS_IT_IS, None, ".nii.gz"), Path("mosaic"))


def _rows(scene: _Scene) -> list[list[str]]:
    shape = scene.volume.array.shape
    overlapping = [borders(length, scene.patch) for length in shape]
    tiled = [tile_borders(length, scene.patch) for length in shape]
    middle = [between(planes) for planes in overlapping]
    rows = []
    for index, (name, value) in enumerate(CLASSES.items()):
        logits, tiles = scene.blended[index], scene.tiles[index]
        label = (scene.labels == value).astype(np.float32)
        found = [
            steps_at(logits, overlapping),
            steps_at(_sigmoid(logits), overlapping),
            steps_at(_sigmoid(logits), middle),
            steps_at(label, overlapping),
            steps_at(label, middle),
            steps_at(tiles, tiled),
            steps_at(_sigmoid(tiles), tiled),
        ]
        rows.append([name, *(f"{step:.2f}" for step in found)])
    return rows


def _sigmoid(logits: Logits) -> Logits:
    return np.asarray(expit(logits), np.float32)


def _draw(scene: _Scene, path: Path) -> None:
    """The middle coronal plane: scan with labels, and two classes' logits by both ways."""
    from matplotlib.figure import Figure

    plane = scene.volume.array.shape[1] // 2
    figure = Figure(figsize=(7.6, 7.2), layout="constrained")
    axes = figure.subplots(2, 3)
    image, labels = scene.volume.array[:, plane], scene.labels[:, plane]
    for axis in axes[:, 0]:
        axis.imshow(image, cmap="gray", vmin=-400, vmax=400, origin="lower")
    axes[1, 0].imshow(
        np.ma.masked_equal(labels, 0), cmap="tab10", vmin=1, vmax=10, alpha=0.6, origin="lower",
        interpolation="nearest",
    )  # fmt: skip
    axes[0, 0].set_title("scan and where windows begin", fontsize=9)
    axes[1, 0].set_title("labels", fontsize=9)
    for k in borders(image.shape[1], scene.patch):
        axes[0, 0].axvline(k - 0.5, color="tab:orange", linewidth=0.5)
    for k in borders(image.shape[0], scene.patch):
        axes[0, 0].axhline(k - 0.5, color="tab:orange", linewidth=0.5)
    ways: Sequence[tuple[str, Logits]] = (("blended", scene.blended), ("side by side", scene.tiles))
    for row, (words, logits) in enumerate(ways):
        for column, name in enumerate(SHOWN[:2], start=1):
            shown = logits[list(CLASSES).index(name), :, plane]
            axes[row, column].imshow(shown, cmap="coolwarm", vmin=-8, vmax=8, origin="lower")
            axes[row, column].set_title(f"logit of {name}, windows {words}", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Print the table, append it to the results, draw the picture."""
    torch.set_num_threads(1)
    scene = _scene()
    shape = " x ".join(map(str, scene.volume.array.shape))
    head = ("class", "logits", "probabilities", "half-way", "labels", "half-way",
            "side by side: logits", "probabilities")  # fmt: skip
    notes = (f"{shape} voxels, patch {scene.patch}", "steps at borders over those around")
    publish("seams", "steps of logits where windows begin and end", notes, head, _rows(scene))
    _draw(scene, IMAGE)


if __name__ == "__main__":
    main()
