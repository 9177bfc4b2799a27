"""Decoys: masks beside the classes, which must not be answered with the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from iris_cli.training.batches import collate
from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.decoys import NAME, Decoy, with_decoy
from iris_cli.training.episodes import Episode, EpisodeSampler
from iris_cli.training.loss import episode_loss
from iris_cli.training.settings import TaskSettings
from tests.training.stores import balls, only, training

SIZE = 16
EVERYWHERE = torch.ones((1, SIZE, SIZE, SIZE), dtype=torch.bool)


def cube(low: int, high: int) -> torch.Tensor:
    mask = torch.zeros((SIZE, SIZE, SIZE), dtype=torch.bool)
    mask[low:high, low:high, low:high] = True
    return mask


def episode(*, known: bool = True) -> Episode:
    organ = cube(1, 5)
    return Episode(
        index=0,
        kind="real",
        source="s",
        names=("organ",),
        keys=("s/organ",),
        query=torch.zeros(SIZE, SIZE, SIZE),
        references=torch.zeros(1, SIZE, SIZE, SIZE),
        query_masks=organ[None],
        reference_masks=organ[None, None],
        query_valid=torch.tensor([known]),
        reference_valid=torch.tensor([[True]]),
        counted=torch.ones((SIZE, SIZE, SIZE), dtype=torch.bool),
    )


def copy(*, alone: bool, shift: tuple[float, float, float] = (0.5, 0.25, 0.0)) -> Decoy:
    return Decoy(alone, np.array([shift]), None, np.full(3, 0.1))


def test_a_copy_has_the_shape_of_the_classes_and_lies_beside_them() -> None:
    made = with_decoy(episode(), copy(alone=False), EVERYWHERE, 8)
    expected = torch.zeros((SIZE, SIZE, SIZE), dtype=torch.bool)
    expected[9:13, 5:9, 1:5] = True
    assert torch.equal(made.reference_masks[0, 1], expected)
    assert made.names == ("organ", NAME)
    assert made.keys == ("s/organ", None)
    assert not made.query_masks[1].any()
    assert made.query_valid.tolist() == [True, True]


@pytest.mark.parametrize("shift", [(0.0, 0.1, -0.1), (-0.05, 0.0, 0.0)])
def test_what_lies_over_a_class_is_cut_off(shift: tuple[float, float, float]) -> None:
    made = with_decoy(episode(), copy(alone=False, shift=shift), EVERYWHERE, 1)
    assert not (made.reference_masks[0, 0] & made.reference_masks[0, 1]).any()
    assert made.reference_masks[0, 1].any()


def test_an_ellipsoid_has_its_centre_and_radii() -> None:
    decoy = Decoy(False, np.zeros((1, 3)), np.full((1, 3), 0.75), np.array([0.25, 0.125, 0.0625]))
    found = torch.nonzero(with_decoy(episode(), decoy, EVERYWHERE, 8).reference_masks[0, 1])
    assert (found.float().mean(dim=0) + 0.5).tolist() == pytest.approx([12, 12, 12])
    # Semi-axes 4, 2, 1: half a voxel off the axis in y and x the ellipsoid still reaches 3.3 in z.
    assert (found.max(dim=0).values - found.min(dim=0).values + 1).tolist() == [6, 4, 2]


def test_alone_the_classes_are_not_asked_for() -> None:
    made = with_decoy(episode(), copy(alone=True), EVERYWHERE, 8)
    assert made.reference_valid.tolist() == [[False, True]]
    assert made.query_valid.tolist() == [False, True]


def test_a_decoy_that_left_the_patch_changes_nothing_that_is_asked_for() -> None:
    made = with_decoy(episode(), copy(alone=True, shift=(0.0, 0.0, -0.4)), EVERYWHERE, 8)
    assert made.reference_valid.tolist() == [[True, False]]
    assert made.query_valid.tolist() == [True, False]


def test_a_decoy_lies_where_the_reference_shows_something() -> None:
    filled = EVERYWHERE.clone()
    filled[:, 11:] = False
    made = with_decoy(episode(), copy(alone=False), filled, 8)
    assert made.reference_masks[0, 1].sum() == 2 * 4 * 4
    assert not made.reference_masks[0, 1, 11:].any()


def test_without_a_known_class_in_the_query_there_is_no_decoy() -> None:
    made = with_decoy(episode(known=False), copy(alone=True), EVERYWHERE, 8)
    assert made.query_valid.tolist() == [False, False]


def test_the_loss_counts_a_decoy_on_the_classes_alone() -> None:
    batch = collate([with_decoy(episode(), copy(alone=True), EVERYWHERE, 8)])
    organ = batch.query_masks[0, 0]

    def loss(inside: float, outside: float) -> float:
        logits = torch.where(organ, inside, outside).expand(1, 2, SIZE, SIZE, SIZE)
        masks, counted, valid = batch.query_masks, batch.counted, batch.loss_valid
        found = episode_loss(logits, masks, counted, valid, batch.decoy)
        assert found.dice.isnan().all()
        return float(found.mean)

    assert loss(-9.0, 9.0) == pytest.approx(loss(-9.0, -9.0))
    # Cross-entropy of logit 2 against background, and a Dice of nothing right.
    assert loss(2.0, 0.0) == pytest.approx(1 + 2.126928, abs=1e-4)


def test_real_episodes_get_decoys_by_their_share(tmp_path: Path) -> None:
    task = TaskSettings(decoy_share=0.5, classes_max=3)
    made = EpisodeSampler(
        read_catalogue([balls(tmp_path)]), training(mixing=only("real"), task=task), 32
    )
    episodes = [made.episode(g) for g in range(60)]
    real = [e for e in episodes if e.kind == "real"]
    assert 0.3 < np.mean([e.decoy for e in real]) < 0.7
    assert all((e.names[-1] == NAME) == e.decoy for e in episodes)
    alone = [e for e in real if e.decoy and not e.query_valid[:-1].any()]
    assert 0 < len(alone) < len(real)
