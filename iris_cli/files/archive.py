"""Archives from elsewhere: extracted only inside the folder, bounded, nothing but plain files."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath

from iris_cli.errors import DataRefused

_MAX_BYTES = 64 << 30
_DEVICE_NAMES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{p}{i}" for p in ("com", "lpt") for i in range(10)),
}


def safe_relative_path(name: str, *, archive: Path | str | None = None) -> PurePosixPath:
    """A name from an archive or a JSON file as a path that cannot leave its folder.

    raises DataRefused for absolute names, `..`, drive letters, backslashes, control characters
    and device names.
    """
    path = PurePosixPath(name)
    bad = (
        path.is_absolute()
        or not path.parts
        or "\\" in name
        or ":" in name
        or any(ord(character) < 32 for character in name)
        or any(part == ".." for part in path.parts)
        or any(part.split(".")[0].lower() in _DEVICE_NAMES for part in path.parts)
    )
    if bad:
        raise DataRefused(
            "a name that could leave its folder",
            file=archive,
            found=repr(name),
            expected="a relative path of plain names",
            fix="do not use this file",
        )
    return path


def extract_tar(archive: Path, folder: Path) -> list[Path]:
    """Extract the plain files of a tar archive into `folder`; returns their paths, sorted.

    Links, devices and unsafe names are refused before anything is written.
    raises DataRefused for a damaged or hostile archive.
    """
    try:
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            _check_members(archive, members)
            return sorted(_extract(tar, member, folder) for member in members if member.isfile())
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, DataRefused):
            raise
        raise DataRefused(
            "not a readable tar archive", file=archive, found=str(error), fix="download it again"
        ) from error


def _check_members(archive: Path, members: list[tarfile.TarInfo]) -> None:
    for member in members:
        safe_relative_path(member.name, archive=archive)
        if not (member.isfile() or member.isdir()):
            raise DataRefused(
                "the archive holds something that is not a plain file",
                file=archive,
                found=member.name,
                fix="do not use this file",
            )
    total = sum(member.size for member in members)
    if total > _MAX_BYTES:
        raise DataRefused(
            "the archive unpacks to more than it should",
            file=archive,
            found=f"{total} bytes",
            expected=f"at most {_MAX_BYTES} bytes",
        )


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> Path:
    target = folder / safe_relative_path(member.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    if source is None:
        raise DataRefused("a file of the archive cannot be read", file=member.name)
    with source, target.open("wb") as stream:
        shutil.copyfileobj(source, stream)
    return target
