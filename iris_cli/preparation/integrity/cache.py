"""Kept results: a case whose files did not change is not read again.

A result is taken where size, modification and change time of every file are those that were
seen; where a time differs (the set was copied, touched) the content of the file decides.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from iris_cli.execution.receipts import Receipt, matches, read_receipt, write_receipt
from iris_cli.preparation.integrity.payload import CasePayload, CheckedCase

VERSION = 2
"""Raised whenever a check changes, so that no older result is taken for a new one."""

FileState = list[int]


def read_kept(payload: CasePayload) -> CheckedCase | None:
    """The kept result of a case whose files and parameters are the same, else None."""
    if payload.kept is None:
        return None
    receipt = read_receipt(payload.kept)
    states = file_states(payload)
    if receipt is None or states is None:
        return None
    try:
        seen, hashes = receipt.run["states"], receipt.content["inputs"]["files"]
        if seen != states:
            if [state[0] for state in seen] != [state[0] for state in states]:
                return None
            hashes = file_hashes(payload)
        if not matches(receipt, _inputs(payload, hashes)):
            return None
        checked = CheckedCase.model_validate(receipt.content["checked"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None  # written by hand, or by another version: it proves nothing
    if seen != states:
        write_receipt(payload.kept, receipt.model_copy(update={"run": {"states": states}}))
    return checked


def keep(payload: CasePayload, checked: CheckedCase, states: list[FileState] | None) -> None:
    """Keep a result. states: of the files before they were read; None keeps nothing."""
    if payload.kept is None or states is None or states != file_states(payload):
        return
    content = {
        "inputs": _inputs(payload, file_hashes(payload)),
        "checked": checked.model_dump(mode="json"),
    }
    receipt = Receipt(case=payload.case.name, content=content, run={"states": states})
    write_receipt(payload.kept, receipt)


def file_states(payload: CasePayload) -> list[FileState] | None:
    """[size, modification time, change time] of every file; None where one cannot be asked."""
    try:
        found = [path.stat() for path in payload.files]
    except OSError:
        return None
    return [[s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in found]


def file_hashes(payload: CasePayload) -> list[str]:
    """SHA-256 of the bytes of every file (of the file, not its voxels: nothing is inflated)."""
    return [_hash_file(path) for path in payload.files]


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _inputs(payload: CasePayload, hashes: list[str]) -> dict[str, Any]:
    return {
        "version": VERSION,
        "parameters": payload.parameters(),
        "paths": [str(path) for path in payload.files],
        "files": hashes,
    }
