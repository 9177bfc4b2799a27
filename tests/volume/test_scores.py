"""Slabs of labels from slabs of scores: along every axis the whole, piece by piece."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iris_cli.volume.grid import Grid
from iris_cli.volume.scores import ranked_values, resample_scores_to_labels, score_slabs
from tests.volume.examples import TILTS, oriented_grid
from tests.volume.test_resampling import rotated

WORKING = oriented_grid(np.eye(3), TILTS["oblique"], (9, 11, 10), (1.5, 1.5, 1.5))
TARGETS = {
    "same": WORKING,
    "finer": WORKING.working(0.7),
    "coarser": WORKING.working(2.3),
    "turned": rotated(WORKING, (9, 8, 12), 0.9),
}
VALUES = [9, 2, 300]


@pytest.fixture
def scores() -> torch.Tensor:
    generator = np.random.default_rng(4)
    return torch.from_numpy(generator.normal(size=(3, 9, 11, 10)).astype(np.float32) - 0.3)


def along(axis: int, part: slice) -> tuple[slice, ...]:
    return tuple(part if dim == axis else slice(None) for dim in range(3))


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slabs_along_any_axis_give_the_whole(scores: torch.Tensor, axis: int, target: Grid) -> None:
    whole = resample_scores_to_labels(scores, WORKING, target, VALUES)
    assert len(np.unique(whole)) == 4
    found = np.zeros_like(whole)
    ranked = ranked_values(VALUES)
    stops = []
    for slab in score_slabs(WORKING, target, axis=axis, voxels=60):
        parts = [scores[index][along(axis, slab.source)] for index in (1, 0, 2)]
        winner = slab.winner(parts)
        found[along(axis, slab.target)] = ranked[winner.rank.numpy()]
        stops.append(slab.source.stop)
    np.testing.assert_array_equal(found, whole)
    assert len(stops) > 2
    assert stops == sorted(stops)


def test_a_slab_reads_no_more_rows_than_it_is_allowed_to() -> None:
    target = Grid.from_spacing((4, 3, 3), (1, 1, 5))
    working = target.working(1.0)
    assert {s.source.stop - s.source.start for s in score_slabs(working, target)} == {17}
    slabs = list(score_slabs(working, target, source_rows=8))
    assert all(slab.source.stop - slab.source.start <= 8 for slab in slabs)
    # One row of labels takes what it needs.
    assert len(list(score_slabs(working, target, source_rows=1))) == 4


def test_the_winner_comes_with_its_score() -> None:
    grid = Grid.from_spacing((1, 1, 4), (1, 1, 1))
    (slab,) = score_slabs(grid, grid)
    rows = [[0.0, 2.0, -1.0, 1.0], [-3.0, 2.0, -2.0, 4.0]]
    winner = slab.winner(torch.tensor(rows).view(2, 1, 1, 4))
    assert winner.rank.flatten().tolist() == [0, 1, 0, 2]
    assert winner.score.flatten().tolist() == [0.0, 2.0, 0.0, 4.0]
    assert slab.winner([]).rank.sum() == 0


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("axis", [0, 2])
def test_everywhere_in_a_slab_scores_are_what_the_winner_saw(
    scores: torch.Tensor, axis: int, name: str
) -> None:
    target = TARGETS[name]
    for slab in score_slabs(WORKING, target, axis=axis, voxels=200):
        part = scores[0][along(axis, slab.source)]
        everywhere = slab.everywhere(part)
        assert tuple(everywhere.shape) == slab.shape
        torch.testing.assert_close(slab.winner([part]).score, everywhere.clamp(min=0))
        assert (everywhere < 0).any()
