"""Archives extract inside their folder or not at all."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from iris_cli.errors import DataRefused
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
