"""Images in memory: the labels of the command line, in the kind and geometry that was given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from iris_cli.errors import DataRefused, EnvironmentProblem, UsageError
from iris_cli.inference.job import PredictPayload, predict_case
from iris_cli.inference.memory import Limits
from iris_cli.inference.predictor import Predictor
from iris_cli.model.model import Model
from iris_cli.task.task_file import Task, read_task, write_task
from tests.inference.conftest import MakeTask, noise

SHAPE_XYZ = (21, 18, 25)
NAMES = {5: "c0", 4: "c1", 3: "c2", 2: "c3"}
AXES = [
    ((0, 1, 2), (1, 1, 1)),
    ((2, 0, 1), (-1, 1, -1)),
    ((1, 2, 0), (-1, -1, 1)),
]
ByFile = Callable[[Path], Path]


@pytest.fixture
def task(task_file: Path) -> Task:
    return read_task(task_file)


@pytest.fixture
def predictor(model: Model, task: Task) -> Predictor:
    return Predictor(model, task)


@pytest.fixture
def by_file(tmp_path: Path, task_file: Path, model_folder: Path) -> ByFile:
    """The label map that the command line makes of a file."""

    def run(query: Path) -> Path:
        output = tmp_path / "out" / "q.nii.gz"
        payload = PredictPayload("q", query, output, task_file, model=str(model_folder))
        predict_case(payload)
        return output

    return run


def turned_affine(axes: tuple[int, ...], signs: tuple[int, ...], angle: float) -> np.ndarray:
    """Voxels of unequal edges, axes in any order and direction, turned about x by an angle."""
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = np.zeros((4, 4))
    for stored, (axis, sign, edge) in enumerate(zip(axes, signs, (1.5, 2.0, 1.2), strict=True)):
        affine[axis, stored] = sign * edge
    affine[:, 3] = (7, -11, 23, 1)
    return np.asarray(turn @ affine)


def nifti(affine: np.ndarray, kind: Any = nibabel.Nifti1Image) -> Any:
    return kind(noise(SHAPE_XYZ, 3), affine)


@pytest.mark.parametrize(("axes", "angle"), [(AXES[0], 0.3), (AXES[1], 0.0), (AXES[2], 0.3)])
def test_a_nibabel_image_gets_what_its_file_gets(
    axes: tuple[tuple[int, ...], tuple[int, ...]],
    angle: float,
    predictor: Predictor,
    by_file: ByFile,
    tmp_path: Path,
) -> None:
    image = nifti(turned_affine(*axes, angle))
    nibabel.save(image, tmp_path / "q.nii.gz")
    written = nibabel.load(by_file(tmp_path / "q.nii.gz"))
    for given in (image, nibabel.load(tmp_path / "q.nii.gz")):
        found = predictor.predict(given)
        assert isinstance(found.labels, nibabel.Nifti1Image)
        np.testing.assert_array_equal(found.labels.dataobj, written.dataobj)
        np.testing.assert_array_equal(found.labels.affine, written.affine)
        assert found.labels.header == written.header
        assert len(np.unique(found.labels.dataobj)) > 2
        assert found.names == NAMES


@pytest.mark.parametrize(
    ("axes", "ending"), [*zip(AXES, (".mha", ".nrrd", ".nii.gz"), strict=True)]
)
def test_a_simpleitk_image_gets_what_its_file_gets(
    axes: tuple[tuple[int, ...], tuple[int, ...]],
    ending: str,
    predictor: Predictor,
    by_file: ByFile,
    tmp_path: Path,
) -> None:
    affine = np.diag([-1, -1, 1, 1]) @ turned_affine(*axes, 0.3)
    image = SimpleITK.GetImageFromArray(noise(SHAPE_XYZ[::-1], 3))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    query = tmp_path / f"q{ending}"
    SimpleITK.WriteImage(image, str(query))
    written = SimpleITK.ReadImage(str(by_file(query)))
    for given in (image, SimpleITK.ReadImage(str(query))):
        labels = predictor.predict(given).labels
        assert isinstance(labels, SimpleITK.Image)
        assert labels.GetDirection() == given.GetDirection()
        assert labels.GetOrigin() == given.GetOrigin()
        assert labels.GetSpacing() == given.GetSpacing()
        np.testing.assert_array_equal(
            SimpleITK.GetArrayFromImage(labels), SimpleITK.GetArrayFromImage(written)
        )


def test_an_array_keeps_its_axes_and_says_what_was_found(
    predictor: Predictor, by_file: ByFile, tmp_path: Path
) -> None:
    affine = turned_affine(*AXES[1], 0.0)
    image = nifti(affine)
    nibabel.save(image, tmp_path / "q.nii.gz")
    expected = np.asarray(nibabel.load(by_file(tmp_path / "q.nii.gz")).dataobj)
    found = predictor.predict(np.asarray(image.dataobj).T, affine=affine)
    np.testing.assert_array_equal(found.labels, expected.T)
    assert found.labels.dtype == np.uint8
    counted = {name: int((expected == value).sum()) for value, name in NAMES.items()}
    assert found.voxels == counted
    assert set(found.confidence) == {name for name, voxels in counted.items() if voxels}


def test_scaled_numbers_and_other_units_are_those_of_the_file(
    model: Model, make_task: MakeTask, task_file: Path, by_file: ByFile, tmp_path: Path
) -> None:
    task = make_task(modality="ct")  # in which the numbers themselves count
    write_task(task_file, task)
    image = nibabel.Nifti2Image(
        (10 * noise(SHAPE_XYZ, 3)).astype(np.int16), np.diag([1500, 2000, 1200, 1])
    )
    image.header.set_slope_inter(0.1, -7)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "q.nii")
    written = nibabel.load(by_file(tmp_path / "q.nii"))
    found = Predictor(model, task).predict(nibabel.load(tmp_path / "q.nii"))
    np.testing.assert_array_equal(found.labels.dataobj, written.dataobj)
    assert found.labels.header == written.header
    assert any("micrometres" in flag for flag in found.flags)


def test_a_format_that_is_not_nifti_comes_back_as_itself(predictor: Predictor) -> None:
    affine = turned_affine(*AXES[2], 0.0)
    found = predictor.predict(nibabel.MGHImage(noise(SHAPE_XYZ, 3), affine.astype(np.float32)))
    assert isinstance(found.labels, nibabel.MGHImage)
    expected = predictor.predict(nifti(affine)).labels
    np.testing.assert_array_equal(found.labels.dataobj, expected.dataobj)


def test_what_cannot_be_placed_or_read_is_refused(predictor: Predictor) -> None:
    array = noise(SHAPE_XYZ[::-1])
    with pytest.raises(UsageError, match="an affine or a spacing"):
        predictor.predict(array)
    with pytest.raises(UsageError, match="an affine or a spacing"):
        predictor.predict(array, affine=np.eye(4), spacing_xyz=1.0)
    with pytest.raises(UsageError, match="affine of its own"):
        predictor.predict(nifti(np.eye(4)), affine=np.eye(4))
    with pytest.raises(UsageError, match="no image that iris knows"):
        predictor.predict("scan.nii.gz")
    with pytest.raises(DataRefused, match="2-D"):
        predictor.predict(array[0], spacing_xyz=1.0)
    with pytest.raises(DataRefused, match="plain numbers"):
        predictor.predict(array.astype(np.complex64), spacing_xyz=1.0)
    with pytest.raises(DataRefused, match="several numbers"):
        predictor.predict(SimpleITK.Image([9, 9, 9], SimpleITK.sitkVectorFloat32, 2))
    unplaced = nifti(np.eye(4))
    unplaced.header["sform_code"] = unplaced.header["qform_code"] = 0
    with pytest.raises(DataRefused, match="where the voxels are"):
        predictor.predict(unplaced)
    assert predictor.predict(unplaced, spacing_xyz=1.5).names == NAMES


def test_a_predictor_of_a_task_of_another_model_or_class_cannot_be_made(
    model: Model, make_task: MakeTask
) -> None:
    task = make_task()
    other = task.header.model.model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(DataRefused, match="another model"):
        Predictor(model, make_task(model=other))
    with pytest.raises(UsageError, match="no class 'c9'"):
        Predictor(model, task, classes=("c9",))
    limited = Predictor(model, task, limits=Limits(ram=1))
    with pytest.raises(EnvironmentProblem, match="memory"):
        limited.predict(noise((9, 9, 9)), spacing_xyz=1.5)
