"""Draw docs/images/episodes-{real,pseudo,synthetic}.png: python docs/draw_episode_kinds.py.

Generated phantoms are planned, preprocessed and sampled as in a run; nothing is downloaded and no
voxel comes from a person. A row is an episode: the reference, the reference with its masks, the
query, and the query with the masks that training asks for.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.dataset.phantoms import write_phantom_dataset
from iris_cli.planning.training_sets import sets_for_training
from iris_cli.training.catalogue import Catalogue, read_catalogue
from iris_cli.training.episodes import Episode, EpisodeSampler
from iris_cli.training.settings import Mixing, TaskSettings, TrainingSettings
from iris_cli.workflows.plan import plan
from iris_cli.workflows.preprocess import preprocess

IMAGES = Path(__file__).parent / "images"
KINDS = ("real", "pseudo", "synthetic")
TITLES = ("reference", "its masks", "query", "masks asked for")
COLOURS = ((230, 159, 0), (86, 180, 233), (213, 94, 0), (0, 158, 115))
ROWS = 4
PATCH = 96
SPACING_MM = 2.2
# A class is worth showing from this part of the slice on, up to half of it.
SHARE_SHOWN = 0.006

Image = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]


def phantom_catalogue(workspace: Path) -> Catalogue:
    """Six generated phantoms, preprocessed."""
    raw = write_phantom_dataset(workspace / "raw" / "phantoms", range(1, 7))
    spacing = f"sets.phantoms.spacing_mm={SPACING_MM}"
    made = plan([raw], workspace=workspace, overrides=[spacing]).plan
    preprocess(made, workspace=workspace)
    return read_catalogue(sets_for_training(made, workspace))


def choose(sampler: EpisodeSampler, kind: str) -> list[Episode]:
    """The first episodes whose classes are large enough to be seen in both images.

    Of synthetic ones as many scenes of shapes as repainted label maps.
    """
    chosen: list[Episode] = []
    for index in range(400):
        raw = sampler.raw_episode(index)
        place = [e.source == "scene" for e in chosen]
        full = place.count(raw.source == "scene") >= ROWS // 2
        if raw.kind != kind or (kind == "synthetic" and full):
            continue
        episode = sampler.episode(index)
        if worth_showing(episode):
            chosen.append(episode)
        if len(chosen) == ROWS:
            break
    return sorted(chosen, key=lambda e: e.source)


def worth_showing(episode: Episode) -> bool:
    """Whether two or more classes are well seen in the slices that will be drawn."""
    if len(episode.names) < 2:
        return False
    for masks in (episode.reference_masks[0], episode.query_masks):
        shares = best_slice(masks.numpy())[1].mean(axis=(1, 2))
        if np.count_nonzero((shares > SHARE_SHOWN) & (shares < 0.5)) < 2:
            return False
    return True


def best_slice(masks: Masks) -> tuple[int, Masks]:
    """The slice in which the most classes are well seen, and the masks in it (K, y, x)."""
    shares = np.minimum(masks.mean(axis=(2, 3)), 0.05).sum(axis=0)
    z = int(shares.argmax())
    return z, masks[:, z]


def gray(plane: Image) -> npt.NDArray[np.uint8]:
    """An RGB picture (y, x, 3) of a slice between its 1 and 99 percentiles."""
    low, high = np.percentile(plane, [1, 99])
    scaled = np.clip((plane - low) / max(high - low, 1e-6), 0, 1) * 255
    return np.repeat(scaled[..., None], 3, axis=-1).astype(np.uint8)


def tinted(picture: npt.NDArray[np.uint8], masks: Masks) -> npt.NDArray[np.uint8]:
    """The picture with every class in a colour of its own."""
    result = picture.astype(np.float32)
    for mask, colour in zip(masks, COLOURS, strict=False):
        result[mask] = 0.45 * result[mask] + 0.55 * np.array(colour)
    return result.astype(np.uint8)


def draw(episodes: list[Episode], path: Path) -> None:
    """One picture of a kind: a row per episode."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(episodes), 4, figsize=(8, 2 * len(episodes) + 0.3))
    for row, episode in zip(axes, episodes, strict=True):
        pairs = (
            (episode.references[0], episode.reference_masks[0]),
            (episode.query, episode.query_masks),
        )
        for place, (image, masks) in zip((0, 2), pairs, strict=True):
            z, plane_masks = best_slice(masks.numpy())
            picture = gray(image[z].numpy())
            show(row[place], picture)
            show(row[place + 1], tinted(picture, plane_masks))
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title, fontsize=10)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.955, wspace=0.02, hspace=0.02)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def show(axis: Any, picture: npt.NDArray[np.uint8]) -> None:
    axis.imshow(picture, origin="lower", interpolation="nearest")
    axis.set_axis_off()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        catalogue = phantom_catalogue(Path(folder))
        for kind in KINDS:
            mixing = Mixing(**{name: float(name == kind) for name in KINDS})
            task = TaskSettings(
                classes_max=4, references_max=1, union_probability=0, repaint_share=0.5
            )
            settings = TrainingSettings(mixing=mixing, task=task)
            path = IMAGES / f"episodes-{kind}.png"
            draw(choose(EpisodeSampler(catalogue, settings, PATCH), kind), path)
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
