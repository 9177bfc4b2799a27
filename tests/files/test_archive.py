"""Archives extract inside their folder or not at all."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from iris_cli.errors import DataRefused, EnvironmentProblem, UsageError
from iris_cli.files.archive import extract_tar, safe_relative_path


def _tar(path: Path, members: list[tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def _file(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = 3
    return member


def test_plain_files_are_extracted(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "a.tar", [_file("set/b.txt"), _file("set/a.txt")])
    paths = extract_tar(archive, tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in paths] == [
        "set/a.txt",
        "set/b.txt",
    ]
    assert paths[0].read_bytes() == b"xxx"


@pytest.mark.parametrize(
    "name", ["../a", "/etc/a", "a/../../b", "a\\b", "c:/a", "con", "a/nul.txt", "a\nb", "."]
)
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataRefused):
        safe_relative_path(name)
    with pytest.raises(DataRefused):
        extract_tar(_tar(tmp_path / "a.tar", [_file("ok"), _file(name)]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("link")
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(DataRefused, match="not a plain file"):
        extract_tar(_tar(tmp_path / "a.tar", [member]), tmp_path / "out")


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "a.tar", [_file("a")])
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(DataRefused):
        extract_tar(archive, tmp_path / "out")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_damaged_compressed_archive_is_refused_before_anything_is_written(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    members = [_file(f"folder/{number**3}.txt") for number in range(200)]
    content = bytearray(compress(_tar(tmp_path / "a.tar", members).read_bytes()))
    middle = len(content) // 2
    content[middle : middle + 4] = b"\xff" * 4
    (tmp_path / "b.tar.x").write_bytes(content)
    with pytest.raises(DataRefused, match="not a readable"):
        extract_tar(tmp_path / "b.tar.x", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damage_that_only_the_checksum_shows_is_refused(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(_tar(tmp_path / "a.tar", [_file("a")]).read_bytes()))
    content[-5] ^= 1  # the CRC stands before the last four bytes
    (tmp_path / "b.tar.gz").write_bytes(content)
    with pytest.raises(DataRefused, match="not a readable"):
        extract_tar(tmp_path / "b.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_is_no_fault_of_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    archive = _tar(tmp_path / "a.tar", [_file("a")])

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(EnvironmentProblem) as caught:
        extract_tar(archive, tmp_path / "out")
    assert caught.value.exit_code == 5
    assert caught.value.fix


def test_an_archive_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "a.tar", [_file("a"), _file("a/b")])
    with pytest.raises(DataRefused, match="not a readable"):
        extract_tar(archive, tmp_path / "out")


def test_no_archive_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        extract_tar(tmp_path / "a.tar", tmp_path / "out")
