"""`iris plan` shows every decision with its reason, readable on a narrow terminal."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from iris_cli.volume.reading import read_labels
from iris_cli.volume.writing import write_image
from tests.commands.conftest import Iris
from tests.preparation.raw_sets import SHAPE, grid, image_file, label_file, make_set


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


def test_a_refusal_shows_a_table_and_its_json_holds_every_finding(
    iris: Iris, tmp_path: Path
) -> None:
    raw = make_set(tmp_path / "raw" / "boxes", labels={"left box": 2, "right box": 1})
    image_file(raw, "c").write_bytes(b"no volume")
    ran = iris("plan", "-w", tmp_path, "--preset", "tiny")
    assert ran.code == 4
    assert "sides-swapped" in ran.out
    assert "refused, cannot be accepted" in ran.out
    assert "--accept sides-swapped" in ran.err
    assert not (tmp_path / "plans" / "default.json").exists()
    ran = iris("plan", "-w", tmp_path, "--preset", "tiny", "--json")
    assert ran.code == 4
    (report,) = json.loads(ran.out)["integrity"]
    found = {(f["code"], f["case"], f["severity"]) for f in report["findings"]}
    assert ("unreadable", "c", "error") in found
    assert ("sides-swapped", None, "error") in found


def test_what_is_accepted_stands_in_the_plan(iris: Iris, tmp_path: Path) -> None:
    make_set(tmp_path / "raw" / "boxes", labels={"left box": 2, "right box": 1})
    assert iris("plan", "-w", tmp_path, "--preset", "tiny").code == 4
    ran = iris("plan", "-w", tmp_path, "--preset", "tiny", "--accept", "sides-swapped")
    assert ran.code == 0, ran.err
    plan = json.loads((tmp_path / "plans" / "default.json").read_text())
    assert "by hand (--accept)" in plan["reasons"]["sets.boxes.accepted.sides-swapped"]
    assert "accepted boxes: left and right are exchanged" in " ".join(ran.out.split())


def test_an_unknown_or_hopeless_code_is_refused(iris: Iris, tmp_path: Path) -> None:
    make_set(tmp_path / "raw" / "boxes")
    ran = iris("plan", "-w", tmp_path, "--accept", "side-swapped")
    assert ran.code == 2
    assert "did you mean 'sides-swapped'?" in ran.err
    ran = iris("plan", "-w", tmp_path, "--accept", "unreadable")
    assert ran.code == 2
    assert "cannot be accepted" in ran.err


def test_repaired_label_maps_are_those_before_the_flip(iris: Iris, tmp_path: Path) -> None:
    raw = make_set(tmp_path / "raw" / "boxes")
    before = {case: read_labels(label_file(raw, case)) for case in "ab"}
    image = nib.load(label_file(raw, "a"))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), lps @ image.affine), label_file(raw, "a"))
    image = nib.load(label_file(raw, "b"))
    turned = np.asarray(image.dataobj).transpose(2, 1, 0)
    nib.save(nib.Nifti1Image(turned, image.affine), label_file(raw, "b"))
    ran = iris("plan", "-w", tmp_path, "--preset", "tiny", "--repair", tmp_path / "fixed")
    assert ran.code == 4
    for case, labels in before.items():
        repaired = read_labels(tmp_path / "fixed" / "boxes" / f"{case}.nii.gz")
        np.testing.assert_array_equal(repaired.array, labels.array)
        assert repaired.grid == labels.grid
        (tmp_path / "fixed" / "boxes" / f"{case}.nii.gz").replace(label_file(raw, case))
    assert iris("plan", "-w", tmp_path, "--preset", "tiny").code == 0
    ran = iris("plan", "-w", tmp_path, "--preset", "tiny", "--repair", raw / "labelsTr")
    assert ran.code == 2
