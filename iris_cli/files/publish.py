"""Publishing: the only way a file gets its final name.

A file is written under a temporary name in the folder where it will live, flushed to the disk,
read again and verified, and only then renamed; the folder is flushed last. A reader therefore
sees the old file, the new file, or none, never a part of one (RELIABILITY.md, Publish).

Temporary names are `.<name>.<pid>-<random>-<host>.partial<suffixes>`: hidden, recognisable after a
crash, and with the suffixes that format libraries look at. A name that leaves too little room for
the rest of the temporary one is cut there, and a hash of all of it takes the place of its end.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

from iris_cli.errors import EnvironmentProblem

_MARK = ".partial"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Of the 255 bytes a file name may have; the rest is for dots, process, mark and suffixes.
_STEM_BYTES = 176
_SUFFIX_BYTES = 16
# Less than this is no room for a writer's buffer. Some writers do not say that the disk is full:
# they fail with a word of their own, or leave a part and say nothing.
_FULL_BYTES = 1 << 16
# A temporary file of another host, whose processes cannot be looked at, is left alone so long.
_OTHER_HOST_S = 3600.0


def publish(
    path: Path,
    write: Callable[[Path], None],
    *,
    verify: Callable[[Path], None] | None = None,
    needs: int | None = None,
) -> Path:
    """Write a file so that it appears under its name whole or not at all.

    write: gets the temporary path (same folder, same suffixes) and creates the file there.
    verify: gets the temporary path after it was flushed; raises when the file is not right.
    needs: most bytes the file can take, where that is known; said when the disk is full.
    returns: `path`. An existing file of that name is replaced.
    raises EnvironmentProblem on a full disk or a path that cannot be written, and whatever
    `write` or `verify` raise; the temporary file is removed in every case.
    """
    if os.path.isdir(path):
        raise _is_a_folder(path)
    temporary = _temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        flush(temporary)
        if verify is not None:
            verify(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except BaseException as error:
        problem = _problem(path, temporary, error, needs)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if problem is not None:
            raise problem from error
        raise
    return path


def _problem(
    path: Path, temporary: Path, error: BaseException, needs: int | None
) -> EnvironmentProblem | None:
    """What is wrong with disk or path, where that is why a file could not be published."""
    written = _size(temporary)
    if isinstance(error, OSError) and not isinstance(error, EnvironmentProblem):
        problem = environment_problem(path, error, written, needs)
        if problem is not None:
            return problem
    if isinstance(error, Exception) and temporary.exists() and _free(path.parent) < _FULL_BYTES:
        return _disk_full(path, written, needs)
    return None


def publish_bytes(path: Path, data: bytes) -> Path:
    """Publish bytes; they are read again and compared before the file gets its name."""

    def verify(temporary: Path) -> None:
        if temporary.read_bytes() != data:
            raise EnvironmentProblem(
                "what was written to the disk does not read back the same",
                file=path,
                fix="check the disk; the file was not published",
            )

    return publish(
        path, lambda temporary: _write_bytes(temporary, data), verify=verify, needs=len(data)
    )


def publish_text(path: Path, text: str) -> Path:
    """Publish text as UTF-8."""
    return publish_bytes(path, text.encode())


def publish_json(path: Path, value: object, *, indent: int | None = 1) -> Path:
    """Publish a JSON value, keys in the order given, non-finite numbers refused.

    indent: None for one long line, which is written ten times as fast.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return publish_text(path, text + "\n")


def published_json(folder: Path, *, deep: bool = False) -> list[Path]:
    """The JSON files of a folder that have their final name, in order; none without the folder.

    A file that is being written, or was when its process was killed, ends in `.json`, too.
    deep: those of the folders in it as well.
    """
    found = folder.rglob("*.json") if deep else folder.glob("*.json")
    return sorted(path for path in found if not _is_temporary(path.name))


def remove_leftovers(folder: Path, *names: str) -> int:
    """Remove temporary files that a killed process left in `folder`; returns how many.

    names: only those of these files. Call it only where no other process is publishing the same
    files (it holds the claim on the case, or it is the only process of the job).
    """
    # Not glob, whose patterns are compiled anew for every name.
    starts = tuple(f".{_stem(name)}." for name in names) or (".",)
    try:
        with os.scandir(folder) as entries:
            found = [
                Path(entry.path)
                for entry in entries
                if entry.name.startswith(starts) and _MARK in entry.name and entry.is_file()
            ]
    except OSError:  # whoever writes there will say what is wrong with the folder
        return 0
    leftovers = [path for path in found if not _writer_alive(path)]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def process_is_alive(pid: int) -> bool:
    """Whether a process of this host runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether a process is dead and only waits for its parent to ask what became of it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # no such file system, or gone meanwhile
        return False
    return stat.rpartition(b")")[2].split()[:1] in ([b"Z"], [b"X"])


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and _MARK in name


def _temporary_name(path: Path) -> Path:
    parts = path.suffixes[-2:] if path.name.endswith(".gz") else [path.suffix]
    suffixes = "".join(part for part in parts if len(os.fsencode(part)) <= _SUFFIX_BYTES)
    unique = f"{os.getpid()}-{secrets.token_hex(4)}-{_host()}"
    return path.with_name(f".{_stem(path.name)}.{unique}{_MARK}{suffixes}")


def _stem(name: str) -> str:
    """The name as it stands in its temporary names: as it is, or cut and told apart by a hash."""
    encoded = os.fsencode(name)
    if len(encoded) <= _STEM_BYTES:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: _STEM_BYTES - 9].decode(errors='ignore')}-{digest}"


def _writer_alive(temporary: Path) -> bool:
    """Whether the process that writes this temporary file runs, or may run on another host."""
    pid, *rest = temporary.name.rpartition(_MARK)[0].rpartition(".")[2].split("-")
    if len(rest) == 2 and rest[1] != _host():
        return time.time() - _modified(temporary) < _OTHER_HOST_S
    return pid.isdecimal() and int(pid) != os.getpid() and process_is_alive(int(pid))


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:7]


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)


def flush(path: Path) -> None:
    """Make a file or folder durable: what was written to it is on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems refuse fsync on folders; the rename is still atomic there.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def environment_problem(
    path: Path, error: OSError, written: int = 0, needs: int | None = None
) -> EnvironmentProblem | None:
    """What the system says against writing `path`, in words; None where it is none of that.

    written: bytes that fitted before the disk was full. needs: most bytes that had to fit.
    """
    if error.errno in _DISK_FULL:
        return _disk_full(path, written, needs)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return EnvironmentProblem(
            f"no permission to write {path.name}",
            file=path,
            found=error.strerror,
            fix="choose a folder you may write to",
        )
    if error.errno == errno.EISDIR:
        return _is_a_folder(path)
    return _path_problem(path, error)


def _disk_full(path: Path, written: int, needs: int | None) -> EnvironmentProblem:
    room = "the whole file" if needs is None else f"{max(needs, written)} bytes"
    return EnvironmentProblem(
        f"the disk is full: {path.name} could not be written",
        file=path,
        found=f"{_free(path.parent)} bytes free after {written} bytes were written",
        expected=f"room for {room}",
        fix="free space or choose another folder, then run the same line again",
    )


def _path_problem(path: Path, error: OSError) -> EnvironmentProblem | None:
    problems = {
        errno.ENOTDIR: f"{path.parent} is not a folder",
        errno.EEXIST: f"{path.parent} is not a folder",
        errno.ENAMETOOLONG: "the name of the output is too long for this disk",
    }
    # Only of the output itself: what else a writer does not find is no matter of the output path.
    if error.filename is None or Path(os.fsdecode(error.filename)).parent == path.parent:
        problems[errno.ENOENT] = f"{path.parent} has gone, or cannot hold a file"
    problem = problems.get(error.errno or 0)
    if problem is None:
        return None
    fix = "choose another output path"
    if error.errno == errno.ENAMETOOLONG:
        fix = "choose a shorter name or folder"
    return EnvironmentProblem(problem, file=path, found=error.strerror, fix=fix)


def _is_a_folder(path: Path) -> EnvironmentProblem:
    return EnvironmentProblem(
        "a folder has the name of the output file",
        file=path,
        found="a folder",
        expected="a file, or nothing yet",
        fix="choose another output path",
    )


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
