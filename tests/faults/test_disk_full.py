"""R10: a disk that is full at six sizes: exit 5, nothing torn; with room the same line finishes.

The disk is a tmpfs of its own, which only root may mount. Exit 5 stands, too, where some cases were
done before the disk was full: with the disk the rest stands or falls (`RunSummary.exit_code`).
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from iris_cli.dataset.phantoms import write_phantom_dataset
from iris_cli.errors import EnvironmentProblem
from iris_cli.files.hashing import hash_array
from iris_cli.preparation.store import list_cases, open_case
from iris_cli.task.task_file import read_task
from tests.faults.lines import (
    finish,
    predicted_content,
    receipts,
    run_line,
    strays,
    write_model,
    write_scenes,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)
"""Of what a quiet run leaves on the disk."""
ROOM = 1 << 26
PAGE = 4096
CASES = 6


class Disk:
    """A small disk at `folder`."""

    def __init__(self, folder: Path, size: int = ROOM) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._mount(f"size={size}")

    def resize(self, size: int) -> None:
        """Change what it holds; what is on it stays."""
        self._mount(f"remount,size={size}")

    @property
    def used(self) -> int:
        usage = shutil.disk_usage(self.folder)
        return usage.total - usage.free

    def close(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)

    def _mount(self, options: str) -> None:
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[..., Disk]]:
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a disk of its own needs `mount -t tmpfs`, which only root may do")
    disks: list[Disk] = []

    def make(folder: Path, size: int = ROOM) -> Disk:
        try:
            disks.append(Disk(folder, size))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine lets nobody mount a tmpfs: {error.stderr.decode().strip()}")
        return disks[-1]

    yield make
    for disk in disks:
        disk.close()


@dataclass(frozen=True)
class Job:
    """A line that writes to a disk.

    disk: the folder that is the disk, in the folder of a trial. words: of the line there. content:
    everything with a final name that has to be right whenever it is there.
    """

    disk: str
    words: Callable[[Path], list[str]]
    content: Callable[[Path], dict[str, Any]]
    prepare: Callable[[Path], None] = lambda folder: None


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    names = [f"case_{number}" for number in range(CASES)]
    write_scenes(folder / "queries", folder / "truth", names, edge=40, spacing_mm=3.0)
    refs = folder / "refs"
    write_scenes(refs / "images", refs / "labels", ["r"], edge=40, spacing_mm=3.0)
    # As many tokens as make a task of many blocks of a disk.
    model = write_model(folder, s0=3.0, queries=200)
    finish(["encode-task", str(refs), "-o", str(folder / "x.task.pt"), "-m", str(model)])
    write_phantom_dataset(folder / "raw" / "torso", list(range(1, CASES + 1)), voxel_mm=6.0)
    finish(["plan", "-w", str(folder), "--preset", "tiny"])
    return folder


def _jobs(inputs: Path) -> dict[str, Job]:
    def predict(*more: str) -> Callable[[Path], list[str]]:
        words = ["predict", "-t", str(inputs / "x.task.pt"), "-m", str(inputs / "tiny")]
        words += ["-i", str(inputs / "queries"), *more]
        return lambda folder: [*words, "-o", str(folder / "disk" / "out")]

    def encode(folder: Path) -> list[str]:
        words = ["encode-task", str(inputs / "refs"), "-m", str(inputs / "tiny")]
        return [*words, "-o", str(folder / "disk" / "x.task.pt")]

    def link_raw(folder: Path) -> None:
        (folder / "raw").symlink_to(inputs / "raw")
        shutil.copytree(inputs / "plans", folder / "plans")

    def predicted(folder: Path) -> dict[str, Any]:
        return predicted_content(folder / "disk" / "out")

    return {
        "predict": Job("disk", predict("--probabilities", "uint8"), predicted),
        "predict mha": Job("disk", predict("--format", "mha"), predicted),
        "predict -j 2": Job("disk", predict("-j", "2", "--multilabel"), predicted),
        "preprocess": Job(
            "preprocessed", lambda folder: ["preprocess", "-w", str(folder)], _stored, link_raw
        ),
        "encode-task": Job("disk", encode, _task),
    }


def _stored(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for store in sorted((folder / "preprocessed").glob("[!.]*/*")):
        found |= receipts(store)
        for name in list_cases(store):
            volume = open_case(store, name)
            found[f"{name} image"] = hash_array(volume.image())
            found[f"{name} label"] = hash_array(volume.label())
    return found


def _task(folder: Path) -> dict[str, Any]:
    path = folder / "disk" / "x.task.pt"
    return {path.name: read_task(path).fingerprint()} if path.exists() else {}


@pytest.mark.parametrize(
    "name", ["predict", "predict mha", "predict -j 2", "preprocess", "encode-task"]
)
def test_a_disk_that_is_full_tears_nothing_and_with_room_the_line_finishes(
    name: str, inputs: Path, make_disk: Callable[..., Disk], tmp_path: Path
) -> None:
    job = _jobs(inputs)[name]
    whole = tmp_path / "whole"
    whole.mkdir()
    job.prepare(whole)
    quiet = make_disk(whole / job.disk)
    finish(job.words(whole))
    expected = job.content(whole)
    assert expected
    parts = 0
    for share in SHARES:
        folder = tmp_path / f"{share}"
        folder.mkdir()
        job.prepare(folder)
        disk = make_disk(folder / job.disk, max(PAGE, int(share * quiet.used) // PAGE * PAGE))
        ran = run_line(job.words(folder))
        said = ran.stdout + ran.stderr
        assert ran.returncode == EnvironmentProblem.exit_code, (share, said)
        assert "disk is full" in said, (share, said)
        assert re.search(r"room for \d+ bytes", said), (share, said)
        left = job.content(folder)
        _assert_part(left, expected, folder / job.disk)
        assert [path for path in strays(folder) if not path.endswith(".new")] == []
        parts += 0 < len(left) < len(expected)
        disk.resize(ROOM)
        finish(job.words(folder))
        assert job.content(folder) == expected
        assert strays(folder) == []
    print(f"{name}: {parts} of {len(SHARES)} disks held a part; a quiet run takes {quiet.used}")
    assert parts >= 3 or name == "encode-task"


def _assert_part(left: dict[str, Any], expected: dict[str, Any], disk: Path) -> None:
    """Whatever is there is what it should be; the table has rows of what is there."""
    table = "statistics.csv"
    same = {key: value for key, value in left.items() if key != table}
    assert same.items() <= expected.items()
    for path in disk.rglob(table):
        rows = _rows(path)
        assert {row["case"] for row in rows} <= {Path(key).stem for key in left}


def _rows(path: Path) -> Sequence[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))
