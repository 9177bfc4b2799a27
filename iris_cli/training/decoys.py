"""Decoys: masks in the references of real episodes that lie beside the classes asked for.

A network that met a kind of scan often can answer with the organ that is usually asked for there,
whatever the mask says. A decoy is a mask with the shape of the classes, or an ellipsoid, somewhere
else in the reference. Where it lies in a query of another subject nobody knows; that it is none of
the episode's classes is known, so its loss counts the voxels of those and no others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional

from iris_cli.training.views import count_voxels

if TYPE_CHECKING:
    from iris_cli.training.episodes import Episode

NAME = "decoy"
# In parts of the patch: how far a copy is moved, centre and semi-axes of an ellipsoid.
SHIFT = (0.12, 0.4)
CENTRES = (0.2, 0.8)
RADII = (0.06, 0.22)
# This part of the decoys is asked for alone; the rest beside the classes.
ALONE_SHARE = 0.5
ELLIPSOID_SHARE = 0.5
# A decoy that fills more of its crop encodes as nothing.
FILL_MAX = 0.5


@dataclass(frozen=True)
class Decoy:
    """Where the decoys of an episode lie, in parts of the patch; zyx.

    alone: the classes are not asked for. shifts: (R, 3), from the classes to their copy.
    centres: (R, 3) of ellipsoids, or None for copies. radii: (3,).
    """

    alone: bool
    shifts: npt.NDArray[np.float64]
    centres: npt.NDArray[np.float64] | None
    radii: npt.NDArray[np.float64]


def draw_decoy(rng: np.random.Generator, references: int) -> Decoy:
    """One decoy for every reference of an episode, all of one kind."""
    directions = rng.standard_normal((references, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return Decoy(
        alone=bool(rng.random() < ALONE_SHARE),
        shifts=directions * rng.uniform(*SHIFT, (references, 1)),
        centres=rng.uniform(*CENTRES, (references, 3)) if rng.random() < ELLIPSOID_SHARE else None,
        radii=rng.uniform(*RADII, 3),
    )


def with_decoy(episode: Episode, decoy: Decoy, filled: torch.Tensor, least: int) -> Episode:
    """The episode with one class more, the decoy; it is the last one.

    filled: (R, P, P, P) bool, where a reference shows something: a mask over nothing asks nothing.
    least: voxels that a decoy needs in a reference to be learned from it. Nothing here waits for
    the device.
    """
    organs = episode.reference_masks.any(dim=1)
    masks = torch.stack([_mask(decoy, i, organ) for i, organ in enumerate(organs)])
    masks = masks & ~organs & filled
    voxels = count_voxels(masks)
    shown = (voxels >= least) & (voxels <= FILL_MAX * masks[0].numel())
    known = episode.query_valid
    valid = episode.reference_valid
    # The loss counts the decoy on the classes' voxels: some class must be known in the query.
    counts = known.any() & shown.any()
    if decoy.alone:
        # Where the decoy came to nothing the classes stay: an episode must ask for something.
        valid, known = valid & ~counts, known & ~counts
    return replace(
        episode,
        names=(*episode.names, NAME),
        keys=(*episode.keys, None),
        query_masks=torch.cat([episode.query_masks, torch.zeros_like(episode.query_masks[:1])]),
        reference_masks=torch.cat([episode.reference_masks, masks[:, None]], dim=1),
        query_valid=torch.cat([known, counts[None]]),
        reference_valid=torch.cat([valid, (shown & counts)[:, None]], dim=1),
        decoy=True,
    )


def _mask(decoy: Decoy, reference: int, organ: torch.Tensor) -> torch.Tensor:
    """The decoy in one reference, not yet cut by the classes: (P, P, P) bool."""
    patch = organ.shape[0]
    if decoy.centres is None:
        return _moved(organ, np.rint(decoy.shifts[reference] * patch).astype(int).tolist())
    ramp = (torch.arange(patch, dtype=torch.float32, device=organ.device) + 0.5) / patch
    z, y, x = (
        ((ramp - float(c)) / float(r)) ** 2
        for c, r in zip(decoy.centres[reference], decoy.radii, strict=True)
    )
    return z[:, None, None] + y[:, None] + x <= 1


def _moved(mask: torch.Tensor, shift: list[int]) -> torch.Tensor:
    """A mask moved by whole voxels (zyx); what leaves it is gone."""
    sides = [side for s in reversed(shift) for side in (max(s, 0), max(-s, 0))]
    padded = functional.pad(mask, sides)
    z, y, x = (slice(max(-s, 0), max(-s, 0) + n) for s, n in zip(shift, mask.shape, strict=True))
    return padded[z, y, x]
