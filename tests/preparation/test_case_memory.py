"""What preprocessing a case will take is known from the headers of its files."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from iris_cli.preparation import case_memory
from iris_cli.preparation.case_memory import case_bytes, predicted_bytes
from iris_cli.preparation.preprocess import PreprocessPayload
from iris_cli.volume.grid import Grid
from iris_cli.volume.writing import write_image, write_labels

STRAIGHT = np.eye(4)
TURNED = np.diag([-1.0, -1.0, 1.0, 1.0])


def case(
    folder: Path,
    shape: tuple[int, int, int] = (100, 128, 128),
    *,
    dtype: type = np.int16,
    affine: np.ndarray = STRAIGHT,
    modality: str = "ct",
) -> PreprocessPayload:
    grid = Grid(shape, affine)
    rng = np.random.default_rng(0)
    labels = np.zeros(shape, np.uint8)
    labels[10:40, 20:60, 30:70] = 1
    image = rng.integers(-900, 900, shape).astype(dtype)
    write_image(folder / "image.nii.gz", image, grid, dtype=dtype)
    write_labels(folder / "label.nii.gz", labels, grid)
    return PreprocessPayload(
        folder=folder / "store",
        set="set",
        case="a",
        subject="a",
        role="train",
        images=(folder / "image.nii.gz",),
        label=folder / "label.nii.gz",
        modalities=(modality,),
        classes={"box": (1,)},
        ignore_value=None,
        not_annotated=frozenset(),
        absent_is_background=True,
        spacing_mm=1.0,
    )


def test_it_grows_with_working_voxels_and_stored_bytes(tmp_path: Path) -> None:
    plain = case(tmp_path / "plain")
    fine = dataclasses.replace(plain, spacing_mm=0.5)
    voxels = 100 * 128 * 128
    # Two bytes of image and one of label map for each of eight times as many voxels.
    assert case_bytes(fine) - case_bytes(plain) == pytest.approx(7 * 3 * voxels, rel=0.01)
    wide = case(tmp_path / "wide", dtype=np.float32)
    assert case_bytes(wide) - case_bytes(plain) == pytest.approx(2 * voxels, rel=0.01)


def test_a_volume_whose_axes_are_turned_is_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case_memory, "SLAB_BYTES", 0)
    straight, turned = (
        dataclasses.replace(case(tmp_path / str(n), affine=affine), spacing_mm=8.0)
        for n, affine in enumerate((STRAIGHT, TURNED))
    )
    more = case_bytes(turned) - case_bytes(straight)
    assert more == pytest.approx(2 * 100 * 128 * 128, rel=0.01)


def test_a_header_that_cannot_be_read_is_left_to_the_work_on_the_case(tmp_path: Path) -> None:
    payload = case(tmp_path, (4, 4, 4))
    payload.images[0].write_bytes(b"torn")
    assert predicted_bytes(payload) is None


_PEAK = """
import pickle, sys
from pathlib import Path
from iris_cli.preparation.preprocess import preprocess_case
preprocess_case(pickle.load(sys.stdin.buffer))
# Not ru_maxrss, which a child inherits from the process that started it.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux reports it")
@pytest.mark.parametrize("modality", ["ct", "other"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("affine", [STRAIGHT, TURNED], ids=["straight", "turned"])
def test_a_large_case_takes_what_was_predicted(
    tmp_path: Path, modality: str, dtype: type, affine: np.ndarray
) -> None:
    payload = case(tmp_path, (300, 400, 400), dtype=dtype, affine=affine, modality=modality)
    ran = subprocess.run(
        [sys.executable, "-c", _PEAK], input=pickle.dumps(payload), capture_output=True, check=True
    )
    assert case_bytes(payload) == pytest.approx(json.loads(ran.stdout), rel=0.15)
