"""The contact sheet of a step."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import numpy.typing as npt

from iris_cli.report.sheet import SheetClass, SheetRow, draw_sheet


def row(classes: int) -> SheetRow:
    rng = np.random.default_rng(0)
    masks = np.zeros((classes, 24, 24), bool)
    masks[0, 4:20, 4:20] = True
    image = rng.normal(size=(24, 24)).astype(np.float32)
    named = tuple(SheetClass(f"class {i}", None if i else 0.5) for i in range(classes))
    return SheetRow("real: a", named, image, masks, image, masks, np.zeros_like(masks))


def coloured(picture: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    return np.ptp(picture[..., :3], axis=2) > 0.05


def test_masks_are_coloured_where_they_are_and_nowhere_else(tmp_path: Path) -> None:
    picture = matplotlib.image.imread(draw_sheet(tmp_path / "s.png", "run, step 1", [row(1)]))
    # The last column names the classes; the others are equally wide.
    width = picture.shape[1] / 6
    columns = [coloured(picture[:, int(i * width) : int((i + 1) * width)]).mean() for i in range(5)]
    shows = [share > 0.1 for share in columns]
    assert shows == [False, True, False, True, False]


def test_a_sheet_has_a_row_for_each_episode_and_takes_many_classes(tmp_path: Path) -> None:
    one = matplotlib.image.imread(draw_sheet(tmp_path / "1.png", "t", [row(1)]))
    many = matplotlib.image.imread(draw_sheet(tmp_path / "4.png", "t", [row(13)] * 2))
    assert many.shape[0] > 1.5 * one.shape[0]
