"""Soft Dice + binary cross-entropy, per class (METHOD.md 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional

SMOOTH = 1e-5


@dataclass(frozen=True)
class Loss:
    """Loss of a batch and, for the log, the Dice of every class.

    A step is cut into batches, over its parts and ranks, and its loss is the mean over all of its
    episodes. How many of them count is known on the device only, and of the other parts later: so
    a batch has a sum and a number.

    sum: scalar, over its episodes, of the mean over classes.
    episodes: scalar, how many of them have something to count. No gradient.
    dice: (B, K) float, overlap of the thresholded output with the mask; NaN where it is undefined
    (class not annotated, or neither in the mask nor in the output). No gradient.
    """

    sum: torch.Tensor
    episodes: torch.Tensor
    dice: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        """Scalar, mean over the episodes that have something to count; 0 where none has."""
        return self.sum / self.episodes.clamp(min=1)


def episode_loss(
    logits: torch.Tensor,
    masks: torch.Tensor,
    counted: torch.Tensor,
    valid: torch.Tensor,
    decoy: torch.Tensor | None = None,
) -> Loss:
    """Loss of a batch of episodes.

    logits: (B, K, Z, Y, X) float. masks: the same shape, bool.
    counted: (B, Z, Y, X) bool, False where the query has the ignore label.
    valid: (B, K) bool, annotated in the query (padding is not).
    decoy: (B, K) bool: counted on the voxels of the episode's classes alone, without a Dice in the
    log (training.decoys).
    Per class: 1 - (2 TP + s) / (sum p + sum t + s), s = 1e-5, plus the mean cross-entropy; sums and
    means over counted voxels. What is not valid or not counted enters neither numerator nor mean;
    an episode with nothing to count enters neither sum nor number.
    """
    logits = logits.float().flatten(2)
    target = masks.flatten(2).float()
    if decoy is None:
        decoy = torch.zeros_like(valid)
    organs = masks.flatten(2).any(dim=1, keepdim=True)
    weight = counted.flatten(1)[:, None] & (organs | ~decoy[:, :, None])
    voxels = weight.sum(dim=2)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = (entropy * weight).sum(dim=2) / voxels.clamp(min=1)
    probability = logits.sigmoid() * weight
    target = target * weight
    both = (probability * target).sum(dim=2)
    overlap = (2 * both + SMOOTH) / (probability.sum(dim=2) + target.sum(dim=2) + SMOOTH)
    per_class = 1 - overlap + entropy
    used = valid & (voxels > 0)
    per_class = torch.where(used, per_class, torch.zeros_like(per_class))
    classes = used.sum(dim=1)
    per_episode = per_class.sum(dim=1) / classes.clamp(min=1)
    dice = _hard_dice(logits.detach(), target, weight, used & ~decoy)
    return Loss(per_episode.sum(), (classes > 0).sum(), dice)


def _hard_dice(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, used: torch.Tensor
) -> torch.Tensor:
    found = ((logits > 0) & weight).float()
    size = found.sum(dim=2) + target.sum(dim=2)
    dice = 2 * (found * target).sum(dim=2) / size.clamp(min=1)
    return torch.where(used & (size > 0), dice, torch.full_like(dice, float("nan")))
