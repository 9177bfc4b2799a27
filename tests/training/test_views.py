from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_cli.training import views
from iris_cli.training.settings import GeometrySettings
from iris_cli.training.views import (
    Frame,
    View,
    clamp_centre,
    count_voxels,
    draw_view,
    frame_of,
    positions,
    prefilter,
    region_of,
    sample_image,
    sample_masks,
    sample_nearest,
    smooth_curve,
    smooth_field,
)

PATCH = 16
STRONG = GeometrySettings(elastic=0.06)


def ball(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float):
    offsets = np.indices(shape) - np.array(centre)[:, None, None, None]
    return (offsets**2).sum(axis=0) <= radius**2


TWO_ROWS = torch.tensor([[False], [True]])


def seen_image(view: View, volume: np.ndarray, fill: float, patch: int = PATCH) -> torch.Tensor:
    """An image as a worker reads it and a device renders it."""
    region = region_of(view, patch, volume.shape)
    assert region is not None
    source = torch.from_numpy(volume[region].astype(np.float32))
    source, frame = prefilter(source, frame_of(region), view.ratio, fill)
    return sample_image(source, frame, positions(view, patch), fill)


def seen_mask(view: View, mask: np.ndarray, patch: int = PATCH) -> torch.Tensor:
    region = region_of(view, patch, mask.shape)
    assert region is not None
    numbers = torch.from_numpy(mask[region].astype(np.uint8))
    return sample_masks(numbers, frame_of(region), positions(view, patch), TWO_ROWS)[0]


def test_a_plain_view_is_the_crop_itself() -> None:
    volume = np.random.default_rng(0).standard_normal((20, 24, 28)).astype(np.float16)
    view = View(np.array([9.5, 10.5, 12.5]), np.eye(3))
    expected = volume[2:18, 3:19, 5:21].astype(np.float32)
    np.testing.assert_allclose(seen_image(view, volume, -9.0).numpy(), expected, atol=1e-4)


def test_a_plain_view_reads_whole_numbers_exactly() -> None:
    volume = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (20, 24, 28)))
    view = View(np.array([9.5, 10.5, 12.5]), np.eye(3))
    seen = sample_nearest(volume, Frame((0.0, 0.0, 0.0)), positions(view, PATCH))
    np.testing.assert_array_equal(seen.numpy(), volume[2:18, 3:19, 5:21])


def test_outside_the_volume_lies_the_fill_and_no_mask() -> None:
    volume = np.full((4, 4, 4), 5.0, np.float32)
    view = View(np.array([1.5, 1.5, 1.5]), np.eye(3))
    seen = seen_image(view, volume, -2.0).numpy()
    assert np.count_nonzero(seen == 5.0) == 64
    assert np.count_nonzero(seen == -2.0) == PATCH**3 - 64
    assert int(seen_mask(view, volume > 0).sum()) == 64


def test_a_view_beside_the_volume_reads_nothing() -> None:
    assert region_of(View(np.array([100.0, 2.0, 2.0]), np.eye(3)), 8, (4, 4, 4)) is None


def test_mirroring_exchanges_left_and_right_only() -> None:
    volume = np.random.default_rng(0).standard_normal((16, 16, 16)).astype(np.float32)
    view = View(np.full(3, 7.5), np.diag([1.0, 1.0, -1.0]), mirrored=True)
    np.testing.assert_allclose(seen_image(view, volume, 0.0), volume[:, :, ::-1], atol=1e-4)


@given(seed=st.integers(0, 10_000), scale=st.floats(0.5, 2.2), strong=st.booleans())
@settings(max_examples=25, deadline=None)
def test_image_and_masks_agree_in_every_view(seed: int, scale: float, strong: bool) -> None:
    rng = np.random.default_rng(seed)
    mask = ball((30, 34, 38), (14, 17, 20), 9)
    view = draw_view(rng, np.array([15.0, 16.0, 18.0]), scale, PATCH, STRONG, strong=strong)
    image = seen_image(view, mask.astype(np.float32), 0.0) >= 0.5
    masks = seen_mask(view, mask)
    # Smoothing moves the edge of the image a little where the view is coarse.
    differ = int((image ^ masks).sum())
    assert differ <= 0.03 * PATCH**3
    if scale < 1.2:
        assert differ <= 0.002 * PATCH**3


@given(seed=st.integers(0, 10_000), scale=st.floats(0.5, 2.2), strong=st.booleans())
@settings(max_examples=25, deadline=None)
def test_only_the_region_that_a_view_needs_is_read(seed: int, scale: float, strong: bool) -> None:
    rng = np.random.default_rng(seed)
    volume = rng.standard_normal((60, 60, 60)).astype(np.float32)
    centre = rng.uniform(20, 40, 3)
    view = draw_view(rng, centre, scale, PATCH, STRONG, strong=strong)
    region = region_of(view, PATCH, volume.shape)
    assert region is not None
    where = positions(view, PATCH)
    part = torch.from_numpy(volume[region])
    seen = sample_image(part, frame_of(region), where, 0.0)
    whole = sample_image(torch.from_numpy(volume), Frame((0.0, 0.0, 0.0)), where, 0.0)
    torch.testing.assert_close(seen, whole, rtol=0, atol=1e-4)


def test_a_coarse_view_is_smoothed_before_it_is_sampled() -> None:
    stripes = np.indices((48, 48, 48)).sum(axis=0) % 2 * 2.0 - 1.0
    for scale, remains in ((1.0, 0.9), (1.6, 0.5), (2.0, 0.05)):
        seen = seen_image(View(np.full(3, 23.5), np.eye(3) * scale), stripes, 0.0)
        assert float(seen[2:-2, 2:-2, 2:-2].abs().max()) <= max(remains, 0.05) * 1.12


@pytest.mark.parametrize("frame", [Frame((2.0, 0.0, 5.0)), Frame((1.5, 0.5, 3.5), 2.0)])
def test_images_are_interpolated_as_grid_sample_does(
    frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside, across the border and beside the volume; in blocks that do not divide the patch."""
    monkeypatch.setattr(views, "BLOCK", 1000)
    rng = np.random.default_rng(3)
    source = torch.from_numpy(rng.standard_normal((9, 12, 7)).astype(np.float32))
    view = draw_view(rng, np.array([7.0, 5.0, 9.0]), 1.2, PATCH, STRONG, strong=True)
    where = positions(view, PATCH)
    index = (where - torch.tensor(frame.origin).view(3, 1, 1, 1)) / frame.step
    size = torch.tensor(source.shape).view(3, 1, 1, 1)
    grid = ((2 * index + 1) / size - 1).flip(0).movedim(0, -1)[None]
    expected = (
        torch.nn.functional.grid_sample((source + 2)[None, None], grid, align_corners=False) - 2
    )
    seen = sample_image(source, frame, where, -2.0)
    torch.testing.assert_close(seen, expected[0, 0], rtol=0, atol=2e-5)
    assert (seen == -2).any()
    assert (seen != -2).any()


def test_voxels_of_masks_are_counted() -> None:
    masks = torch.rand((2, 3, 4, 5, 6), generator=torch.Generator().manual_seed(0)) < 0.3
    assert torch.equal(count_voxels(masks).long(), masks.sum(dim=(2, 3, 4)))


def test_masks_are_interpolated_one_by_one_and_cut_at_one_half() -> None:
    """Against the interpolation of every mask, which needs no table."""
    rng = np.random.default_rng(1)
    coarse = torch.from_numpy(rng.standard_normal((4, 6, 7, 8)).astype(np.float32))
    fine = torch.nn.functional.interpolate(coarse[None], (30, 32, 34), mode="trilinear")[0]
    numbers = fine.argmax(dim=0).to(torch.uint8)
    table = torch.tensor([[0, 0, 0], [1, 0, 1], [0, 1, 1], [0, 0, 1]], dtype=torch.bool)
    view = draw_view(rng, np.array([14.0, 15.0, 16.0]), 1.1, PATCH, STRONG, strong=True)
    where, frame = positions(view, PATCH), Frame((0.0, 0.0, 0.0))
    seen = sample_masks(numbers, frame, where, table)
    for column, mask in zip(table.T, seen, strict=True):
        share = sample_image(column[numbers.long()].float(), frame, where, 0.0)
        sure = (share - 0.5).abs() > 1e-3
        assert torch.equal(mask[sure], share[sure] > 0.5)
        assert 0 < int(mask.sum()) < PATCH**3


def test_bending_stays_within_its_control_points_and_keeps_a_shift() -> None:
    controls = np.full((3, 7, 7, 7), 2.5, np.float32)
    assert torch.allclose(smooth_field(controls, (20, 20, 20)), torch.tensor(2.5))
    rough = np.random.default_rng(0).standard_normal((7, 7, 7)).astype(np.float32)
    field = smooth_field(rough, (18, 20, 22))
    assert field.shape == (18, 20, 22)
    assert float(field.max()) <= rough.max()
    assert float(field.min()) >= rough.min()


def test_a_curve_of_rising_control_points_rises() -> None:
    curve = smooth_curve(np.array([0, 1, 1, 5, 6], np.float32), 50)
    assert curve.shape == (50,)
    assert np.all(np.diff(curve) >= 0)


@pytest.mark.parametrize(
    ("centre", "expected"), [(0.0, 7.5), (50.0, 50.0), (99.0, 91.5), (7.5, 7.5)]
)
def test_a_crop_is_moved_into_the_volume(centre: float, expected: float) -> None:
    moved = clamp_centre(np.full(3, centre), (100, 100, 100), np.full(3, 16.0))
    np.testing.assert_allclose(moved, expected)


def test_a_volume_smaller_than_the_crop_is_centred() -> None:
    moved = clamp_centre(np.array([0.0, 9.0, 3.0]), (10, 10, 10), np.full(3, 16.0))
    np.testing.assert_allclose(moved, 4.5)
