"""What goes wrong ends with the right exit code, a message with four parts, and no traceback."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.commands.conftest import Iris, Ran


def _write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def references(tmp_path: Path) -> Path:
    """Two references: a bright ball, label 1."""
    folder = tmp_path / "refs"
    rng = np.random.default_rng(0)
    for index in range(2):
        ball = np.zeros((20, 20, 20), np.uint8)
        ball[6:12, 6:12, 6 + index : 12 + index] = 1
        _write(
            folder / "images" / f"case_{index}.nii.gz",
            (ball * 100 + rng.normal(size=ball.shape)).astype(np.float32),
        )
        _write(folder / "labels" / f"case_{index}.nii.gz", ball)
    (folder / "labels.json").write_text('{"ball": 1}')
    return folder


def _refused(ran: Ran, code: int, *parts: str) -> None:
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err
    for part in parts:
        assert part in ran.err, f"{part!r} is not in:\n{ran.err}"


def _encode(iris: Iris, references: Path, model: Path) -> Ran:
    return iris("encode-task", references, "-o", references / "x.task.pt", "-m", model, "-q")


def test_the_references_of_these_tests_are_fine(
    iris: Iris, references: Path, tiny_model: Path
) -> None:
    assert _encode(iris, references, tiny_model).code == 0


def test_a_mistyped_option(iris: Iris) -> None:
    _refused(iris("predict", "--inptu", "x"), 2, "--inptu", "--input")


def test_a_mistyped_command(iris: Iris) -> None:
    _refused(iris("encode_task"), 2, "encode_task", "encode-task")


def test_a_missing_file(iris: Iris, tmp_path: Path, references: Path, tiny_model: Path) -> None:
    _encode(iris, references, tiny_model)
    missing = tmp_path / "no.nii.gz"
    ran = iris(
        "predict",
        "-t",
        references / "x.task.pt",
        "-m",
        tiny_model,
        "-i",
        missing,
        "-o",
        tmp_path / "out",
    )
    _refused(ran, 2, str(missing), "fix")
    assert not (tmp_path / "out").exists()


def test_an_undeclared_label_value(iris: Iris, references: Path, tiny_model: Path) -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[5:9, 5:9, 5:9] = 1
    labels[0, 0, 0] = 7
    path = _write(references / "labels" / "case_1.nii.gz", labels)
    _refused(_encode(iris, references, tiny_model), 4, str(path), "7", "expected", "fix")


def test_an_empty_mask_is_refused_naming_file_and_class(
    iris: Iris, references: Path, tiny_model: Path
) -> None:
    paths = [
        _write(references / "labels" / f"case_{i}.nii.gz", np.zeros((20, 20, 20), np.uint8))
        for i in range(2)
    ]
    ran = _encode(iris, references, tiny_model)
    _refused(ran, 4, "'ball'", str(paths[0]), str(paths[1]), "nothing but zeros", "fix")
    assert not (references / "x.task.pt").exists()


def test_a_two_dimensional_image(iris: Iris, references: Path, tiny_model: Path) -> None:
    path = _write(references / "images" / "case_0.nii.gz", np.zeros((20, 20), np.float32))
    _refused(_encode(iris, references, tiny_model), 4, str(path), "20", "fix")


def test_a_truncated_file(iris: Iris, references: Path, tiny_model: Path) -> None:
    path = references / "images" / "case_0.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    _refused(_encode(iris, references, tiny_model), 4, str(path), "found", "expected", "fix")


def test_a_file_that_claims_more_than_it_holds(
    iris: Iris, references: Path, tiny_model: Path
) -> None:
    path = references / "images" / "case_0.nii.gz"
    whole = bytearray(gzip.decompress(path.read_bytes()))
    whole[42:44] = (30_000).to_bytes(2, "little")  # dim[1]
    path.write_bytes(gzip.compress(bytes(whole)))
    _refused(_encode(iris, references, tiny_model), 4, str(path), "found", "expected")


def test_image_and_label_on_different_grids(iris: Iris, references: Path, tiny_model: Path) -> None:
    labels = np.ones((20, 20, 20), np.uint8)
    path = _write(references / "labels" / "case_0.nii.gz", labels, np.diag([2.0, 1.0, 1.0, 1.0]))
    _refused(_encode(iris, references, tiny_model), 4, str(path), "2 x 1 x 1", "1 x 1 x 1", "fix")


def test_one_broken_query_does_not_stop_the_others(
    iris: Iris, references: Path, tiny_model: Path, tmp_path: Path
) -> None:
    _encode(iris, references, tiny_model)
    queries = tmp_path / "in"
    shutil.copytree(references / "images", queries)
    broken = queries / "case_0.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-40])
    line = (
        "predict",
        "-t",
        references / "x.task.pt",
        "-m",
        tiny_model,
        "-i",
        queries,
        "-o",
        tmp_path / "out",
    )
    _refused(iris(*line), 3, str(broken), "case_0")
    assert (tmp_path / "out" / "case_1.nii.gz").exists()
    assert not (tmp_path / "out" / "case_0.nii.gz").exists()


def test_a_task_of_another_model(
    iris: Iris, references: Path, tiny_model: Path, tmp_path: Path
) -> None:
    import torch

    from iris_cli.model.model import ModelCard, save_model
    from iris_cli.network.config import NetworkConfig
    from iris_cli.network.iris_network import IrisNetwork

    _encode(iris, references, tiny_model)
    torch.manual_seed(1)
    network = IrisNetwork(NetworkConfig.tiny())
    other = save_model(
        tmp_path / "other", network, ModelCard.of(network, name="other", s0=8.0, patch=32)
    )
    ran = iris(
        "predict",
        "-t",
        references / "x.task.pt",
        "-m",
        other,
        "-i",
        references / "images",
        "-o",
        tmp_path / "out",
    )
    _refused(ran, 4, "other", "tiny", "task refresh")


def test_a_plan_key_that_does_not_exist(iris: Iris, phantoms: Path, tmp_path: Path) -> None:
    ran = iris("plan", phantoms, "-w", tmp_path, "--set", "training.stepps=3")
    _refused(ran, 2, "training.stepps", "training.steps")


def test_a_device_that_is_not_there(iris: Iris, references: Path, tiny_model: Path) -> None:
    ran = iris(
        "encode-task",
        references,
        "-o",
        references / "x.task.pt",
        "-m",
        tiny_model,
        "--device",
        "cuda:77",
    )
    _refused(ran, 5, "cuda:77", "--device cpu")


def test_a_defect_is_said_to_be_one_and_debug_shows_where(
    iris: Iris, references: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, **_: object) -> None:
        raise ZeroDivisionError("in the middle")

    monkeypatch.setattr("iris_cli.workflows.info.describe", broken)
    _refused(iris("info", references), 1, "defect in iris", "in the middle", "--debug")
    assert "Traceback" in iris("info", references, "--debug").err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        type("OutOfMemoryError", (RuntimeError,), {})("Tried to allocate 20.00 GiB"),
    ],
)
def test_out_of_memory_is_no_defect(
    iris: Iris, references: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def starved(path: Path, **_: object) -> None:
        raise error

    monkeypatch.setattr("iris_cli.workflows.info.describe", starved)
    _refused(iris("info", references), 5, "not enough memory", "fewer workers")


def test_options_of_references_beside_a_task(iris: Iris, tmp_path: Path) -> None:
    words = ("predict", "-t", tmp_path / "x.task.pt", "-i", tmp_path, "-o", tmp_path / "out")
    _refused(iris(*words, "--cases", "a"), 2, "--cases", "--refs")
    _refused(iris(*words, "--labels", tmp_path / "l.json"), 2, "--labels", "--refs")


def test_cases_of_pairs(iris: Iris, references: Path, tmp_path: Path) -> None:
    image, label = (references / part / "case_0.nii.gz" for part in ("images", "labels"))
    words = ("encode-task", "--image", image, "--label", label, "-o", tmp_path / "x.task.pt")
    _refused(iris(*words, "--cases", "case_0"), 2, "here are pairs", "--cases")


def test_a_raw_folder_below_a_file(iris: Iris, references: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folders = (references / "images", references / "labels")
    names = ("--labels", references / "labels.json")
    ran = iris("convert", "pairs", *folders, *names, "-o", tmp_path / "file/x")
    _refused(ran, 5, "not a folder")
