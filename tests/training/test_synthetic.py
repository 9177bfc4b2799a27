from __future__ import annotations

import numpy as np
import pytest

from iris_cli.training.settings import TaskSettings
from iris_cli.training.synthetic import SyntheticTasks, paint, random_scene, repaint
from tests.training.stores import training

SIZE = 24


def test_scenes_have_several_shapes_of_some_size() -> None:
    counts = []
    for seed in range(12):
        scene = random_scene(np.random.default_rng(seed), SIZE)
        assert scene.shape == (SIZE,) * 3
        counts.append(np.count_nonzero(np.bincount(scene.ravel()) >= 27))
    assert min(counts) >= 2
    assert max(counts) >= 5


def test_a_painted_image_shows_its_label_map() -> None:
    label = np.zeros((SIZE,) * 3, np.int64)
    label[4:14, 4:14, 4:14] = 1
    label[15:22, 15:22, 15:22] = 2
    table = np.array([[-1.5, 0.05], [1.5, 0.05], [0.2, 0.05]])
    for seed in range(5):
        image = paint(label, table, np.random.default_rng(seed))
        means = [image[label == v].mean() for v in range(3)]
        assert means[0] < means[2] < means[1]
        assert image.mean() == pytest.approx(0, abs=1e-3)
        assert image.std() == pytest.approx(1, abs=1e-3)


def test_repainting_gives_a_class_its_level_and_the_background_a_curve() -> None:
    rng = np.random.default_rng(0)
    image = np.repeat(np.linspace(-1, 1, SIZE, dtype=np.float32)[:, None, None], SIZE, 1)
    image = np.ascontiguousarray(np.repeat(image, SIZE, 2))
    mask = np.zeros((1, *image.shape), bool)
    mask[0, 8:16, 8:16, 8:16] = True
    curve = np.array([-1.0, 1.0]), np.array([1.0, -1.0])
    result = repaint(image, mask, np.array([[5.0, 0.01]]), curve, rng)
    assert result[mask[0]].mean() > result[~mask[0]].max() - 1.0
    background = result[:, 0, 0]
    assert background[0] > background[-1], "the curve falls"


def test_a_scene_always_works_out_and_its_masks_lie_on_its_images() -> None:
    tasks = SyntheticTasks(training(task=TaskSettings(references_max=2)), SIZE, None)
    separable = 0
    for seed in range(10):
        draft = tasks.draw_scene(np.random.default_rng(seed))
        assert len(draft.images) == len(draft.masks) == len(draft.annotated)
        for image, masks in zip(draft.images, draft.masks, strict=True):
            for mask in masks.numpy():
                if 50 < mask.sum() < mask.size / 2:
                    # The painted level of a shape differs from its surroundings' as a rule.
                    contrast = abs(image[mask].mean() - image[~mask].mean())
                    separable += contrast > 0.3 * image[mask].std()
    assert separable > 20
