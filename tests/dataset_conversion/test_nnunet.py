"""nnU-Net's own integrity check on converted miniatures of different kinds.

Set NNUNET_PYTHON to the Python of an environment with nnunetv2 (see tests/faults/test_nnunet.py).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dataset_conversion.registry import run
from tests.dataset_conversion.favourite_sets import FAVOURITE_SETS
from tests.dataset_conversion.miniature import Miniature
from tests.dataset_conversion.paper_sets import PAPER_SETS
from tests.dataset_conversion.test_forms import bids_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# 4-D images, four channels with renumbered labels, one mask file per class, DICOM with PNG masks,
# float probabilities, a label map on another grid, slices first.
KINDS = (
    "msd_prostate",
    "brats2020",
    "totalsegmentator_mr",
    "chaos_mr",
    "brain_dlbs",
    "kits23",
)
_INTEGRITY = """
import sys
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
verify_dataset_integrity(sys.argv[1], num_processes=1)
"""


@pytest.fixture(scope="module")
def nnunet() -> str:
    """The Python that has nnunetv2."""
    python = os.environ.get("NNUNET_PYTHON")
    if not python:
        pytest.skip("NNUNET_PYTHON names no Python with nnunetv2")
    return python


def verify(python: str, folder: Path) -> None:
    paths = dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), str(folder))
    environment = {**os.environ, **paths, "PYTHONPATH": ""}
    words = [python, "-c", _INTEGRITY, str(folder)]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("name", KINDS)
def test_a_converted_miniature_passes(nnunet: str, name: str, tmp_path: Path) -> None:
    sets: dict[str, Miniature] = {m.name: m for m in (*PAPER_SETS, *FAVOURITE_SETS)}
    sets[name].build(tmp_path / "source")
    target = tmp_path / "Dataset001_Converted"
    run(name, tmp_path / "source", target)
    verify(nnunet, target)


def test_converted_bids_passes(nnunet: str, tmp_path: Path) -> None:
    target = tmp_path / "Dataset002_Bids"
    run("bids", bids_folder(tmp_path / "source"), target)
    verify(nnunet, target)
