"""Receipts: the proof of what was done to a case.

`content` is what the result depends on and what it is: hashes of the inputs (under "inputs"),
parameters, output hash. It is the same for every run of the same line. `run` is what differs:
times, memory, device, host. A case is done when its receipt's inputs match; nothing else counts.
The receipt is written after the output, so a receipt without its output means that somebody
removed the output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic

from iris_cli.errors import IrisError
from iris_cli.files.hashing import hash_json
from iris_cli.files.publish import publish_json
from iris_cli.files.schema import Record, read_record

FORMAT = "iris-receipt-1"


class Receipt(Record):
    """What was done to a case; `content` is hashed and matched, `run` never is."""

    format: str = FORMAT
    case: str
    content: dict[str, Any]
    run: dict[str, Any] = pydantic.Field(default_factory=dict)

    def content_hash(self) -> str:
        """Hash of `content`, independent of the order of keys."""
        return hash_json(self.content)


def write_receipt(path: Path, receipt: Receipt, *, indent: int | None = 1) -> Path:
    """Publish a receipt; call it after the output it speaks of is published.

    indent: None where it is long and for machines.
    """
    return publish_json(path, receipt.model_dump(mode="json"), indent=indent)


def read_receipt(path: Path) -> Receipt | None:
    """The receipt at `path`; None where there is none, or none that can be believed.

    `format` is for the caller to check: other rooms keep receipts of their own form.

    An unreadable receipt proves nothing, so the case is done again; it is no error.
    """
    try:
        return read_record(path, Receipt)
    except (IrisError, OSError):
        return None


def matches(receipt: Receipt | None, inputs: dict[str, Any]) -> bool:
    """Whether a receipt speaks of exactly these inputs (compared as JSON values)."""
    if receipt is None or "inputs" not in receipt.content:
        return False
    return hash_json(receipt.content["inputs"]) == hash_json(inputs)
