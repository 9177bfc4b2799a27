"""Labels from logits, region by region: those of the plain definition, over the whole volume."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_cli.volume.grid import Grid
from iris_cli.volume.resampling import source_index
from iris_cli.volume.scores import (
    Scores,
    Winner,
    decide,
    decide_plainly,
    resample_scores_to_labels,
    resampling,
)
from tests.volume.examples import TILTS, oriented_grid
from tests.volume.test_resampling import rotated

SHAPE = (9, 11, 10)
WORKING = oriented_grid(np.eye(3), TILTS["oblique"], SHAPE, (1.5, 1.5, 1.5))
TARGETS = {
    "same": WORKING,
    "finer": WORKING.working(0.7),
    "coarser": WORKING.working(2.3),
    "thick": oriented_grid(np.eye(3), TILTS["oblique"], (3, 20, 4), (4.0, 0.8, 5.0)),
    "turned": rotated(WORKING, (9, 8, 12), 0.9),
}
CUTS = [(0, 3, 4, 8), (0, 5), (0,)]


def interpolated(scores: torch.Tensor, target: Grid) -> np.ndarray:
    """(K, Z, Y, X) float64: the eight scores around every voxel of `target`, weighted."""
    index = source_index(WORKING, target, 0, target.shape_zyx[0])[..., ::-1]
    low = np.minimum(np.floor(index), np.array(SHAPE) - 2).astype(int)
    total = np.zeros((len(scores), *target.shape_zyx))
    for ends in itertools.product((0, 1), repeat=3):
        weight = np.where(ends, index - low, 1 - (index - low)).prod(axis=-1)
        corner = low + ends
        total += weight * scores.double().numpy()[:, corner[..., 0], corner[..., 1], corner[..., 2]]
    return total


def decided(scores: Scores, target: Grid, edge: int | None = 3) -> tuple[Winner, np.ndarray]:
    """Of the whole volume, and how often each voxel was decided."""
    rank, score = torch.zeros(target.shape_zyx, dtype=torch.int16), torch.zeros(target.shape_zyx)
    times = np.zeros(target.shape_zyx, int)
    parts = resampling(WORKING, target, CUTS, edge)
    for z, y, x in itertools.product(*(range(len(cuts)) for cuts in CUTS)):
        for region in parts.regions((z, y, x)):
            own = torch.ones(rank[region.target].shape, dtype=torch.bool)
            own = own if region.foreign is None else ~region.foreign
            times[region.target] += own.numpy()
            here = Scores(scores.maps[(slice(None), *region.source)], scores.mix)
            winner = decide(here, region, range(1, len(here.values) + 1))
            if winner is not None:
                rank[region.target][own] = winner.rank[own]
                score[region.target][own] = winner.score[own]
                assert not winner.rank[~own].any()
    return Winner(rank, score), times


def assert_right(found: Winner, logits: np.ndarray) -> None:
    """Everywhere the largest logit, and its class wherever the next one is not as large."""
    ranked = np.sort(np.concatenate([np.zeros((1, *logits.shape[1:])), logits]), axis=0)
    rounding = 1e-5 * np.abs(logits).max()
    np.testing.assert_allclose(found.score.numpy(), ranked[-1], atol=rounding)
    expected = np.where(logits.max(axis=0) > 0, 1 + logits.argmax(axis=0), 0)
    clear = ranked[-1] - ranked[-2] > rounding
    np.testing.assert_array_equal(found.rank.numpy()[clear], expected[clear])


def class_maps(classes: int, smooth: float, seed: int) -> torch.Tensor:
    """Logits of balls here and there; noise where `smooth` is 0."""
    generator = np.random.default_rng(seed)
    points = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    centres = generator.uniform(0, SHAPE, (classes, 3))
    distance = np.linalg.norm(points[None] - centres[:, None, None, None], axis=-1)
    noise = generator.normal(size=(classes, *SHAPE))
    logits = smooth * (generator.uniform(1, 5, (classes, 1, 1, 1)) - distance)
    return torch.from_numpy((logits + (1 - smooth) * noise).astype(np.float32))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=12, deadline=None)
@given(
    classes=st.integers(1, 12),
    smooth=st.sampled_from([0.0, 0.9, 1.0]),
    edge=st.sampled_from([4, 9, None]),
    seed=st.integers(0, 2**32 - 1),
)
def test_labels_and_scores_are_those_of_interpolating_every_class(
    name: str, classes: int, smooth: float, edge: int | None, seed: int
) -> None:
    scores = class_maps(classes, smooth, seed)
    found, times = decided(Scores(scores), TARGETS[name], edge)
    assert (times == 1).all()
    assert_right(found, interpolated(scores, TARGETS[name]))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=8, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_sums_of_maps_are_decided_as_the_scores_they_make(
    name: str, classes: int, maps: int, seed: int
) -> None:
    """Fewer maps than classes: maps are interpolated, and mixed there."""
    mix = torch.from_numpy(np.random.default_rng(seed).normal(size=(classes, maps))).float()
    scores = Scores(class_maps(maps, 0.5, seed), mix)
    logits = interpolated(scores.values, TARGETS[name])
    assert_right(decided(scores, TARGETS[name])[0], logits)


@pytest.mark.parametrize("name", TARGETS)
def test_equal_scores_go_to_the_lower_label(name: str) -> None:
    scores = class_maps(1, 0.0, 3).expand(5, -1, -1, -1)
    found, _ = decided(Scores(scores), TARGETS[name])
    assert set(found.rank.flatten().tolist()) == {0, 1}
    values = [9, 7, 300, 8, 11]
    labels = resample_scores_to_labels(scores.numpy(), WORKING, TARGETS[name], values)
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, np.where(found.rank == 1, 7, 0))


def test_classes_that_cannot_win_are_not_interpolated() -> None:
    """Those of the corners far away; what is left gives the same to the last bit."""
    scores = class_maps(40, 1.0, 5)
    target, seen = TARGETS["finer"], []
    for region in resampling(WORKING, target, CUTS, 3).regions((0, 0, 0)):
        here = Scores(scores[(slice(None), *region.source)])

        def sample(maps: torch.Tensor, plain=region.sample) -> torch.Tensor:  # type: ignore[no-untyped-def]
            seen.append(len(maps))
            result: torch.Tensor = plain(maps)
            return result

        watched = type(region)(region.target, region.source, sample)
        found = decide(here, watched, range(1, 41))
        every = decide_plainly(region.interpolate(here), range(1, 41))
        rank = torch.zeros_like(every.rank) if found is None else found.rank
        torch.testing.assert_close(rank, every.rank)
        if found is not None:
            torch.testing.assert_close(found.score, every.score, rtol=0, atol=1e-6)
    assert max(seen) < 20


def test_a_region_without_a_positive_score_is_background() -> None:
    region = next(iter(resampling(WORKING, WORKING, CUTS).regions((0, 0, 0))))
    nothing = -torch.ones(3, *(part.stop - part.start for part in region.source))
    assert decide(Scores(nothing), region, [1, 2, 3]) is None


def test_the_winner_comes_with_its_score() -> None:
    rows = [[0.0, 2.0, -1.0, 1.0], [-3.0, 2.0, -2.0, 4.0]]
    winner = decide_plainly(torch.tensor(rows).view(2, 1, 1, 4), [1, 2])
    assert winner.rank.flatten().tolist() == [0, 1, 0, 2]
    assert winner.score.flatten().tolist() == [0.0, 2.0, 0.0, 4.0]


def winner(rank: Sequence[int], score: Sequence[float]) -> Winner:
    return Winner(torch.tensor(rank, dtype=torch.int16), torch.tensor(score))


def test_of_two_decisions_the_better_one_counts_and_the_lower_of_equals() -> None:
    one, other = winner([2, 2, 0, 2], [1.0, 1.0, 0.0, 1.0]), winner([1, 3, 3, 3], [1.0, 1.0, 2, 3])
    for found in (one.or_better(other), other.or_better(one)):
        assert found.rank.tolist() == [1, 2, 3, 3]
        assert found.score.tolist() == [1.0, 1.0, 2.0, 3.0]
    nothing = winner([0] * 4, [0.0] * 4)
    assert nothing.or_better(one).rank.tolist() == [2, 2, 0, 2]
    assert one.or_better(nothing).rank.tolist() == [2, 2, 0, 2]


def test_many_classes() -> None:
    """More than a byte counts."""
    scores = torch.zeros(300, 1, 1, 300)
    scores[:, 0, 0].fill_diagonal_(1.0)
    found = decide_plainly(scores, range(1, 301))
    assert found.rank.flatten().tolist() == list(range(1, 301))


def test_a_native_row_that_spans_a_region_is_taken_whole() -> None:
    target = Grid.from_spacing((4, 3, 3), (1, 1, 5))
    working = target.working(1.0)
    cuts = [range(0, n, 8) for n in working.shape_zyx]
    parts = resampling(working, target, cuts, 2)
    found = [region for z in range(3) for region in parts.regions((z, 0, 0))]
    assert sum(r.target[0].stop - r.target[0].start for r in found) == 4 * 4
    assert max(r.source[0].stop - r.source[0].start for r in found) <= 2
