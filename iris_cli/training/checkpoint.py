"""Checkpoints: two verified generations of everything a run needs to go on.

A checkpoint is a zip that `torch.load(weights_only=True)` reads; the comment of the zip holds the
SHA-256 of every byte before it. The digest is checked before anything is loaded, so a damaged or
foreign file is refused without being unpickled (torch itself accepts most flipped bits).
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from iris_cli.errors import DataRefused
from iris_cli.files.publish import publish

FORMAT = "iris-checkpoint-1"
LATEST = "checkpoint_latest.pt"
PREVIOUS = "checkpoint_previous.pt"
BEST = "checkpoint_best.pt"
DAMAGED = "checkpoint_damaged.pt"

State = dict[str, Any]

_MARK = b"iris-sha256:"
_COMMENT = len(_MARK) + 64
_END_RECORD = 22
_BLOCK = 1 << 22
# How torch's allocator says, in a RuntimeError, that there is no memory.
_NO_MEMORY = "allocate memory"


def write_checkpoint(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write `state` as the latest generation; the one before becomes `checkpoint_previous.pt`.

    The new file is read back before the old ones move: at every moment one whole generation
    stands under one of the two names.
    """

    def verify(temporary: Path) -> None:
        check_seal(temporary)
        if (folder / LATEST).exists():
            os.replace(folder / LATEST, folder / PREVIOUS)

    return publish(folder / LATEST, lambda path: _write(path, state), verify=verify)


def write_best(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write the weights that validated best."""
    return publish(folder / BEST, lambda path: _write(path, state), verify=check_seal)


def read_checkpoint(path: Path) -> State:
    """Read a checkpoint; raises DataRefused where a byte differs from what was written."""
    check_seal(path)
    return _load(path)


def read_step(path: Path) -> int:
    """Finished steps of a checkpoint, checked as a whole; its tensors stay on the disk.

    raises DataRefused where a byte differs from what was written.
    """
    check_seal(path)
    return int(_load(path, mmap=True)["step"])


def _load(path: Path, *, mmap: bool = False) -> State:
    """The content of a file whose seal is whole. Want of memory says nothing about the file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # torch raises a dozen kinds
        if _NO_MEMORY in str(error):
            raise MemoryError(str(error)) from error
        raise DataRefused("not a checkpoint of iris", file=path, found=error) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise DataRefused("not a checkpoint of iris", file=path, found=found, expected=FORMAT)
    return state


def read_newest(folder: Path) -> tuple[State, Path] | None:
    """The newest whole generation, or None where the folder has no checkpoint.

    One that is whole and cannot be loaded is an error and stays where it is. Raises DataRefused
    where checkpoints are there and none is whole.
    """
    path = find_newest(folder)
    return None if path is None else (_load(path), path)


def find_newest(folder: Path) -> Path | None:
    """Where the newest whole generation lies, or None where the folder has no checkpoint.

    A damaged latest is put aside as `checkpoint_damaged.pt`, so that it never replaces the whole
    previous one. Raises DataRefused where checkpoints are there and none is whole.
    """
    refusals = []
    for name in (LATEST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            check_seal(path)
        except DataRefused as error:
            refusals.append(error)
            if name == LATEST:
                os.replace(path, folder / DAMAGED)
        else:
            return path
    if refusals:
        raise DataRefused(
            "no checkpoint of this run is whole",
            file=folder,
            found="; ".join(f"{e.file}: {e.problem}" for e in refusals),
            fix="start the run anew in another folder",
        ) from refusals[0]
    return None


def seal(path: Path) -> None:
    """Put the digest of a zip without a comment into its comment."""
    with path.open("r+b") as stream:
        stream.seek(-_END_RECORD, os.SEEK_END)
        if stream.read(4) != b"PK\x05\x06":
            raise ValueError(f"{path} is not a zip without a comment")
        # The comment's length is the last field before it, and part of what is hashed.
        stream.seek(-2, os.SEEK_END)
        stream.write(struct.pack("<H", _COMMENT))
        stream.seek(0)
        digest = _digest(stream, os.path.getsize(path))
        stream.seek(0, os.SEEK_END)
        stream.write(_MARK + digest.encode())


def check_seal(path: Path) -> None:
    """Raise DataRefused unless the file is byte for byte what was sealed."""
    try:
        size = path.stat().st_size - _COMMENT
        with path.open("rb") as stream:
            found = _digest(stream, size) if size > 0 else ""
            comment = stream.read()
    except FileNotFoundError:
        raise DataRefused("no such checkpoint", file=path) from None
    if comment != _MARK + found.encode():
        raise DataRefused(
            "this checkpoint is damaged: its content and its digest differ",
            file=path,
            found=found[:16] or "an empty file",
            expected=comment[len(_MARK) :][:16].decode("ascii", "replace"),
            fix="use the other generation; resuming does so by itself",
        )


def _write(path: Path, state: Mapping[str, Any]) -> None:
    torch.save({"format": FORMAT, **state}, path)
    seal(path)


def _digest(stream: Any, size: int) -> str:
    digest = hashlib.sha256()
    left = size
    while left > 0:
        block = stream.read(min(_BLOCK, left))
        if not block:
            break
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()
