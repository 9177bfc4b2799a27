"""Episode g of a run: a pure function of (seed, g), whoever asks for it (CONTRACT.md).

g = step * batch + slot. Ranks, workers, resuming and the machine do not enter.

An episode is made in two parts. `EpisodeSampler.raw_episode` draws everything that is random and
reads the store; `RawEpisode.render` warps and changes what was read, on any device, without drawing
anything and without waiting for the device. `EpisodeSampler.episode` does both on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from iris_cli.errors import DataRefused
from iris_cli.training.augmentation import Curve, draw_curve, draw_zoom, render_look
from iris_cli.training.catalogue import Catalogue
from iris_cli.training.decoys import Decoy, draw_decoy, with_decoy
from iris_cli.training.drafts import Draft, Kind
from iris_cli.training.intensity import change_intensity
from iris_cli.training.looks import Look
from iris_cli.training.pseudo import PseudoTasks
from iris_cli.training.real import RealTasks
from iris_cli.training.settings import TrainingSettings
from iris_cli.training.synthetic import SyntheticTasks
from iris_cli.training.views import count_voxels

# A draw can fail (a flat crop, a class turned out of every reference); then the next is tried.
ATTEMPTS = 12
# A mask that fills its crop encodes as nothing (NETWORK.md 3.3): such a reference is left out.
REFERENCE_FILL_MAX = 0.95


@dataclass(frozen=True)
class Episode:
    """One training example on the patch; all tensors on the device that rendered it.

    keys: (K,) entries of the memory bank, None for what it does not keep.
    query: (P, P, P) float32. references: (R, P, P, P) float32.
    query_masks: (K, P, P, P) bool. reference_masks: (R, K, P, P, P) bool.
    reference_valid: (R, K) bool, learned from this reference.
    query_valid: (K,) bool, annotated in the query and learned from a reference: only these carry
    loss. Seldom none is: the worker judges by what it reads, the warp has the last word.
    counted: (P, P, P) bool, voxels that carry loss.
    decoy: whether the last class is none, but a mask beside the others (training.decoys).
    """

    index: int
    kind: Kind
    source: str
    names: tuple[str, ...]
    keys: tuple[str | None, ...]
    query: torch.Tensor
    references: torch.Tensor
    query_masks: torch.Tensor
    reference_masks: torch.Tensor
    query_valid: torch.Tensor
    reference_valid: torch.Tensor
    counted: torch.Tensor
    decoy: bool = False


@dataclass(frozen=True)
class RawEpisode:
    """What a worker hands over: `Episode` before it is rendered; images are float16.

    looks: query first, then references. annotated: (1 + R, K) bool, as in `Draft`.
    least: voxels that a class needs in a reference.
    """

    index: int
    kind: Kind
    source: str
    names: tuple[str, ...]
    keys: tuple[str | None, ...]
    patch: int
    least: int
    looks: tuple[Look, ...]
    annotated: npt.NDArray[np.bool_]
    curve: Curve | None
    decoy: Decoy | None

    def render(self, device: torch.device) -> Episode:
        """Render every look and judge what came out; nothing here waits for the device."""
        seen = [render_look(look, self.patch, self.curve, device) for look in self.looks]
        reference_masks = torch.stack([r.masks for r in seen[1:]])
        annotated = torch.from_numpy(self.annotated).to(device, non_blocking=True)
        voxels = count_voxels(reference_masks)
        shown = (voxels >= self.least) & (voxels <= REFERENCE_FILL_MAX * self.patch**3)
        reference_valid = shown & annotated[1:]
        counted = seen[0].counted
        episode = Episode(
            index=self.index,
            kind=self.kind,
            source=self.source,
            names=self.names,
            keys=self.keys,
            query=seen[0].image,
            references=torch.stack([r.image for r in seen[1:]]),
            query_masks=seen[0].masks,
            reference_masks=reference_masks,
            query_valid=annotated[0] & reference_valid.any(dim=0) & counted.any(),
            reference_valid=reference_valid,
            counted=counted,
        )
        if self.decoy is None:
            return episode
        filled = torch.stack([r.filled for r in seen[1:]])
        return with_decoy(episode, self.decoy, filled, self.least)


class _Maker(Protocol):
    def draw(self, rng: np.random.Generator) -> Draft | None: ...


class EpisodeSampler:
    """Makes episodes; picklable, so that worker processes make the very same ones."""

    def __init__(self, catalogue: Catalogue, settings: TrainingSettings, patch: int) -> None:
        self.settings = settings
        self.patch = patch
        real = RealTasks(catalogue, settings, patch)
        pseudo = PseudoTasks(catalogue, settings, patch)
        self._synthetic = SyntheticTasks(settings, patch, real if real.sets else None)
        self._makers: dict[str, _Maker] = {
            "real": real,
            "pseudo": pseudo,
            "synthetic": self._synthetic,
        }
        mixing = settings.mixing
        shares = {
            "real": mixing.real if real.sets else 0.0,
            "pseudo": mixing.pseudo if pseudo.sets else 0.0,
            "synthetic": mixing.synthetic,
        }
        total = sum(shares.values())
        if total <= 0:
            raise DataRefused(
                "no episode can be made from these sets",
                found=f"mixing {mixing.model_dump()}, labelled sets {[s.name for s in real.sets]}",
                fix="add a set with labels, or give pseudo or synthetic episodes a share",
            )
        self.shares = {kind: share / total for kind, share in shares.items()}

    def episode(self, index: int) -> Episode:
        """Episode `index` (0-based over the whole run), rendered on the CPU."""
        return self.raw_episode(index).render(torch.device("cpu"))

    def raw_episode(self, index: int) -> RawEpisode:
        """Episode `index` as far as a worker makes it where another device renders."""
        rng = np.random.default_rng([self.settings.seed, index])
        kinds = list(self.shares)
        kind = kinds[int(rng.choice(len(kinds), p=list(self.shares.values())))]
        for _ in range(ATTEMPTS):
            draft = self._makers[kind].draw(rng)
            kept = None if draft is None else self._what_is_shown(draft)
            if kept is not None:
                return self._finish(index, kept, rng)
        # Scenes always work out, up to chance: no data set can end a run by an unlucky draw.
        while True:
            kept = self._what_is_shown(self._synthetic.draw_scene(rng))
            if kept is not None:
                return self._finish(index, kept, rng)

    def _what_is_shown(self, draft: Draft) -> Draft | None:
        """The draft without classes and references from which nothing can be learned.

        Judged by the middle of what was read, before the warp; None where nothing is left.
        """
        least = self.settings.task.reference_voxels_min
        voxels = np.stack([look.centre_voxels(self.patch)[0] for look in draft.looks[1:]])
        shown = (voxels >= least) & (voxels <= REFERENCE_FILL_MAX * self.patch**3)
        valid = shown & draft.annotated[1:]
        classes = np.flatnonzero(valid.any(axis=0))
        counted = draft.looks[0].centre_voxels(self.patch)[1]
        if not draft.annotated[0, classes].any() or counted < 1:
            return None
        references = np.flatnonzero(valid[:, classes].any(axis=1))
        images = [0, *(1 + references)]
        columns = [*classes, -1]
        return replace(
            draft,
            names=tuple(draft.names[k] for k in classes),
            keys=tuple(draft.keys[k] for k in classes),
            looks=tuple(
                replace(draft.looks[i], table=draft.looks[i].table[:, columns]) for i in images
            ),
            annotated=draft.annotated[np.ix_(images, classes)],
        )

    def _finish(self, index: int, draft: Draft, rng: np.random.Generator) -> RawEpisode:
        intensity = self.settings.intensity
        looks, images = [], []
        for look in draft.looks:
            image, fill = change_intensity(
                look.image.numpy(),
                look.fill,
                rng,
                intensity,
                voxel=look.coarseness,
                strong=draft.strong,
            )
            zoom = draw_zoom(rng, intensity, strong=draft.strong)
            half = torch.from_numpy(image).half()
            looks.append(replace(look, image=half, fill=fill, zoom=zoom))
            images.append(image)
        curved = rng.random() < intensity.remap_probability
        deceives = draft.kind == "real" and rng.random() < self.settings.task.decoy_share
        return RawEpisode(
            index=index,
            kind=draft.kind,
            source=draft.source,
            names=draft.names,
            keys=draft.keys,
            patch=self.patch,
            least=self.settings.task.reference_voxels_min,
            looks=tuple(looks),
            annotated=draft.annotated,
            curve=draw_curve(images, rng) if curved else None,
            decoy=draw_decoy(rng, len(looks) - 1) if deceives else None,
        )
