"""statistics.csv: one row for every case and class of a folder of predictions.

It is made of the receipts alone, in order of their names, so that it is the same whichever
processes made them and however often they were stopped.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from iris_cli.execution.receipts import Receipt, read_receipt
from iris_cli.files.publish import publish_text, published_json, remove_leftovers

STATISTICS = "statistics.csv"

COLUMNS = (
    "case",
    "class",
    "voxels",
    "volume_ml",
    "mean_intensity",
    "components",
    "touches_border",
    "confidence",
    "token_distance",
    "quality",
)


def write_statistics(folder: Path, receipts: Path) -> Path:
    """Publish statistics.csv of the label maps in `folder`.

    receipts: the folder they are in. Where another process finishes a case meanwhile, it is made
    once more: the last one to write has seen all of them.
    """
    remove_leftovers(folder, STATISTICS)
    while True:
        seen = _state(receipts)
        path = publish_text(folder / STATISTICS, _table(folder, receipts))
        if _state(receipts) == seen:
            return path


def _state(receipts: Path) -> list[tuple[str, int]]:
    found = []
    for path in published_json(receipts):
        try:
            found.append((path.name, path.stat().st_mtime_ns))
        except OSError:  # another process is making the case anew
            continue
    return found


def _table(folder: Path, receipts: Path) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for path in published_json(receipts):
        receipt = read_receipt(path)
        if receipt is not None:
            writer.writerows(_rows(receipt, folder))
    return stream.getvalue()


def _rows(receipt: Receipt, folder: Path) -> Iterator[Mapping[str, Any]]:
    """What an earlier iris did not measure stays empty; label maps that are gone have no row."""
    content = receipt.content
    said = content.get("output", {})
    if not (folder / Path(said.get("file", f"{receipt.case}.nii.gz")).name).is_file():
        return
    for name, voxels in said.get("voxels", {}).items():
        yield {
            "case": receipt.case,
            "class": name,
            "voxels": voxels,
            **content.get("classes", {}).get(name, {}),
            "confidence": said.get("confidence", {}).get(name),
            "token_distance": content.get("likeness", {}).get(name, {}).get("token_distance"),
            "quality": "; ".join(content.get("quality", {}).get(name, ())),
        }
