"""A query far larger than the patch: nothing of the windows is left in what is blended."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.seams import between, blended, borders, side_by_side, steps_at, tile_borders
from iris_cli.dataset.phantoms import phantom_name, write_phantom_dataset
from iris_cli.model.model import Model
from iris_cli.volume.grid import Grid
from iris_cli.volume.orientation import AS_IT_IS
from iris_cli.volume.reading import NativeGeometry, Volume, read_image
from iris_cli.volume.resampling import resample_image
from tests.inference.conftest import PATCH, MakeTask

SPACING_MM = 2.3


def phantom(folder: Path) -> Volume:
    """A bar of a torso, four patches from side to side, on its working grid."""
    raw = write_phantom_dataset(folder, [3])
    volume = read_image(raw / "imagesTr" / f"{phantom_name(3)}_0000.nii.gz")
    working = volume.grid.working(SPACING_MM)
    array = resample_image(volume.array, volume.grid, working)[8:40, 20:68]
    grid = Grid.from_spacing(array.shape, (SPACING_MM,) * 3)
    return Volume(array, grid, NativeGeometry(grid, AS_IT_IS, None, ".nii.gz"), Path("torso"))


def test_logits_do_not_step_where_windows_begin_and_end(
    model: Model, make_task: MakeTask, tmp_path: Path
) -> None:
    volume = phantom(tmp_path)
    shape = volume.array.shape
    assert max(shape) > 3.9 * PATCH
    task = make_task(classes=2, spacing_mm=SPACING_MM, modality="ct")
    _, found = blended(model, task, volume)
    tiles = side_by_side(model, task, volume)
    planes = [borders(length, PATCH) for length in shape]
    for logits in found:
        at_borders = steps_at(logits, planes)
        assert at_borders < 1.1
        assert at_borders < steps_at(logits, [between(axis) for axis in planes]) + 0.05
    # Without the overlap they would.
    side_planes = [tile_borders(length, PATCH) for length in shape]
    assert max(steps_at(tiled, side_planes) for tiled in tiles) > 1.5


def test_a_step_is_seen_where_there_is_one() -> None:
    ramp = np.arange(40.0) + np.where(np.arange(40) >= 20, 3.0, 0.0)
    values = np.broadcast_to(ramp[:, None, None], (40, 2, 2))
    assert steps_at(values, [[20], [], []]) == 4
    assert steps_at(values, [[10], [], []]) == 1
    assert np.isnan(steps_at(values, [[1], [], []]))
