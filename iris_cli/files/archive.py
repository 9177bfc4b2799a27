"""Archives from elsewhere: extracted only inside the folder, bounded, nothing but plain files."""

from __future__ import annotations

import errno
import lzma
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from iris_cli.errors import DataRefused, EnvironmentProblem, UsageError
from iris_cli.files.publish import environment_problem

_MAX_BYTES = 64 << 30
_CHUNK = 1 << 20
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
# What the system says where one name of the archive is both a file and a folder.
_CONTRADICTION = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
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
    raises DataRefused for a damaged or hostile archive, EnvironmentProblem where its files cannot
    be written, UsageError where there is no archive.
    """
    if not archive.is_file():
        raise UsageError("no such file", file=archive, fix="check the path")
    try:
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            _read_to_the_end(tar)
            _check_members(archive, members)
            return sorted(_extract(tar, member, folder) for member in members if member.isfile())
    except _DAMAGED as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        if isinstance(error, EnvironmentProblem):
            raise
        # The decompressors of gzip and bz2 report damage as an OSError without a number.
        if error.errno is None or error.errno in _CONTRADICTION:
            raise _damaged(archive, error) from error
        raise _not_written(archive, folder, error) from error


def _damaged(archive: Path, error: Exception) -> DataRefused:
    return DataRefused(
        "not a readable tar archive", file=archive, found=str(error), fix="download it again"
    )


def _not_written(archive: Path, folder: Path, error: OSError) -> EnvironmentProblem:
    target = folder if error.filename is None else Path(str(error.filename))
    return environment_problem(target, error) or EnvironmentProblem(
        f"{archive.name} could not be unpacked",
        file=target,
        found=error.strerror or str(error),
        fix="check the disk, then run the same line again",
    )


def _read_to_the_end(tar: tarfile.TarFile) -> None:
    """The checksum of a compressed archive stands at its end, where tarfile does not look."""
    while tar.fileobj is not None and tar.fileobj.read(_CHUNK):
        pass


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
