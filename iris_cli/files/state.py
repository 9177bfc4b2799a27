"""What the file system says of a file: enough to see that it is another one, without reading it."""

from __future__ import annotations

from pathlib import Path

from iris_cli.files.hashing import hash_bytes

FileState = list[str | int]
"""Digest of the resolved path, size, modification and change time (ns), inode; for JSON."""

_DIGITS = 16


def file_state(path: Path) -> FileState | None:
    """The state of a file, None where it cannot be seen.

    Of the path there is only a digest, as states stand in files that are passed on.
    """
    try:
        status, resolved = path.stat(), path.resolve()
    except OSError:
        return None
    digest = hash_bytes(str(resolved).encode(errors="surrogateescape"))[:_DIGITS]
    return [digest, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
