from __future__ import annotations

import numpy as np
import pytest

from iris_cli.training.pseudo import (
    REGION_VOLUME,
    find_regions,
    number_regions,
    overlaps,
    place_bodies,
    stands_out,
    supervoxels,
)

EDGE = 32


def half_bright() -> np.ndarray:
    image = np.zeros((EDGE,) * 3, np.float32)
    image[:, :, EDGE // 2 :] = 4.0
    return image + 0.1 * np.random.default_rng(0).standard_normal(image.shape).astype(np.float32)


def cube(a: int, b: int) -> np.ndarray:
    mask = np.zeros((EDGE,) * 3, bool)
    mask[a:b, a:b, a:b] = True
    return mask


INSIDE = np.ones((EDGE,) * 3, bool)


@pytest.mark.parametrize("edge", [6, 9, 15])
def test_supervoxels_follow_edges_of_intensity(edge: int) -> None:
    image = half_bright()
    label = supervoxels(image, edge, weight=3.0)
    bright = image > 2
    mixed = [0 < bright[label == n].mean() < 1 for n in np.unique(label)]
    assert label.shape == image.shape
    assert np.mean(mixed) < 0.1


@pytest.mark.parametrize(
    ("region", "hidden", "expected"),
    [
        (cube(0, 10), cube(20, 30), False),
        (cube(0, 10), cube(0, 10), True),
        # A tenth of the small one is a sliver of the large one: either is enough.
        (cube(0, 30), cube(0, 4), True),
        (cube(0, 4), cube(0, 30), True),
        (cube(0, 10), cube(9, 19), False),
    ],
)
def test_a_tenth_of_either_is_too_much_overlap(
    region: np.ndarray, hidden: np.ndarray, expected: bool
) -> None:
    assert overlaps(region, hidden) is expected


def test_an_object_stands_out_and_a_piece_of_uniform_tissue_does_not() -> None:
    image = 0.1 * np.random.default_rng(0).standard_normal((EDGE,) * 3).astype(np.float32)
    image[cube(10, 18)] += 3.0
    assert stands_out(image, cube(10, 18), INSIDE, fill=-5.0)
    assert not stands_out(image, cube(2, 9), INSIDE, fill=-5.0)
    # Beside a bright object, but for the most part bordered by its own kind.
    assert not stands_out(image, cube(3, 10), INSIDE, fill=-5.0)


def test_empty_space_is_no_region() -> None:
    image = np.full((EDGE,) * 3, 4.0, np.float32)
    image[cube(10, 18)] = -1.0
    assert stands_out(image, cube(10, 18), INSIDE, fill=-3.0)
    assert not stands_out(image, cube(10, 18), INSIDE, fill=-1.0)


def test_pure_noise_has_hardly_a_region_and_objects_have() -> None:
    noise = np.random.default_rng(0).standard_normal((EDGE,) * 3).astype(np.float32)
    scene = 0.2 * noise
    for start, level in ((2, 3.0), (12, -3.0), (22, 6.0)):
        scene[cube(start, start + 8)] += level
    found = {
        name: sum(
            len(find_regions(image, INSIDE, -9.0, np.random.default_rng(seed), most=3))
            for seed in range(20)
        )
        for name, image in (("noise", noise), ("scene", scene))
    }
    # Most of the scene is uniform, so most draws rightly come to nothing.
    assert found["scene"] >= 4
    assert found["noise"] <= 1


def test_bodies_lie_in_the_scan_wherever_it_is() -> None:
    inside = np.zeros((48, 48, 48), bool)
    inside[:, 20:, :30] = True
    drawn = [place_bodies(inside, np.random.default_rng(seed), most=4) for seed in range(40)]
    bodies = [body for found in drawn for body in found]
    assert {len(found) for found in drawn} == {1, 2, 3, 4}
    assert not any((body & ~inside).any() for body in bodies)
    assert all(body.sum() >= REGION_VOLUME[0] * body.size for body in bodies)
    reached = np.logical_or.reduce(bodies)
    assert reached[inside].mean() > 0.9


def test_regions_may_share_voxels_and_what_lies_beyond_the_base_carries_no_loss() -> None:
    regions = [cube(4, 20), cube(10, 30)]
    numbers, table = number_regions(regions)
    for k, region in enumerate(regions):
        np.testing.assert_array_equal(table[numbers.numpy(), k], region)
    assert not table[numbers.numpy(), -1].any()
    assert table[0].tolist() == [False, False, True]
