"""Soft Dice + binary cross-entropy, per class (METHOD.md 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional

SMOOTH = 1e-5


@dataclass(frozen=True)
class Loss:
    """Loss of a batch and, for the log, the Dice of every class.

    total: scalar, mean over classes of an episode, then over episodes.
    dice: (B, K) float, overlap of the thresholded output with the mask; NaN where it is undefined
    (class not annotated, or neither in the mask nor in the output). No gradient.
    """

    total: torch.Tensor
    dice: torch.Tensor


def episode_loss(
    logits: torch.Tensor,
    masks: torch.Tensor,
    counted: torch.Tensor,
    valid: torch.Tensor,
) -> Loss:
    """Loss of a batch of episodes.

    logits: (B, K, Z, Y, X) float. masks: the same shape, bool.
    counted: (B, Z, Y, X) bool, False where the query has the ignore label.
    valid: (B, K) bool, annotated in the query (padding is not).
    Per class: 1 - (2 TP + s) / (sum p + sum t + s), s = 1e-5, plus the mean cross-entropy; sums and
    means over counted voxels. What is not valid or not counted enters neither numerator nor mean;
    an episode with nothing to count enters no mean either.
    """
    logits = logits.float().flatten(2)
    target = masks.flatten(2).float()
    weight = counted.flatten(1)[:, None].float()
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
    total = per_episode.sum() / (classes > 0).sum().clamp(min=1)
    return Loss(total, _hard_dice(logits.detach(), target, weight, used))


def _hard_dice(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, used: torch.Tensor
) -> torch.Tensor:
    found = (logits > 0).float() * weight
    size = found.sum(dim=2) + target.sum(dim=2)
    dice = 2 * (found * target).sum(dim=2) / size.clamp(min=1)
    return torch.where(used & (size > 0), dice, torch.full_like(dice, float("nan")))
