"""Several tasks, paths on stdin, a watched folder and `iris task` on the command line."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from iris_cli.task.task_file import read_task
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from tests.commands.conftest import Iris


@pytest.fixture(scope="module")
def tasks(phantoms: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tasks that both know the liver."""
    folder, made = tmp_path_factory.mktemp("tasks"), []
    for name, classes in (("soft", ["liver", "spleen"]), ("rest", ["aorta", "liver"])):
        path = folder / f"{name}.task.pt"
        source = ReferenceSource(phantoms, cases=("torso_001",))
        encode_task(source, path, model=tiny_model, classes=classes, spacing_mm=9)
        made.append(path)
    return made


def test_tasks_from_one_line_to_labels(
    iris: Iris, phantoms: Path, tiny_model: Path, tasks: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    line = ("predict", "-t", tasks[0], "-t", tasks[1], "-m", tiny_model, "-o", out)
    refused = iris(*line, "-i", phantoms / "imagesTs")
    assert refused.code == 4
    assert "'soft' and 'rest'" in refused.err
    assert "--renumber" in refused.err
    done = iris(*line, "-i", phantoms / "imagesTs", "--renumber", "--joint", "--multilabel")
    assert done.code == 0, done.err
    for word in ("label values", "liver@soft", "liver@rest"):
        assert word in done.out
    names = json.loads((out / "labels.json").read_text())
    assert list(names.values()) == [0, 1, 2, 3, 4]
    masks = {path.name for path in (out / "torso_004").iterdir()}
    assert masks == {f"{name}.nii.gz" for name in names if name != "background"}


def test_merged_split_and_renamed_tasks(iris: Iris, tasks: list[Path], tmp_path: Path) -> None:
    soft, rest = tasks
    free, merged = tmp_path / "free.task.pt", tmp_path / "merged.task.pt"
    assert iris("task", "rename", rest, "liver=hepar", "-o", free).code == 0
    values = {entry.name: entry.value for entry in read_task(soft).header.classes}
    clash = iris("task", "merge", soft, free, "-o", merged)
    assert clash.code == 4
    ran = iris("task", "rename", rest, "liver=hepar", "hepar=9", "-o", free)
    assert ran.code == 2
    assert "no class 'hepar'" in ran.err
    assert iris("task", "rename", rest, "liver=91", "-o", free).code == 0
    assert iris("task", "rename", free, "liver=hepar", "-o", free).code == 2
    renamed = tmp_path / "renamed.task.pt"
    assert iris("task", "rename", free, "liver=hepar", "-o", renamed).code == 0
    done = iris("task", "merge", soft, renamed, "-o", merged, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)[0]["classes"] == values | {"hepar": 91, "aorta": _value(rest)}
    parts = tmp_path / "parts"
    assert iris("task", "split", merged, "-o", parts).code == 0
    back = read_task(parts / "merged-1.task.pt")
    assert back.header.classes == read_task(soft).header.classes
    assert iris("task", "split", merged, "-o", parts).code == 2
    alone = tmp_path / "alone"
    assert iris("task", "split", soft, "-o", alone).code == 2
    assert iris("task", "split", soft, "-o", alone, "--every-class").code == 0
    assert {path.name for path in alone.iterdir()} == {"liver.task.pt", "spleen.task.pt"}


def _value(task: Path) -> int:
    return next(entry.value for entry in read_task(task).header.classes if entry.name == "aorta")


def test_paths_on_stdin(
    iris: Iris,
    phantoms: Path,
    tiny_model: Path,
    tasks: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = ("predict", "-t", tasks[0], "-m", tiny_model, "-i", "-", "-o", tmp_path / "out")
    path = phantoms / "imagesTs" / "torso_005_0000.nii.gz"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"# scans\n\n{path}\n"))
    ran = iris(*line, "--json")
    assert ran.code == 0, ran.err
    assert [case["case"] for case in json.loads(ran.out)["cases"]] == ["torso_005"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    empty = iris(*line)
    assert empty.code == 2
    assert "no path came on stdin" in empty.err


def test_a_watched_folder_until_a_signal(
    iris: Iris, phantoms: Path, tiny_model: Path, tasks: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    receipt = out / ".iris" / "torso_005.json"

    def end() -> None:
        deadline = time.monotonic() + 60
        while not receipt.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    line = ("predict", "-t", tasks[0], "-m", tiny_model, "-i", phantoms / "imagesTs", "-o", out)
    ending = threading.Thread(target=end)
    ending.start()
    ran = iris(*line, "--watch", "--watch-seconds", "0.1")
    ending.join()
    assert ran.code == 75, ran.err
    assert {path.name for path in out.glob("*.nii.gz")} == {
        "torso_004.nii.gz",
        "torso_005.nii.gz",
    }
    assert iris(*line, "--watch", "--dry-run").code == 2
