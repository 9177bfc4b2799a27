"""nnU-Net reads what we write, and its evaluation of our predictions gives our Dice.

Set NNUNET_PYTHON to the Python of an environment with nnunetv2 (it is large, and has its own
torch): `python -m venv nn && nn/bin/pip install torch==2.13.0 nnunetv2`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataset_conversion.pairs import PairsOptions, convert_pairs
from iris_cli.dataset.phantoms import CLASSES, write_phantom_dataset
from iris_cli.volume.reading import read_image, read_labels
from iris_cli.volume.writing import write_labels
from iris_cli.workflows.evaluate import evaluate
from tests.preparation.raw_sets import make_set
from tests.preparation.test_integrity import DEFECTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

_DOCS = Path(__file__).resolve().parents[2] / "docs"
_SIDES: dict[str, int | list[int]] = {"left": 1, "right": 2}

_INTEGRITY = """
import sys
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
verify_dataset_integrity(sys.argv[1], num_processes=1)
"""
# All sets in one process, and its pool in this process: starting one takes seconds.
_VERDICTS = """
import contextlib, io, json, sys
from pathlib import Path
from nnunetv2.experiment_planning import verify_dataset_integrity as module
class Here:
    def __init__(self, *_): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def starmap(self, function, rows): return [function(*row) for row in rows]
module.multiprocessing.get_context = lambda *_: type("Context", (), {"Pool": Here})
verdicts = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    said, verdict = io.StringIO(), "silent"
    with contextlib.redirect_stdout(said):
        try:
            module.verify_dataset_integrity(str(folder), 1)
        except (AssertionError, RuntimeError) as error:
            ours = "SimpleITK" not in str(error) and str(error)
            verdict = "refuses" if ours else "an exception"
    if verdict == "silent" and "warning" in said.getvalue().lower():
        verdict = "warns"
    verdicts[folder.name.partition("_")[2]] = verdict
Path(sys.argv[2]).write_text(json.dumps(verdicts))
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
    options = PairsOptions(names=names, modality="ct")
    convert_pairs(pairs / "images", pairs / "labels", target, options).run.raise_for_failures()
    _run(nnunet, _INTEGRITY, tmp_path, target)


def test_the_docs_say_what_nnunets_integrity_check_does(nnunet: str, tmp_path: Path) -> None:
    """The last column of docs/data-checks.md, defect by defect."""
    sys.path.insert(0, str(_DOCS))
    try:
        from generate_data_checks import NNUNET
    finally:
        sys.path.pop(0)
    sets = tmp_path / "sets"
    for number, (defect, (_, damage)) in enumerate(DEFECTS.items(), 1):
        name = defect.replace(" ", "_")
        folder = sets / f"Dataset{number:03d}_{name}"
        good = ("good_1", "good_2", "good_3")
        make_set(folder, (*good, name), channels={"0": "MR T1", "1": "MR T2"}, labels=_SIDES)
        damage(folder, name)
    _run(nnunet, _VERDICTS, tmp_path, sets, tmp_path / "verdicts.json")
    verdicts = json.loads((tmp_path / "verdicts.json").read_text())
    for defect, (code, _) in DEFECTS.items():
        found = verdicts[defect.replace(" ", "_")]
        assert found in NNUNET[code] or NNUNET[code] == "no such notion", (defect, found)


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
