"""Overlays put right where radiologists look for it and show what they are given."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np

from iris_cli.report.overlay import Overlay, _centre, _slice, draw_overlay


def _marked(z: int, y: int, x: int) -> np.ndarray:
    volume = np.zeros((4, 5, 6), np.uint8)
    volume[z, y, x] = 1
    return volume


def test_the_patients_right_is_on_the_left_and_anterior_is_up() -> None:
    picture = _slice(_marked(1, 4, 5), "axial", (1, 0, 0))
    assert picture.shape == (5, 6)
    assert np.argwhere(picture).tolist() == [[0, 0]]


def test_superior_is_up_in_coronal_and_sagittal_pictures() -> None:
    assert np.argwhere(_slice(_marked(3, 2, 5), "coronal", (0, 2, 0))).tolist() == [[0, 0]]
    assert np.argwhere(_slice(_marked(3, 4, 2), "sagittal", (0, 0, 2))).tolist() == [[0, 0]]


def test_an_overlay_shows_prediction_and_truth(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(12, 16, 20))
    labels = np.zeros(image.shape, np.uint8)
    labels[4:8, 4:12, 4:12] = 1
    names = {1: "liver"}
    with_labels = Overlay("a", image, labels, labels, (2.0, 1.0, 1.0), names)
    empty = Overlay("a", image, np.zeros_like(labels), None, (2.0, 1.0, 1.0), names)
    pictures = [
        matplotlib.image.imread(draw_overlay(tmp_path / f"{i}.png", overlay))
        for i, overlay in enumerate((with_labels, empty))
    ]

    def coloured(picture: np.ndarray) -> int:
        blue, red = picture[..., 2], picture[..., 0]
        return int((blue - red > 0.15).sum())

    assert coloured(pictures[0]) > 10 * coloured(pictures[1])


def test_the_slices_go_through_the_median_of_the_foreground() -> None:
    for seed in range(20):
        labels = (np.random.default_rng(seed).random((5, 7, 6)) > 0.8).astype(np.uint8)
        overlay = Overlay("a", labels, labels, None, (1.0, 1.0, 1.0), {1: "liver"})
        medians = tuple(int(np.median(index)) for index in np.nonzero(labels))
        assert _centre(overlay) == medians
