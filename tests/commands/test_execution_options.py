"""Which cases `iris predict` and `iris preprocess` work on, where, and what they say of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from iris_cli.execution import dask_engine
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from tests.commands.conftest import Iris

Line = tuple[object, ...]


@pytest.fixture(scope="module")
def task(phantoms: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "liver.task.pt"
    source = ReferenceSource(phantoms, cases=("torso_001",))
    encode_task(source, path, model=tiny_model, classes=["liver"], spacing_mm=9)
    return path


@pytest.fixture
def line(phantoms: Path, tiny_model: Path, task: Path, tmp_path: Path) -> Line:
    """Predicts two cases, torso_004 and torso_005, into tmp_path/out."""
    return (
        *("predict", "-t", task, "-m", tiny_model, "-i", phantoms / "imagesTs"),
        *("-o", tmp_path / "out"),
    )


@pytest.fixture(autouse=True)
def _no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("SLURM_", "LSB_", "SGE_", "PBS_", "JOB_COMPLETION_")):
            monkeypatch.delenv(name)


def test_a_job_of_an_array_takes_its_share_and_says_so(
    iris: Iris, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ID": 2, "FIRST": 1, "LAST": 2, "STEPSIZE": 1}.items():
        monkeypatch.setenv(f"SGE_TASK_{name}", str(value))
    ran = iris(*line)
    assert ran.code == 0, ran.err
    assert "part 1 of 2, counted from 0 (SGE_TASK_ID=2)" in ran.err
    assert "1 belong to other parts, 1 of them were left and taken here, 0 of those" in ran.err
    rest = iris(*line, "--num-parts", 1, "--json")
    assert [row["status"] for row in json.loads(rest.out)["cases"]] == ["kept", "kept"]
    assert json.loads(rest.out)["part"]["cases_of_other_parts"] == 0


def test_a_part_by_hand_leaves_the_others_and_says_how_many(
    iris: Iris, line: Line, tmp_path: Path
) -> None:
    ran = iris(*line, "--num-parts", 2, "--part-id", 1, "--devices", "cpu")
    assert ran.code == 0, ran.err
    assert "1 belong to other parts, 1 of those are not done so far" in ran.err
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["torso_005.nii.gz"]


def test_failed_cases_alone_and_the_first_failure_as_the_end(
    iris: Iris, line: Line, phantoms: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "a.nii.gz"
    broken.write_bytes(b"no volume")
    strict = iris(*line, "-i", broken, "--strict", "--json")
    assert strict.code == 4
    assert json.loads(strict.out)["ended_by"] == "a"
    assert [row["case"] for row in json.loads(strict.out)["cases"]] == ["a"]
    assert "cases that are not listed were not begun" in strict.err
    whole = next((phantoms / "imagesTs").glob("torso_004*"))
    broken.write_bytes(whole.read_bytes())
    ran = iris(*line, "-i", broken, "--only-failed", "--json")
    assert ran.code == 0, ran.err
    assert [row["case"] for row in json.loads(ran.out)["cases"]] == ["a"]
    assert json.loads(ran.out)["part"]["left_alone"] == 2
    assert "1 cases had failed before" in ran.err
    assert json.loads(iris(*line, "--only-failed", "--json").out)["cases"] == []


def test_devices_that_are_not_there_are_named(iris: Iris, line: Line) -> None:
    missing = iris(*line, "--devices", "cuda:0,cuda:97")
    assert missing.code == 5
    assert "cuda" in missing.err
    assert iris(*line, "--devices", "cpu,cpu", "--device", "cpu").code == 2
    assert iris(*line, "--devices", "cpu,gpu").code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--part-id", "0"),
        ("--num-parts", "0"),
        ("--num-parts", "2"),
        ("--num-parts", "2", "--part-id", "2"),
        ("--num-parts", "two"),
        ("--watch", "--num-parts", "2", "--part-id", "0"),
        ("--watch", "--only-failed"),
    ],
)
def test_parts_that_do_not_exist_are_wrong_use(iris: Iris, line: Line, words: Line) -> None:
    assert iris(*line, *words).code == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--dask", "somewhere"), 2),
        (("--dask", "local:2", "-j", "2"), 2),
        (("--dask", "local:2", "--devices", "cpu"), 2),
        (("--dask", "no-such-scheduler.json"), 2),
        (("--dask", "tcp://127.0.0.1:9"), 5),
    ],
)
def test_clusters_that_do_not_fit_are_refused(
    iris: Iris, line: Line, words: Line, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(dask_engine, "_CONNECT_S", 0.5)
    ran = iris(*line, *words)
    assert ran.code == code
    assert "--dask" in ran.err or str(words[1]) in ran.err


@pytest.mark.slow
def test_preprocess_takes_a_share_too(iris: Iris, phantoms: Path, tmp_path: Path) -> None:
    assert iris("plan", phantoms, "-w", tmp_path, "--preset", "tiny").code == 0
    words = ("preprocess", "-w", tmp_path, "--json")
    first = iris(*words, "--num-parts", 2, "--part-id", 0)
    part = json.loads(first.out)["part"]
    assert (part["cases"] + part["cases_of_other_parts"], part["told_by"]) == (3, "--part-id")
    assert "belong to other parts" in first.err
    assert iris(*words, "--part-id", 1).code == 2
