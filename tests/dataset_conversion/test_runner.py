"""The runner: resuming, failing cases, disks, splits, and what it checks in every set."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset_conversion import case_conversion
from dataset_conversion.registry import plan, run
from iris_cli.dataset.building import TransferMode
from iris_cli.dataset.raw import read_raw_dataset
from iris_cli.errors import DataRefused, EnvironmentProblem, UsageError
from tests.dataset.trees import write_json
from tests.dataset_conversion.miniature import anatomy, image, read_canonical, write
from tests.dataset_conversion.paper_sets import PAPER_SETS
from tests.dataset_conversion.test_public_sets import content_of

ROOT = Path(__file__).resolve().parents[2]
LABELS = {"oesophagus": 1, "heart": 2, "trachea": 3, "aorta": 4}


@pytest.fixture
def segthor(tmp_path: Path) -> Path:
    """Six patients."""
    return write_segthor(tmp_path / "source", range(1, 7))


def write_segthor(folder: Path, numbers: Any) -> Path:
    for number in numbers:
        place = folder / f"train/Patient_{number:02d}"
        write(place / f"Patient_{number:02d}.nii.gz", image(number))
        write(place / "GT.nii.gz", anatomy(LABELS))
    return folder


_KILLED_AFTER_TWO_CASES = """
import os, sys
from pathlib import Path
from dataset_conversion.registry import run
from iris_cli.execution.progress import SilentProgress

class Killer(SilentProgress):
    cases = 0
    def advance(self, name, status):
        self.cases += 1
        if self.cases == 2:
            os.kill(os.getpid(), 9)

run("segthor", Path(sys.argv[1]), Path(sys.argv[2]), progress=Killer())
"""

_KILLED_WITHIN_A_FILE = """
import os, sys
from pathlib import Path
from dataset_conversion import case_conversion
from dataset_conversion.registry import run

def torn(source, temporary):
    temporary.write_bytes(source.read_bytes()[:100])
    os.kill(os.getpid(), 9)

case_conversion._copy = torn
run("segthor", Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("script", [_KILLED_AFTER_TWO_CASES, _KILLED_WITHIN_A_FILE])
def test_a_killed_run_goes_on_and_the_content_is_equal(
    segthor: Path, tmp_path: Path, script: str
) -> None:
    target = tmp_path / "raw"
    words = [sys.executable, "-c", script, str(segthor), str(target)]
    killed = subprocess.run(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    assert not (target / "dataset.json").exists()
    with pytest.raises(UsageError):
        read_raw_dataset(target)
    report = run("segthor", segthor, target)
    statuses = [outcome.status for outcome in report.run.outcomes]
    assert statuses.count("kept") == (2 if script is _KILLED_AFTER_TWO_CASES else 0)
    run("segthor", segthor, tmp_path / "whole")
    assert content_of(target) == content_of(tmp_path / "whole")


def test_what_a_killed_run_left_of_its_descriptions_goes(segthor: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    run("segthor", segthor, target)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = target / f".conversion.json.{gone.pid}.partial.json"
    left.write_text("{")
    run("segthor", segthor, target)
    assert not left.exists()


def test_workers_make_the_same_content(segthor: Path, tmp_path: Path) -> None:
    run("segthor", segthor, tmp_path / "one")
    run("segthor", segthor, tmp_path / "two", workers=2)
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")


def test_links_lead_to_what_fits_and_the_rest_is_written(tmp_path: Path) -> None:
    truths = {m.name: m for m in PAPER_SETS if m.name == "amos_ct"}["amos_ct"].build(tmp_path / "s")
    run("amos_ct", tmp_path / "s", tmp_path / "raw", mode=TransferMode.LINK)
    for case in read_raw_dataset(tmp_path / "raw").cases:
        assert case.images[0].is_symlink()
        assert np.array_equal(read_canonical(case.images[0])[0], truths[case.name].images[0])
    assert not (tmp_path / "raw/labelsTr/amos_0001.nii.gz").is_symlink()
    assert (tmp_path / "raw/labelsTr/amos_0004.nii.gz").is_symlink()


def test_a_case_is_done_again_when_its_source_changed(segthor: Path, tmp_path: Path) -> None:
    run("segthor", segthor, tmp_path / "raw")
    write(segthor / "train/Patient_02/Patient_02.nii.gz", image(99))
    os.utime(segthor / "train/Patient_02/Patient_02.nii.gz", (1, 1))
    (tmp_path / "raw/labelsTr/Patient_03.nii.gz").unlink()
    report = run("segthor", segthor, tmp_path / "raw")
    done = [outcome.name for outcome in report.run.outcomes if outcome.status == "done"]
    assert done == ["Patient_02", "Patient_03"]


def test_a_source_of_equal_size_and_time_is_not_taken_for_the_old_one(
    segthor: Path, tmp_path: Path
) -> None:
    """`cp -p` and archives bring old times back."""
    run("segthor", segthor, tmp_path / "raw")
    path = segthor / "train/Patient_02/Patient_02.nii.gz"
    status = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    report = run("segthor", segthor, tmp_path / "raw")
    assert [o.status for o in report.run.outcomes].count("done") == 1


def test_what_the_source_no_longer_has_leaves_the_set(segthor: Path, tmp_path: Path) -> None:
    run("segthor", segthor, tmp_path / "raw")
    shutil.rmtree(segthor / "train/Patient_06")
    run("segthor", segthor, tmp_path / "raw")
    assert len(read_raw_dataset(tmp_path / "raw").cases) == 5
    assert not list((tmp_path / "raw").rglob("*Patient_06*"))


def test_cases_that_left_the_set_are_named(segthor: Path, tmp_path: Path) -> None:
    run("segthor", segthor, tmp_path / "raw")
    shutil.rmtree(segthor / "train/Patient_06")
    said = "\n".join(map(str, run("segthor", segthor, tmp_path / "raw").deviations))
    assert "the source has these cases no more: removed (1): Patient_06" in said


def test_another_source_does_not_replace_a_conversion(segthor: Path, tmp_path: Path) -> None:
    run("segthor", segthor, tmp_path / "raw")
    before = content_of(tmp_path / "raw")
    other = write_segthor(tmp_path / "other", [7])
    with pytest.raises(UsageError, match="conversion of another source") as caught:
        run("segthor", other, tmp_path / "raw")
    assert "-o" in str(caught.value)
    assert content_of(tmp_path / "raw") == before


def test_folds_of_an_earlier_split_go(segthor: Path, tmp_path: Path) -> None:
    run("segthor", segthor, tmp_path / "raw", split="subject-5fold")
    assert (tmp_path / "raw/splits_final.json").is_file()
    run("segthor", segthor, tmp_path / "raw")
    assert not (tmp_path / "raw/splits_final.json").exists()


def test_a_damaged_file_of_frames_fails_its_subject_alone(tmp_path: Path) -> None:
    """Without the table of frames, label maps are looked at before cases are known."""
    frames = np.stack([anatomy({"heart": 1}), anatomy({"heart": 2})], axis=-1)
    for code in ("A0S9V9", "B0S9V9"):
        place = tmp_path / f"OpenDataset/Testing/{code}"
        write(place / f"{code}_sa.nii.gz", np.stack([image(1), image(2)], axis=-1))
        write(place / f"{code}_sa_gt.nii.gz", frames)
    torn = tmp_path / "OpenDataset/Testing/A0S9V9/A0S9V9_sa_gt.nii.gz"
    torn.write_bytes(torn.read_bytes()[:-40])
    report = run("mnms", tmp_path / "OpenDataset", tmp_path / "raw")
    assert report.exit_code == 3
    assert [outcome.name for outcome in report.run.failed] == ["A0S9V9"]
    names = [case.name for case in read_raw_dataset(tmp_path / "raw").cases]
    assert names == ["B0S9V9_frame00", "B0S9V9_frame01"]


def test_a_bad_set_of_several_fails_alone(tmp_path: Path) -> None:
    table = {"modality": "CT", "labels": {"1": "heart"}}
    for name in ("a", "b", "c"):
        write(tmp_path / f"sets/{name}/images/x.nii.gz", image())
        write(tmp_path / f"sets/{name}/labels/x.nii.gz", anatomy({"heart": 1}))
        write_json(tmp_path / f"sets/{name}/info.json", table)
    (tmp_path / "sets/a/info.json").write_text("{")
    (tmp_path / "sets/b/images/x.nii.gz").unlink()
    report = run("info_json", tmp_path / "sets", tmp_path / "raw")
    assert report.exit_code == 3
    assert {outcome.name for outcome in report.run.failed} == {"a", "b"}
    assert report.folders == (tmp_path / "raw/c",)


def test_another_split_moves_the_files(segthor: Path, tmp_path: Path) -> None:
    run("segthor", segthor, tmp_path / "raw")
    split = write_json(tmp_path / "split.json", {"train": ["Patient_01"], "test": ["Patient_02"]})
    report = run("segthor", segthor, tmp_path / "raw", split=str(split))
    roles = {case.name: case.role for case in read_raw_dataset(tmp_path / "raw").cases}
    assert roles["Patient_01"] == "train"
    assert {role for name, role in roles.items() if name != "Patient_01"} == {"test"}
    said = [d for d in report.deviations if d.message == "in no list of the split, not trained on"]
    assert said[0].cases == ("Patient_03", "Patient_04", "Patient_05", "Patient_06")
    assert len(list((tmp_path / "raw/imagesTr").iterdir())) == 1
    assert len(list((tmp_path / "raw/labelsTs").iterdir())) == 5


def test_a_repaired_source_completes_the_set(segthor: Path, tmp_path: Path) -> None:
    label = segthor / "train/Patient_04/GT.nii.gz"
    good = label.read_bytes()
    label.write_bytes(good[:-20])
    report = run("segthor", segthor, tmp_path / "raw")
    assert report.exit_code == 3
    assert [outcome.name for outcome in report.run.failed] == ["Patient_04"]
    assert len(read_raw_dataset(tmp_path / "raw").cases) == 5
    label.write_bytes(good)
    assert run("segthor", segthor, tmp_path / "raw").exit_code == 0
    assert len(read_raw_dataset(tmp_path / "raw").cases) == 6


def test_a_set_of_bad_cases_alone_is_refused(tmp_path: Path) -> None:
    source = write_segthor(tmp_path / "source", [1])
    write(source / "train/Patient_01/GT.nii.gz", anatomy({"other": 9}))
    report = run("segthor", source, tmp_path / "raw")
    assert report.exit_code == DataRefused.exit_code
    assert report.run.failed[0].error is not None
    assert "9 (1 voxels)" in report.run.failed[0].error["found"]
    assert not (tmp_path / "raw/dataset.json").exists()


def test_a_label_map_on_another_grid_fails_its_case(segthor: Path, tmp_path: Path) -> None:
    write(segthor / "train/Patient_01/GT.nii.gz", anatomy(LABELS), spacing=(1, 1, 1))
    report = run("segthor", segthor, tmp_path / "raw")
    error = report.run.failed[0].error
    assert error is not None
    assert error["problem"] == "the label map is not on the grid of its image"


def test_mixed_axis_orders_become_those_of_the_image(segthor: Path, tmp_path: Path) -> None:
    write(segthor / "train/Patient_01/GT.nii.gz", anatomy(LABELS), "PIL")
    report = run("segthor", segthor, tmp_path / "raw")
    assert report.exit_code == 0
    changed = [d for d in report.deviations if d.message == case_conversion.REORDERED]
    assert changed[0].cases == ("Patient_01",)


def test_mirrored_sides_are_reported(tmp_path: Path) -> None:
    mirrored = anatomy({"sacrum": 1, "right hip": 3, "left hip": 2, "lumbar vertebrae": 4})
    name = "dataset6_CLINIC_0001"
    write(tmp_path / f"source/CTPelvic1K_dataset6_data/{name}_data.nii.gz", image())
    write(tmp_path / f"source/masks/{name}_mask_4label.nii.gz", mirrored)
    said = "\n".join(map(str, run("ctpelvic1k", tmp_path / "source", tmp_path / "raw").deviations))
    assert f"right hip lies to the left of left hip: is it mirrored? (1): {name}" in said


def test_five_folds_keep_subjects_together(tmp_path: Path) -> None:
    for patient in range(1, 8):
        place = tmp_path / f"database/training/patient{patient:03d}"
        for frame in (1, 9):
            stem = f"patient{patient:03d}_frame{frame:02d}"
            write(place / f"{stem}.nii.gz", image(patient))
            write(place / f"{stem}_gt.nii.gz", anatomy({"heart": 2}))
    run("acdc", tmp_path / "database", tmp_path / "raw", split="subject-5fold")
    folds = json.loads((tmp_path / "raw/splits_final.json").read_text())
    assert len(folds) == 5
    validated = sorted(case for fold in folds for case in fold["val"])
    assert validated == sorted(case for case in folds[0]["train"] + folds[0]["val"])
    for fold in folds:
        sides = [{case[:10] for case in fold[side]} for side in ("train", "val")]
        assert not sides[0] & sides[1]
        assert len(fold["val"]) in (2, 4)


def test_a_split_that_divides_a_subject_is_refused(tmp_path: Path) -> None:
    for frame in (1, 9):
        stem = f"training/patient001/patient001_frame{frame:02d}"
        write(tmp_path / f"{stem}.nii.gz", image())
        write(tmp_path / f"{stem}_gt.nii.gz", anatomy({"heart": 2}))
    split = {"train": ["patient001_frame01"], "test": ["patient001_frame09"]}
    path = write_json(tmp_path / "split.json", split)
    with pytest.raises(DataRefused, match="several roles"):
        plan("acdc", tmp_path, split=str(path))


@pytest.mark.parametrize(
    ("split", "error", "words"),
    [
        ("author", UsageError, "author's split of segthor is not known"),
        ("random", UsageError, "there is no split 'random'"),
        ({"train": ["Patient_77"]}, DataRefused, "names cases that are not here"),
        ({"training": ["Patient_01"]}, DataRefused, "this is no split"),
        ({"train": ["Patient_01"], "test": ["Patient_01"]}, DataRefused, "twice"),
    ],
)
def test_splits_that_cannot_be_followed(
    segthor: Path, tmp_path: Path, split: Any, error: type[Exception], words: str
) -> None:
    if isinstance(split, dict):
        split = str(write_json(tmp_path / "split.json", split))
    with pytest.raises(error, match=words):
        plan("segthor", segthor, split=split)


def test_a_target_that_holds_something_else_is_left_alone(segthor: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        run("segthor", segthor, tmp_path / "raw")
    run("segthor", segthor, tmp_path / "other")
    with pytest.raises(UsageError, match="no conversion of this set"):
        run("kits19", _kits(tmp_path / "kits"), tmp_path / "other")


def _kits(folder: Path) -> Path:
    write(folder / "case_00000/imaging.nii.gz", image())
    write(folder / "case_00000/segmentation.nii.gz", anatomy({"kidney": 1}))
    return folder


def test_a_source_that_is_not_the_set_is_refused(segthor: Path, tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="nothing here looks like KiTS19") as caught:
        run("kits19", segthor, tmp_path / "raw")
    assert "case_NNNNN" in str(caught.value)
    assert not (tmp_path / "raw").exists()
    with pytest.raises(UsageError, match="the source is no folder"):
        run("kits19", tmp_path / "absent", tmp_path / "raw")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_or_read_only_target_is_exit_five(
    segthor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(source: Path, temporary: Path) -> None:
        raise OSError(number, os.strerror(number), str(temporary))

    monkeypatch.setattr(case_conversion, "_copy", full)
    report = run("segthor", segthor, tmp_path / "raw")
    assert report.exit_code == EnvironmentProblem.exit_code
    assert report.run.failed[0].error is not None
    assert report.run.failed[0].error["fix"]
    monkeypatch.undo()
    assert run("segthor", segthor, tmp_path / "raw").exit_code == 0


def test_a_file_where_the_target_belongs_is_exit_five(segthor: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("a file")
    with pytest.raises(EnvironmentProblem):
        run("segthor", segthor, tmp_path / "raw/segthor")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_source_that_goes_away_is_exit_five(
    segthor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def lost(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(case_conversion, "read_image", lost)
    report = run("segthor", segthor, tmp_path / "raw")
    assert report.exit_code == EnvironmentProblem.exit_code
    assert "run the same line again" in str(report.run.failed[0].error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_exit_five(segthor: Path, tmp_path: Path) -> None:
    (segthor / "train").chmod(0)
    try:
        with pytest.raises(EnvironmentProblem):
            run("segthor", segthor, tmp_path / "raw")
    finally:
        (segthor / "train").chmod(0o755)


def test_a_read_only_source_is_enough(segthor: Path, tmp_path: Path) -> None:
    for path in sorted(segthor.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert run("segthor", segthor, tmp_path / "raw").exit_code == 0
    finally:
        for path in sorted(segthor.rglob("*")):
            path.chmod(0o755)
    label = tmp_path / "raw/labelsTr/Patient_01.nii.gz"
    assert np.any(np.frombuffer(label.read_bytes(), np.uint8))
    assert os.access(label, os.W_OK)
