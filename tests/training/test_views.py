from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_cli.training import views
from iris_cli.training.settings import GeometrySettings
from iris_cli.training.views import (
    View,
    clamp_centre,
    draw_view,
    sample_image,
    sample_masks,
    sample_nearest,
    smooth_field,
)

PATCH = 16
STRONG = GeometrySettings(elastic=0.06)


def ball(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float):
    offsets = np.indices(shape) - np.array(centre)[:, None, None, None]
    return (offsets**2).sum(axis=0) <= radius**2


def test_a_plain_view_is_the_crop_itself() -> None:
    volume = np.random.default_rng(0).standard_normal((20, 24, 28)).astype(np.float16)
    view = View(np.array([9.5, 10.5, 12.5]), np.eye(3))
    seen = sample_image(view, PATCH, volume.shape, lambda r: volume[r], fill=-9.0)
    expected = volume[2:18, 3:19, 5:21].astype(np.float32)
    np.testing.assert_allclose(seen.numpy(), expected, atol=1e-4)


def test_a_plain_view_reads_whole_numbers_exactly() -> None:
    volume = np.random.default_rng(0).integers(0, 9, (20, 24, 28)).astype(np.uint8)
    view = View(np.array([9.5, 10.5, 12.5]), np.eye(3))
    seen = sample_nearest(view, PATCH, volume.shape, lambda r: volume[r])
    np.testing.assert_array_equal(seen.numpy(), volume[2:18, 3:19, 5:21])


def test_outside_the_volume_lies_the_fill_and_no_mask() -> None:
    volume = np.full((4, 4, 4), 5.0, np.float32)
    view = View(np.array([1.5, 1.5, 1.5]), np.eye(3))
    seen = sample_image(view, PATCH, volume.shape, lambda r: volume[r], fill=-2.0).numpy()
    masks = sample_masks(view, PATCH, volume.shape, lambda r: np.ones((1, *volume[r].shape)), 1)
    assert np.count_nonzero(seen == 5.0) == 64
    assert np.count_nonzero(seen == -2.0) == PATCH**3 - 64
    assert int(masks.sum()) == 64


def test_a_view_beside_the_volume_reads_nothing() -> None:
    def refuse(_: object) -> np.ndarray:
        raise AssertionError("nothing should be read")

    view = View(np.array([100.0, 2.0, 2.0]), np.eye(3))
    assert torch.all(sample_image(view, 8, (4, 4, 4), refuse, fill=-3.0) == -3.0)
    assert not sample_masks(view, 8, (4, 4, 4), refuse, 2).any()


def test_mirroring_exchanges_left_and_right_only() -> None:
    volume = np.random.default_rng(0).standard_normal((16, 16, 16)).astype(np.float32)
    view = View(np.full(3, 7.5), np.diag([1.0, 1.0, -1.0]), mirrored=True)
    seen = sample_image(view, 16, volume.shape, lambda r: volume[r], fill=0.0)
    np.testing.assert_allclose(seen.numpy(), volume[:, :, ::-1], atol=1e-4)


@given(seed=st.integers(0, 10_000), scale=st.floats(0.5, 2.2), strong=st.booleans())
@settings(max_examples=25, deadline=None)
def test_image_and_masks_agree_in_every_view(seed: int, scale: float, strong: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (30, 34, 38)
    mask = ball(shape, (14, 17, 20), 9)
    view = draw_view(rng, np.array([15.0, 16.0, 18.0]), scale, PATCH, STRONG, strong=strong)
    image = mask.astype(np.float32)
    seen = sample_image(view, PATCH, shape, lambda r: image[r], fill=0.0) >= 0.5
    masks = sample_masks(view, PATCH, shape, lambda r: mask[r][None], 1)[0]
    nearest = sample_nearest(view, PATCH, shape, lambda r: mask[r].astype(np.uint8)) > 0
    surface = max(1, int(masks.sum())) ** (2 / 3)
    # A coarse view smooths the image, not the masks: they differ on the surface alone.
    assert int((seen != masks).sum()) <= 1.0 * surface
    assert int((nearest != masks).sum()) <= 2.0 * surface
    assert int(masks.sum()) > 20


@given(seed=st.integers(0, 10_000), scale=st.floats(0.5, 1.5))
@settings(max_examples=25, deadline=None)
def test_the_bounds_of_a_view_hold_everything_it_needs(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    volume = rng.standard_normal((40, 44, 48)).astype(np.float32)
    view = draw_view(rng, rng.uniform(10, 30, 3), scale, PATCH, STRONG, strong=True)
    part = sample_image(view, PATCH, volume.shape, lambda r: volume[r], fill=0.0)
    everything = (slice(0, 40), slice(0, 44), slice(0, 48))
    with pytest.MonkeyPatch.context() as patcher:
        patcher.setattr(views, "_region", lambda *_: everything)
        whole = sample_image(view, PATCH, volume.shape, lambda r: volume[r], fill=0.0)
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-4)


def test_a_coarse_view_is_smoothed_before_it_is_sampled() -> None:
    stripes = np.indices((48, 48, 48)).sum(axis=0) % 2 * 2.0 - 1.0
    for scale, remains in ((1.0, 0.9), (1.6, 0.5), (2.0, 0.05)):
        view = View(np.full(3, 23.5), np.eye(3) * scale)
        seen = sample_image(view, PATCH, stripes.shape, lambda r: stripes[r], fill=0.0)
        assert float(seen[2:-2, 2:-2, 2:-2].abs().max()) <= max(remains, 0.05) * 1.12


def test_bending_stays_within_its_control_points_and_keeps_a_shift() -> None:
    controls = np.full((3, 7, 7, 7), 2.5, np.float32)
    assert torch.allclose(smooth_field(controls, 20), torch.tensor(2.5))
    rough = np.random.default_rng(0).standard_normal((7, 7, 7)).astype(np.float32)
    field = smooth_field(rough, 20)
    assert float(field.max()) <= rough.max()
    assert float(field.min()) >= rough.min()


@pytest.mark.parametrize(
    ("centre", "expected"), [(0.0, 7.5), (50.0, 50.0), (99.0, 91.5), (7.5, 7.5)]
)
def test_a_crop_is_moved_into_the_volume(centre: float, expected: float) -> None:
    moved = clamp_centre(np.full(3, centre), (100, 100, 100), np.full(3, 16.0))
    np.testing.assert_allclose(moved, expected)


def test_a_volume_smaller_than_the_crop_is_centred() -> None:
    moved = clamp_centre(np.array([0.0, 9.0, 3.0]), (10, 10, 10), np.full(3, 16.0))
    np.testing.assert_allclose(moved, 4.5)
