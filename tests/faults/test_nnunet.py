"""nnU-Net reads what we write, and its evaluation of our predictions gives our Dice.

Set NNUNET_PYTHON to the Python of an environment with nnunetv2 (it is large, and has its own
torch): `python -m venv nn && nn/bin/pip install torch==2.13.0 nnunetv2`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from iris_cli.dataset.pairs import convert_pairs
from iris_cli.dataset.phantoms import CLASSES, write_phantom_dataset
from iris_cli.volume.reading import read_image, read_labels
from iris_cli.volume.writing import write_labels
from iris_cli.workflows.evaluate import evaluate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

_INTEGRITY = """
import sys
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
verify_dataset_integrity(sys.argv[1], num_processes=1)
"""
_EVALUATE = """
import json, sys
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
reference, predicted, output, labels = sys.argv[1:]
compute_metrics_on_folder(
    reference, predicted, output, SimpleITKIO(), ".nii.gz", json.loads(labels), num_processes=1
)
"""


@pytest.fixture(scope="module")
def nnunet() -> str:
    """The Python that has nnunetv2."""
    python = os.environ.get("NNUNET_PYTHON")
    if not python:
        pytest.skip("NNUNET_PYTHON names no Python with nnunetv2")
    return python


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and labels/ of phantoms in mixed orientations, with plain names."""
    folder = tmp_path_factory.mktemp("pairs")
    raw = write_phantom_dataset(folder / "raw", [1, 2, 3], voxel_mm=6.0)
    for source, target in (("imagesTr", "images"), ("labelsTr", "labels")):
        (folder / target).mkdir()
        for path in (raw / source).iterdir():
            path.rename(folder / target / path.name.replace("_0000", ""))
    return folder


def _run(python: str, code: str, folder: Path, *arguments: object) -> None:
    environment = {
        **os.environ, "nnUNet_raw": str(folder), "nnUNet_preprocessed": str(folder),
        "nnUNet_results": str(folder), "PYTHONPATH": "",
    }  # fmt: skip
    words = [python, "-c", code, *map(str, arguments)]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_converted_folder_passes_nnunets_own_integrity_check(
    nnunet: str, pairs: Path, tmp_path: Path
) -> None:
    target = tmp_path / "Dataset001_Torso"
    names = [f"{name}={value}" for name, value in CLASSES.items()]
    convert_pairs(pairs / "images", pairs / "labels", target, names=names, modality="ct")
    _run(nnunet, _INTEGRITY, tmp_path, target)


def test_nnunets_evaluation_gives_our_numbers(nnunet: str, pairs: Path, tmp_path: Path) -> None:
    predicted = tmp_path / "predicted"
    rng = np.random.default_rng(0)
    for path in sorted((pairs / "labels").iterdir()):
        volume = read_labels(path)
        labels = np.roll(volume.array, 1, axis=0)
        labels[rng.random(labels.shape) < 0.05] = 0
        write_labels(predicted / path.name, labels, volume.native)
    names = [f"{name}={value}" for name, value in CLASSES.items()]
    ours = evaluate(predicted, pairs / "labels", names=names).summary.to_json()
    theirs_path = tmp_path / "nnunet.json"
    values = json.dumps(list(CLASSES.values()))
    _run(nnunet, _EVALUATE, tmp_path, pairs / "labels", predicted, theirs_path, values)
    theirs = json.loads(theirs_path.read_text())
    assert theirs["foreground_mean"]["Dice"] == pytest.approx(ours["foreground_mean"]["Dice"])
    assert ours["iris"]["headline_dice"]["mean"] == pytest.approx(theirs["foreground_mean"]["Dice"])
    for value in CLASSES.values():
        for metric, expected in theirs["mean"][str(value)].items():
            assert ours["mean"][str(value)][metric] == pytest.approx(expected), (value, metric)
    assert set(theirs) <= set(ours)
    assert set(theirs["metric_per_case"][0]) <= set(ours["metric_per_case"][0])


def test_we_read_what_nnunet_writes(nnunet: str, pairs: Path, tmp_path: Path) -> None:
    source = sorted((pairs / "images").iterdir())[0]
    code = """
import sys
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
io = SimpleITKIO()
data, properties = io.read_images([sys.argv[1]])
io.write_seg((data[0] > 0).astype("uint8"), sys.argv[2], properties)
"""
    written = tmp_path / "seg.nii.gz"
    _run(nnunet, code, tmp_path, source, written)
    image, labels = read_image(source), read_labels(written)
    assert np.array_equal(labels.array, (image.array > 0).astype(np.uint8))
    assert np.allclose(labels.grid.affine, image.grid.affine, atol=1e-4)
