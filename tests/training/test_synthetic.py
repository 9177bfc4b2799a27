from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.real import RealTasks
from iris_cli.training.settings import TaskSettings
from iris_cli.training.synthetic import SyntheticTasks, paint, random_scene, repaint
from tests.training.stores import balls, still, training

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
    label = np.zeros((SIZE,) * 3, np.int16)
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
    result, fill = repaint(image, mask, np.array([[5.0, 0.01]]), curve, rng, fill=-1.0)
    assert result[mask[0]].mean() > result[~mask[0]].max() - 1.0
    background = result[:, 0, 0]
    assert background[0] > background[-1], "the curve falls"
    assert abs(fill - background[0]) < abs(fill - background[-1]), "air stays what it is beside"


def test_a_scene_always_works_out_and_its_masks_lie_on_its_images() -> None:
    tasks = SyntheticTasks(training(task=TaskSettings(decoy_share=0, references_max=2)), SIZE, None)
    separable = 0
    for seed in range(10):
        draft = tasks.draw_scene(np.random.default_rng(seed))
        assert len(draft.looks) == len(draft.annotated)
        for look in draft.looks:
            image = look.image.numpy()
            for mask in look.table[look.labels.numpy()].T[:-1]:
                if 50 < mask.sum() < mask.size / 2:
                    # The painted level of a shape differs from its surroundings' as a rule.
                    contrast = abs(image[mask].mean() - image[~mask].mean())
                    separable += contrast > 0.3 * image[mask].std()
    assert separable > 20


def test_a_repainted_label_map_stays_under_its_image_where_the_store_is_finer(
    tmp_path: Path,
) -> None:
    """Beyond twice the patch's resolution images are halved; the labels must come along."""
    changes = {
        "geometry": still(),
        "task": TaskSettings(decoy_share=0, union_probability=0, class_drop=0),
    }
    settings = training(**changes)
    settings = settings.model_copy(
        update={"geometry": settings.geometry.model_copy(update={"scale_min": 2, "scale_max": 2})}
    )
    real = RealTasks(read_catalogue([balls(tmp_path)]), settings, 16)
    tasks = SyntheticTasks(settings, 16, real)
    halved = 0
    for seed in range(12):
        draft = tasks._repainted(np.random.default_rng(seed), real)
        assert draft is not None
        for look in draft.looks:
            assert look.labels.shape == look.image.shape
            assert look.label_frame == look.image_frame
            halved += look.image_frame.step == 2
    assert halved > 10
