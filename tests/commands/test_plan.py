"""`iris plan` shows every decision with its reason, readable on a narrow terminal."""

import json
from pathlib import Path

import numpy as np

from iris_cli.volume.writing import write_image
from tests.commands.conftest import Iris
from tests.preparation.raw_sets import SHAPE, grid, image_file, make_set


def test_every_reason_estimate_and_finding_is_printed(iris: Iris, tmp_path: Path) -> None:
    raw = make_set(tmp_path / "raw" / "boxes", channels={"0": "MR T1"}, test=("held",))
    make_set(tmp_path / "raw" / "boxes.v2", ("a", "b"), unlabelled=("u",))
    write_image(image_file(raw, "a"), np.full(SHAPE, 3.0), grid())
    ran = iris("plan", "-w", tmp_path, "--preset", "tiny", "--set", "training.steps=3")
    assert ran.code == 0, ran.err
    words = " ".join(ran.out.split())
    plan = json.loads((tmp_path / "plans" / "default.json").read_text())
    for why in plan["reasons"].values():
        assert " ".join(why.split()) in words
    assert "training.steps: set by hand (--set)" in words
    assert "cases: 4 train, 1 validate, 1 test, 0 unlabelled" in words
    assert "cases: 2 train, 0 validate, 0 test, 1 unlabelled" in words
    assert "classes: 2: one, two" in words
    assert "warning boxes/a: every voxel has the same value" in words
    assert f"file: {image_file(raw, 'a')}" in words
    assert "found: 3" in words
    assert "memory of a training step" in words
    assert "GiB on CPU" in words
    assert "GiB on CUDA" in words
    assert "memory of iris preprocess: at most" in words
    # Reasons of boxes.v2 stand in its own block, not in that of boxes.
    assert ran.out.index("2 training subjects") > ran.out.index("set boxes.v2")


def test_no_line_is_wider_than_a_terminal_but_for_paths(iris: Iris, tmp_path: Path) -> None:
    raw = make_set(tmp_path / "raw" / "boxes", labels={f"class {i}": i + 1 for i in range(30)})
    write_image(image_file(raw, "a"), np.full(SHAPE, 3.0), grid())
    out = iris("plan", "-w", tmp_path, "--preset", "tiny").out
    assert "class 11 and 18 more" in " ".join(out.split())
    wide = [line for line in out.splitlines() if len(line) > 80]
    assert all(len(line.split()) == 1 for line in wide)
