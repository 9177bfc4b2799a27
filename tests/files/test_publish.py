"""A published file is whole or absent; temporary files never stay behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from iris_cli.errors import EnvironmentProblem
from iris_cli.files import publish as publish_module
from iris_cli.files.publish import (
    process_is_alive,
    publish,
    publish_bytes,
    publish_json,
    published_json,
    remove_leftovers,
)


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


def test_a_full_disk_says_how_much_was_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(publish_module, "_write_bytes", refuse)
    with pytest.raises(EnvironmentProblem, match="disk is full") as caught:
        publish_bytes(tmp_path / "a.bin", bytes(1234))
    assert caught.value.expected == "room for 1234 bytes"


def test_a_writer_that_fails_on_a_full_disk_by_a_word_of_its_own_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise RuntimeError("stream state is bad")

    with pytest.raises(RuntimeError, match="stream state"):
        publish(tmp_path / "a.bin", write, needs=99)
    monkeypatch.setattr(publish_module, "_free", lambda folder: 0)
    with pytest.raises(EnvironmentProblem, match="disk is full") as caught:
        publish(tmp_path / "a.bin", write, needs=99)
    assert caught.value.found == "0 bytes free after 4 bytes were written"
    assert caught.value.expected == "room for 99 bytes"
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
    assert remove_leftovers(tmp_path / "none", "a.bin") == 0
    assert remove_leftovers(tmp_path, "c.bin", "a.bin") == 1
    assert sorted(tmp_path.iterdir()) == sorted([living, other])
    assert remove_leftovers(tmp_path) == 1


def test_what_is_being_written_is_no_published_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("b.json", ".a.json", "folder/c.json", "d.txt"):
        (tmp_path / name).touch()
    for name in ("b", "folder/c"):
        publish_module._temporary_name(tmp_path / f"{name}.json").touch()
    own = [tmp_path / ".a.json", tmp_path / "b.json"]
    assert published_json(tmp_path) == own
    assert published_json(tmp_path, deep=True) == [*own, tmp_path / "folder" / "c.json"]
    assert published_json(tmp_path / "none") == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_process_that_is_dead_but_not_asked_for_is_not_alive() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert not process_is_alive(child)
    finally:
        os.waitpid(child, 0)


def test_leftovers_of_other_hosts_go_when_they_are_old(tmp_path: Path) -> None:
    fresh = tmp_path / ".a.bin.999999999-0badcafe-0000000.partial.bin"
    old = tmp_path / ".a.bin.999999998-0badcafe-0000000.partial.bin"
    for path in (fresh, old):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    assert remove_leftovers(tmp_path) == 1
    assert list(tmp_path.iterdir()) == [fresh]


def test_leftovers_of_names_with_brackets_are_found(tmp_path: Path) -> None:
    leftover = tmp_path / ".scan[1].nii.gz.999999999-0badcafe.partial.nii.gz"
    other = tmp_path / ".scan1.nii.gz.999999999-0badcafe.partial.nii.gz"
    leftover.touch()
    other.touch()
    assert remove_leftovers(tmp_path, "scan[1].nii.gz") == 1
    assert list(tmp_path.iterdir()) == [other]


@pytest.mark.parametrize("name", ["ü" * 123 + "xx.nii.gz", "a." + "b" * 253, "c" * 252 + ".gz"])
def test_a_name_as_long_as_the_disk_allows_is_published(tmp_path: Path, name: str) -> None:
    assert len(name.encode()) == 255
    path = publish_bytes(tmp_path / name, b"x")
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_long_names_are_found_and_told_apart(tmp_path: Path) -> None:
    seen: list[Path] = []

    def write(temporary: Path) -> None:
        seen.append(temporary)
        temporary.write_bytes(b"x")

    for end in "ab":
        publish(tmp_path / ("c" * 240 + end + ".nii.gz"), write)
    for path in seen:
        path.write_bytes(b"x")
    assert all(path.name.endswith(".nii.gz") for path in seen)
    assert remove_leftovers(tmp_path, "c" * 240 + "a.nii.gz") == 1
    assert not seen[0].exists()
    assert seen[1].exists()


def test_a_folder_in_the_place_of_the_file_is_an_environment_problem(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="a folder has the name") as caught:
        publish_bytes(tmp_path, b"x")
    assert caught.value.fix
    target = tmp_path / "later"

    def write(temporary: Path) -> None:
        temporary.touch()
        target.mkdir()

    with pytest.raises(EnvironmentProblem, match="a folder has the name"):
        publish(target, write)
    assert list(tmp_path.iterdir()) == [target]


def test_a_name_that_is_too_long_is_an_environment_problem(tmp_path: Path) -> None:
    for path in (tmp_path / ("a" * 300), tmp_path / ("b" * 300) / "a"):
        with pytest.raises(EnvironmentProblem, match="too long") as caught:
            publish_bytes(path, b"x")
        assert "shorter" in str(caught.value.fix)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_goes_away_is_an_environment_problem(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(EnvironmentProblem, match="has gone") as caught:
        publish(folder / "a.bin", lambda temporary: folder.rmdir())
    assert caught.value.fix


def test_what_a_writer_does_not_find_elsewhere_is_no_matter_of_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "a.bin", lambda _: (tmp_path / "in" / "b").touch())
