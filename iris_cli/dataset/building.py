"""Building a raw data set in a hidden folder beside its final place.

A conversion takes minutes and may be killed, so nothing ever stands half converted under the
final name: everything is put into `.<name>.<host>-<pid>-<random>.partial`, and that folder is
renamed when it is complete. Leftovers of processes that are gone are removed by the next
conversion to the same name.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from iris_cli.errors import EnvironmentProblem, UsageError
from iris_cli.files.publish import flush, process_is_alive

_MARK = ".partial"


class TransferMode(StrEnum):
    """How a file that needs no change gets into a raw data set."""

    COPY = "copy"
    LINK = "link"


@contextlib.contextmanager
def building_folder(target: Path) -> Iterator[Path]:
    """A new hidden folder that becomes `target` when the block ends without an exception.

    raises UsageError where `target` exists and is not an empty folder, EnvironmentProblem where
    the disk is full or may not be written. On any error the hidden folder is removed.
    """
    target = target.absolute()
    _refuse_existing(target)
    with scratch_folder(target) as hidden:
        yield hidden
        _flush_folders(hidden)
        os.replace(hidden, target)
        flush(target.parent)


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` for the time of the block; then it is removed.

    raises EnvironmentProblem where the disk is full or may not be written.
    """
    target = target.absolute()
    unique = f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    hidden = target.with_name(f".{target.name}.{unique}{_MARK}")
    try:
        _make_parent(target)
        _remove_leftovers(target)
        hidden.mkdir()
        yield hidden
    except OSError as error:
        problem = _environment_problem(target, error)
        if problem is not None:
            raise problem from error
        raise
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def place(source: Path, target: Path, mode: TransferMode) -> Path:
    """Put a file at `target` unchanged: a copy, or a symbolic link to the resolved source."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if mode is TransferMode.LINK:
        try:
            target.symlink_to(source.resolve())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise EnvironmentProblem(
                "links cannot be made here", file=target, found=str(error), fix="use --copy"
            ) from error
        return target
    shutil.copyfile(source, target)
    flush(target)
    return target


def _refuse_existing(target: Path) -> None:
    is_empty_folder = target.is_dir() and not any(target.iterdir())
    if (target.exists() or target.is_symlink()) and not is_empty_folder:
        raise UsageError(
            "the target exists already",
            file=target,
            expected="a folder that does not exist yet",
            fix="remove it, or choose another name",
        )


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        in_the_way = next((p for p in target.parents if p.exists() or p.is_symlink()), None)
        raise EnvironmentProblem(
            "a file stands where a folder is needed",
            file=in_the_way,
            expected=f"a folder, to make {target} in",
            fix="choose another target, or move the file",
        ) from error


def _remove_leftovers(target: Path) -> None:
    """Remove hidden folders of this target whose process on this host is gone."""
    prefix = f".{target.name}.{_host()}-"
    for entry in target.parent.glob(f"{glob.escape(prefix)}*{_MARK}"):
        pid = entry.name[len(prefix) : -len(_MARK)].partition("-")[0]
        if pid.isdecimal() and not process_is_alive(int(pid)):
            shutil.rmtree(entry, ignore_errors=True)


def _host() -> str:
    return socket.gethostname().replace("/", "_") or "host"


def _flush_folders(folder: Path) -> None:
    for path, _, _ in os.walk(folder):
        flush(Path(path))


def _environment_problem(target: Path, error: OSError) -> EnvironmentProblem | None:
    if isinstance(error, EnvironmentProblem):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentProblem(
            "the disk is full: the data set could not be written",
            file=target,
            found=f"{shutil.disk_usage(target.parent).free} bytes free",
            expected="room for all files of the source",
            fix="free space, choose another folder, or use --link",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return EnvironmentProblem(
            "no permission to read the source or write the target",
            file=error.filename or target,
            found=error.strerror,
            fix="choose a folder you may write to",
        )
    return None
