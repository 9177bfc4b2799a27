"""Building in a hidden folder: whole under the final name, or not there."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from iris_cli.dataset.building import TransferMode, building_folder, place, scratch_folder
from iris_cli.errors import EnvironmentProblem, UsageError
from tests.dataset.trees import touch


def test_the_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "raw/set"
    with building_folder(target) as folder:
        touch(folder / "imagesTr/a.nii.gz")
        assert not target.exists()
        assert folder.name.startswith(".set.")
    assert (target / "imagesTr/a.nii.gz").exists()
    assert os.listdir(target.parent) == ["set"]


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        touch(folder / "a")
        raise KeyError

    with pytest.raises(KeyError), building_folder(tmp_path / "raw/set") as folder:
        fail(folder)
    assert os.listdir(tmp_path / "raw") == []


def test_an_empty_target_is_no_obstacle_and_a_full_one_is(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with building_folder(tmp_path / "set") as folder:
        touch(folder / "a")
    with pytest.raises(UsageError, match="exists already"), building_folder(tmp_path / "set"):
        pass


def test_a_full_disk_is_a_problem_of_the_environment(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="disk is full"), building_folder(tmp_path / "s"):
        raise OSError(errno.ENOSPC, "no space")
    assert os.listdir(tmp_path) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib\n"
        "from iris_cli.dataset.building import building_folder\n"
        "with building_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'a').touch()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "set"], check=False, timeout=60)
    assert len(os.listdir(tmp_path)) == 1
    with scratch_folder(tmp_path / "other"):
        assert len(os.listdir(tmp_path)) == 2
    with building_folder(tmp_path / "set"):
        pass
    assert os.listdir(tmp_path) == ["set"]


def test_a_link_that_cannot_be_made_says_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = touch(tmp_path / "a")

    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", fail)
    with pytest.raises(EnvironmentProblem) as caught:
        place(source, tmp_path / "b", TransferMode.LINK)
    assert "--copy" in str(caught.value)


def test_read_only_sources_become_writable_copies(tmp_path: Path) -> None:
    source = touch(tmp_path / "a")
    source.chmod(0o444)
    assert os.access(place(source, tmp_path / "b", TransferMode.COPY), os.W_OK)


@pytest.mark.parametrize("below", ["set", "folder/set"])
def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path, below: str) -> None:
    file = touch(tmp_path / "file")
    with (
        pytest.raises(EnvironmentProblem, match="file stands where a folder") as caught,
        building_folder(file / below),
    ):
        pass
    assert str(caught.value.file) == str(file)


def test_leftovers_of_a_name_with_brackets_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "iris_cli.dataset.building.process_is_alive", lambda pid: pid == os.getpid()
    )
    host = socket.gethostname()
    dead, other = tmp_path / f".set[1].{host}-1-aa.partial", tmp_path / f".set1.{host}-1-aa.partial"
    for folder in (dead, other):
        folder.mkdir()
    with building_folder(tmp_path / "set[1]"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted([other.name, "set[1]"])
