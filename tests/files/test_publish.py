"""A published file is whole or absent; temporary files never stay behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from iris_cli.errors import EnvironmentProblem
from iris_cli.files.publish import publish, publish_bytes, publish_json, remove_leftovers


def test_published_bytes_are_read_back_the_same(tmp_path: Path) -> None:
    path = publish_bytes(tmp_path / "new" / "a.bin", b"voxels")
    assert path.read_bytes() == b"voxels"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.bin"]


def test_the_writer_sees_the_suffixes_of_the_final_name(tmp_path: Path) -> None:
    seen = []

    def write(temporary: Path) -> None:
        seen.append(temporary.name)
        temporary.write_bytes(b"x")

    publish(tmp_path / "case.v1.nii.gz", write)
    publish(tmp_path / "case.b2nd", write)
    assert seen[0].endswith(".nii.gz")
    assert seen[1].endswith(".b2nd")
    assert all(name.startswith(".") for name in seen)


def test_a_failing_writer_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = publish_bytes(tmp_path / "a.bin", b"old")

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        publish(path, write)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_does_not_verify_is_not_published(tmp_path: Path) -> None:
    def verify(temporary: Path) -> None:
        raise EnvironmentProblem("reads back differently")

    with pytest.raises(EnvironmentProblem):
        publish(tmp_path / "a.bin", lambda t: t.write_bytes(b"x") and None, verify=verify)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_exit_five_and_leaves_nothing(tmp_path: Path, code: int) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    with pytest.raises(EnvironmentProblem, match="disk is full") as caught:
        publish(tmp_path / "a.bin", write)
    assert caught.value.exit_code == 5
    assert "free" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_an_environment_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EnvironmentProblem, match="not a folder"):
        publish_bytes(tmp_path / "file" / "a.bin", b"x")


def test_json_refuses_numbers_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        publish_json(tmp_path / "a.json", {"dice": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead = tmp_path / ".a.bin.999999999-0badcafe.partial.bin"
    living = tmp_path / f".a.bin.{os.getppid()}-0badcafe.partial.bin"
    other = tmp_path / ".b.bin.999999999-0badcafe.partial.bin"
    for path in (dead, living, other):
        path.write_bytes(b"x")
    assert remove_leftovers(tmp_path, "a.bin") == 1
    assert sorted(tmp_path.iterdir()) == sorted([living, other])
    assert remove_leftovers(tmp_path) == 1
