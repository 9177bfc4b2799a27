from __future__ import annotations

import math

import pytest
import torch

from iris_cli.training.loss import episode_loss

LOG3 = math.log(3.0)  # sigmoid 0.75


def tensors(logits: list[float], mask: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (1, 1, 1, 1, len(logits))
    return torch.tensor(logits).reshape(shape), torch.tensor(mask).bool().reshape(shape)


def all_of(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    b, k, *size = masks.shape
    return torch.ones((b, *size), dtype=torch.bool), torch.ones((b, k), dtype=torch.bool)


def test_dice_and_cross_entropy_by_hand() -> None:
    logits, mask = tensors([LOG3, -LOG3, LOG3, -LOG3], [1, 0, 0, 1])
    loss = episode_loss(logits, mask, *all_of(mask))
    # p = 3/4, 1/4, 3/4, 1/4: TP = 1, sum p = 2, sum t = 2.
    dice = 1 - (2 * 1 + 1e-5) / (2 + 2 + 1e-5)
    entropy = -(2 * math.log(0.75) + 2 * math.log(0.25)) / 4
    assert float(loss.mean) == pytest.approx(dice + entropy, rel=1e-6)
    assert float(loss.dice[0, 0]) == pytest.approx(2 * 1 / (2 + 2))


def test_an_absent_class_has_an_empty_target() -> None:
    logits, mask = tensors([LOG3, -LOG3], [0, 0])
    loss = episode_loss(logits, mask, *all_of(mask))
    dice = 1 - 1e-5 / (1.0 + 1e-5)
    entropy = -(math.log(0.25) + math.log(0.75)) / 2
    assert float(loss.mean) == pytest.approx(dice + entropy, rel=1e-6)


def test_an_absent_class_that_comes_out_empty_costs_nothing() -> None:
    logits, mask = tensors([-60.0, -60.0], [0, 0])
    loss = episode_loss(logits, mask, *all_of(mask))
    assert float(loss.mean) == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(float(loss.dice[0, 0]))


def test_ignored_voxels_enter_neither_numerator_nor_mean() -> None:
    logits, mask = tensors([LOG3, -LOG3, 50.0, -50.0], [1, 0, 0, 1])
    counted, valid = all_of(mask)
    counted[..., 2:] = False
    short_logits, short_mask = tensors([LOG3, -LOG3], [1, 0])
    expected = episode_loss(short_logits, short_mask, *all_of(short_mask)).mean
    assert float(episode_loss(logits, mask, counted, valid).mean) == pytest.approx(float(expected))


def test_classes_that_are_not_annotated_enter_neither_numerator_nor_mean() -> None:
    one_logits, one_mask = tensors([LOG3, -LOG3], [1, 0])
    logits = torch.cat([one_logits, torch.full_like(one_logits, 77.0)], dim=1)
    masks = torch.cat([one_mask, one_mask], dim=1)
    counted, _ = all_of(masks)
    loss = episode_loss(logits, masks, counted, torch.tensor([[True, False]]))
    alone = episode_loss(one_logits, one_mask, *all_of(one_mask))
    assert float(loss.mean) == pytest.approx(float(alone.mean))
    assert math.isnan(float(loss.dice[0, 1]))


def test_classes_are_averaged_per_episode_and_episodes_then() -> None:
    a, mask = tensors([LOG3, -LOG3], [1, 0])
    b, _ = tensors([-LOG3, LOG3], [1, 0])
    single = [float(episode_loss(x, mask, *all_of(mask)).mean) for x in (a, b)]
    # Episode 0 has both classes, episode 1 only the second one.
    logits = torch.cat([torch.cat([a, b], dim=1), torch.cat([a, b], dim=1)])
    masks = mask.expand(2, 2, -1, -1, -1)
    counted, _ = all_of(masks)
    valid = torch.tensor([[True, True], [False, True]])
    total = float(episode_loss(logits, masks, counted, valid).mean)
    assert total == pytest.approx(((single[0] + single[1]) / 2 + single[1]) / 2, rel=1e-6)


def test_an_episode_without_anything_to_count_enters_no_mean() -> None:
    a, mask = tensors([LOG3, -LOG3], [1, 0])
    logits, masks = torch.cat([a, a]), torch.cat([mask, mask])
    counted, valid = all_of(masks)
    counted[1] = False
    total = float(episode_loss(logits, masks, counted, valid).mean)
    assert total == pytest.approx(float(episode_loss(a, mask, *all_of(mask)).mean))


def test_logits_of_ignored_voxels_get_no_gradient() -> None:
    logits, mask = tensors([0.3, -0.2, 0.1], [1, 0, 1])
    logits.requires_grad_()
    counted, valid = all_of(mask)
    counted[..., 1] = False
    episode_loss(logits, mask, counted, valid).mean.backward()
    assert logits.grad is not None
    assert logits.grad[..., 1] == 0
    assert torch.all(logits.grad[..., [0, 2]] != 0)
