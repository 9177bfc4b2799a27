"""Voxel bytes out of a file, believed only after every check: sizes, deflate stream, checksum.

A reader says how many bytes the header claims; `read_claimed` gives exactly those or refuses. It
refuses before it allocates where the file could not hold the claim even at deflate's best ratio,
never inflates beyond the claim, follows the stream to its checksum, and tolerates nothing after.
SimpleITK and nibabel check none of this: a cut or flipped file can come out as a volume.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from iris_cli.errors import DataRefused, EnvironmentProblem, UsageError

DEFLATE: Any = zlib
"""The deflate library: isal where installed, which is two to three times as fast, else zlib."""
with suppress(ImportError):
    from isal import isal_zlib

    DEFLATE = isal_zlib

DEFLATE_RATIO = 1032
"""No deflate stream grows by more than this (258 bytes from two bits)."""

READ_BYTES = 1 << 18
INFLATE_BYTES = 1 << 22

FIX_DAMAGED = "copy or export the file again: it is cut short or damaged"


class Packing(Enum):
    """How voxel bytes are stored; the value is zlib's `wbits` for it."""

    RAW = 0
    ZLIB = 15
    GZIP = 31


class InflatedFile:
    """Bytes of one file from an offset on, inflated on the way, in order and only once."""

    def __init__(self, file: IO[bytes], path: Path, packing: Packing) -> None:
        self._file = file
        self._path = path
        self._packing = packing
        self._pending = b""
        self._engine: Any = None if packing is Packing.RAW else _new_engine(packing)

    def read_into(self, target: memoryview) -> int:
        """Fill `target` as far as the file goes; returns the number of bytes."""
        done = 0
        while done < len(target):
            piece = self._next(min(len(target) - done, INFLATE_BYTES))
            if not piece:
                break
            target[done : done + len(piece)] = piece
            done += len(piece)
        return done

    def read(self, size: int) -> bytes:
        """At most `size` bytes, fewer only at the end of the file."""
        target = bytearray(size)
        return bytes(target[: self.read_into(memoryview(target))])

    def skip(self, size: int) -> int:
        """Pass over `size` bytes in small pieces; returns how many there were."""
        done = 0
        while done < size:
            piece = self._next(min(size - done, READ_BYTES))
            if not piece:
                break
            done += len(piece)
        return done

    def expect_end(self, claimed: int) -> None:
        """Refuse unless stream and file end here, with the checksum found right."""
        if self._next(1):
            raise DataRefused(
                "the file holds more voxel data than its header says",
                file=self._path,
                found=f"more than {claimed} bytes",
                expected=f"{claimed} bytes",
                fix=FIX_DAMAGED,
            )

    def _next(self, size: int) -> bytes:
        """1 to `size` further bytes, or none at the end."""
        if self._engine is None:
            return self._file.read(size)
        while True:
            if self._engine.eof and not self._next_member():
                return b""
            source = self._pending or self._file.read(READ_BYTES)
            try:
                piece: bytes = self._engine.decompress(source, size)
            except (zlib.error, DEFLATE.error) as error:
                raise self._damaged(str(error)) from error
            self._pending = self._engine.unconsumed_tail
            if piece:
                return piece
            stuck = not source or len(self._pending) == len(source)
            if stuck and not self._engine.eof:
                raise self._damaged("the stream stops before its end")

    def _next_member(self) -> bool:
        """Whether another gzip member follows; anything else after the stream is refused."""
        rest: bytes = self._engine.unused_data or self._file.read(READ_BYTES)
        if not rest:
            return False
        if len(rest) < 2:
            rest += self._file.read(READ_BYTES)
        if self._packing is not Packing.GZIP or not rest.startswith(b"\x1f\x8b"):
            raise DataRefused(
                "bytes follow after the end of the compressed data",
                file=self._path,
                found=f"at least {len(rest)} more bytes",
                expected="the end of the file",
                fix=FIX_DAMAGED,
            )
        self._engine = _new_engine(self._packing)
        self._pending = rest
        return True

    def _damaged(self, reason: str) -> DataRefused:
        if not self._file.seek(0, os.SEEK_END):
            return DataRefused("the file is empty", file=self._path, fix=FIX_DAMAGED)
        return DataRefused(
            "the compressed data are damaged",
            file=self._path,
            found=reason,
            expected="a complete deflate stream with its checksum",
            fix=FIX_DAMAGED,
        )


def read_claimed(stream: InflatedFile, claimed: int, path: Path) -> npt.NDArray[np.uint8]:
    """Exactly `claimed` bytes, the last of the stream, as a (claimed,) uint8 array.

    The caller has compared `claimed` with the size of the file (`check_claim`) before.
    """
    try:
        target = np.empty(claimed, dtype=np.uint8)
    except MemoryError as error:
        raise EnvironmentProblem(
            "not enough memory for this volume",
            file=path,
            found=f"{claimed / 2**30:.1f} GiB of voxels",
            fix="use a machine with more memory, or crop the volume",
        ) from error
    found = stream.read_into(target.data)
    if found != claimed:
        raise too_short(path, found, claimed)
    stream.expect_end(claimed)
    return target


def check_claim(path: Path, claimed: int, stored: int, packing: Packing) -> None:
    """Refuse a claim of voxel bytes that `stored` bytes of file cannot hold, or must not exceed."""
    if packing is Packing.RAW:
        if stored < claimed:
            raise too_short(path, stored, claimed)
        if stored > claimed:
            raise DataRefused(
                "the file holds more voxel data than its header says",
                file=path,
                found=f"{stored} bytes",
                expected=f"{claimed} bytes",
                fix=FIX_DAMAGED,
            )
    elif claimed > stored * DEFLATE_RATIO:
        raise DataRefused(
            "the header claims more voxels than the file can hold",
            file=path,
            found=f"{stored} compressed bytes",
            expected=f"{claimed} bytes of voxels, at least {claimed // DEFLATE_RATIO} compressed",
            fix=FIX_DAMAGED,
        )


def too_short(path: Path, found: int, claimed: int) -> DataRefused:
    """The refusal of a file that ends before its voxels do."""
    return DataRefused(
        "the file ends before its voxels do",
        file=path,
        found=f"{found} bytes",
        expected=f"{claimed} bytes",
        fix=FIX_DAMAGED,
    )


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The file and its size.

    raises UsageError for a missing file, DataRefused for one that may not be read (it is this
    file's trouble, not that of its neighbours), EnvironmentProblem for trouble with the disk.
    """
    try:
        if not path.is_file():
            what = "this is no file" if path.exists() else "there is no such file"
            raise UsageError(what, file=path, fix="check the path")
        with path.open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except (UsageError, EnvironmentProblem):
        raise
    except PermissionError as error:
        raise DataRefused(
            "the file may not be read",
            file=path,
            found=error.strerror or str(error),
            fix="make it readable for your user",
        ) from error
    except OSError as error:
        raise EnvironmentProblem(
            "the file cannot be read",
            file=path,
            found=error.strerror or str(error),
            fix="bring its disk or network share back, then run the same line again",
        ) from error


def _new_engine(packing: Packing) -> Any:
    return DEFLATE.decompressobj(wbits=packing.value)
