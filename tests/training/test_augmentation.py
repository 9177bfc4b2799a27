from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from iris_cli.training.augmentation import (
    apply_curve,
    draw_curve,
    draw_zoom,
    lower_resolution,
    render_look,
)
from iris_cli.training.looks import Look
from iris_cli.training.settings import IntensitySettings
from iris_cli.training.views import Frame, View
from tests.training.stores import NO_INTENSITY

CPU = torch.device("cpu")


def image(seed: int = 0) -> np.ndarray:
    """Smooth noise: mean about 0, standard deviation 1."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((16, 16, 16)), 2)
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def test_a_curve_is_one_for_all_images_of_an_episode_and_keeps_mean_and_spread() -> None:
    images = [image(0), image(1)]
    curve = draw_curve(images, np.random.default_rng(3))
    assert curve is not None
    old = np.concatenate([i.ravel() for i in images])
    new = np.concatenate([apply_curve(torch.from_numpy(i), curve).numpy().ravel() for i in images])
    # Neighbours in old intensity are neighbours in new intensity.
    assert np.abs(np.diff(new[np.argsort(old)])).max() < 0.5
    assert new.std() == pytest.approx(old.std(), rel=0.1)
    assert new.mean() == pytest.approx(old.mean(), abs=0.25)  # of a sample of voxels


def test_about_half_of_the_curves_rise_or_fall_and_the_others_bend() -> None:
    kinds = {"rises": 0, "falls": 0, "bends": 0}
    for seed in range(60):
        curve = draw_curve([image()], np.random.default_rng(seed))
        assert curve is not None
        steps = np.diff(curve.heights)
        kinds["rises" if steps.min() >= 0 else "falls" if steps.max() <= 0 else "bends"] += 1
    assert min(kinds["rises"], kinds["falls"]) > 6
    assert 15 < kinds["bends"] < 45


def test_a_constant_image_has_no_curve() -> None:
    assert draw_curve([np.ones((8, 8, 8), np.float32)], np.random.default_rng(0)) is None


def test_low_resolution_takes_fine_detail_and_leaves_the_mean() -> None:
    fine = torch.from_numpy(np.random.default_rng(0).standard_normal((16, 16, 16))).float()
    coarse = lower_resolution(fine, (1.0, 1.0, 0.5))
    assert coarse.shape == fine.shape
    assert float(coarse.diff(dim=2).std()) < 0.6 * float(fine.diff(dim=2).std())
    assert float(coarse.mean()) == pytest.approx(float(fine.mean()), abs=1e-5)
    assert torch.allclose(lower_resolution(fine, (1.0, 1.0, 1.0)), fine, atol=1e-6)


def test_low_resolution_is_drawn_within_its_range_for_one_axis_or_all() -> None:
    often = IntensitySettings(low_resolution_probability=1, low_resolution=(0.5, 0.8))
    rng = np.random.default_rng(0)
    drawn = [draw_zoom(rng, often, strong=False) for _ in range(60)]
    coarse = [sum(z < 1 for z in zoom) for zoom in drawn if zoom is not None]
    assert len(coarse) == 60
    assert set(coarse) == {1, 3}
    assert draw_zoom(rng, NO_INTENSITY, strong=True) is None


def test_a_look_renders_image_masks_and_what_counts() -> None:
    numbers = np.zeros((12, 12, 12), np.uint8)
    numbers[2:6] = 1
    numbers[8:10] = 2
    look = Look(
        view=View(np.full(3, 5.5), np.eye(3)),
        image=torch.from_numpy(numbers.astype(np.float16)),
        image_frame=Frame((0.0, 0.0, 0.0)),
        fill=-1.0,
        labels=torch.from_numpy(numbers),
        label_frame=Frame((0.0, 0.0, 0.0)),
        table=np.array([[False, False], [True, False], [False, True]]),
    )
    seen = render_look(look, 12, None, CPU)
    np.testing.assert_allclose(seen.image, numbers, atol=1e-3)
    np.testing.assert_array_equal(seen.masks[0], numbers == 1)
    np.testing.assert_array_equal(seen.counted, numbers != 2)
    voxels, counted = look.centre_voxels(12)
    assert voxels[0] == pytest.approx(4 * 144)
    assert counted == pytest.approx(10 * 144)
