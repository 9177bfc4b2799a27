"""Episode g of a run: a pure function of (seed, g), whoever asks for it (CONTRACT.md).

g = step * batch + slot. Ranks, workers, resuming and the machine do not enter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from iris_cli.errors import DataRefused
from iris_cli.training.catalogue import Catalogue
from iris_cli.training.drafts import Draft, Kind
from iris_cli.training.intensity import change_intensity, remap
from iris_cli.training.pseudo import PseudoTasks
from iris_cli.training.real import RealTasks
from iris_cli.training.settings import TrainingSettings
from iris_cli.training.synthetic import SyntheticTasks

# A draw can fail (a flat crop, a class turned out of every reference); then the next is tried.
ATTEMPTS = 12
# A mask that fills its crop encodes as nothing (NETWORK.md 3.3): such a reference is left out.
REFERENCE_FILL_MAX = 0.95


@dataclass(frozen=True)
class Episode:
    """One training example.

    query: (P, P, P) float32. references: (R, P, P, P) float32.
    query_masks: (K, P, P, P) bool. reference_masks: (R, K, P, P, P) bool.
    query_valid: (K,) bool, annotated in the query: only these carry loss.
    reference_valid: (R, K) bool, learned from this reference; every class has one at least.
    counted: (P, P, P) bool, voxels that carry loss.
    """

    index: int
    kind: Kind
    source: str
    names: tuple[str, ...]
    query: torch.Tensor
    references: torch.Tensor
    query_masks: torch.Tensor
    reference_masks: torch.Tensor
    query_valid: torch.Tensor
    reference_valid: torch.Tensor
    counted: torch.Tensor


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
        """Episode `index` (0-based over the whole run)."""
        rng = np.random.default_rng([self.settings.seed, index])
        kinds = list(self.shares)
        kind = kinds[int(rng.choice(len(kinds), p=list(self.shares.values())))]
        for _ in range(ATTEMPTS):
            draft = self._makers[kind].draw(rng)
            episode = None if draft is None else self._finish(index, draft, rng)
            if episode is not None:
                return episode
        # Scenes always work out, up to chance: no data set can end a run by an unlucky draw.
        while True:
            episode = self._finish(index, self._synthetic.draw_scene(rng), rng)
            if episode is not None:
                return episode

    def _finish(self, index: int, draft: Draft, rng: np.random.Generator) -> Episode | None:
        """Drop classes without a reference, change intensities; None where nothing is left."""
        least = self.settings.task.reference_voxels_min
        reference_masks = torch.stack(draft.masks[1:])
        voxels = reference_masks.flatten(2).sum(dim=2)
        shown = (voxels >= least) & (voxels <= REFERENCE_FILL_MAX * self.patch**3)
        valid = shown & torch.from_numpy(draft.annotated[1:])
        kept = torch.nonzero(valid.any(dim=0))[:, 0]
        query_valid = torch.from_numpy(draft.annotated[0])[kept]
        if not bool(query_valid.any()) or not bool(draft.counted.any()):
            return None
        used = torch.nonzero(valid[:, kept].any(dim=1))[:, 0]
        images = [draft.images[0], *(draft.images[1 + int(r)] for r in used)]
        if rng.random() < self.settings.intensity.remap_probability:
            images = remap(images, rng)
        images = [
            change_intensity(image, rng, self.settings.intensity, strong=draft.strong)
            for image in images
        ]
        return Episode(
            index=index,
            kind=draft.kind,
            source=draft.source,
            names=tuple(draft.names[int(k)] for k in kept),
            query=torch.from_numpy(images[0]),
            references=torch.from_numpy(np.stack(images[1:])),
            query_masks=draft.masks[0][kept],
            reference_masks=reference_masks[used][:, kept],
            query_valid=query_valid,
            reference_valid=valid[used][:, kept],
            counted=draft.counted,
        )
