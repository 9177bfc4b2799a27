"""bf16 against fp32 on real queries, shipped model: python -m benchmarks.precision DATA

DATA is a folder of sets in the form images/ + labels/ + info.json with splits.json beside them. One
reference of the train list and the first queries of the validation list of each set are taken; task
and query are worked in both precisions, in turns, one thread. Dice is that of the label map in bf16
against the one in fp32, class by class on the native grid: not how good either is, but how far
apart they are. Classes of fewer than 50 voxels are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.results_table import publish, spread
from iris_cli.dataset.classes import ClassLabel
from iris_cli.inference.case import Prediction, predict_volume
from iris_cli.inference.streaming import How
from iris_cli.model.model import Model, load_model
from iris_cli.network.precision import Precision, has_bfloat16
from iris_cli.task.encoding import Reference, encode_references
from iris_cli.task.task_file import Task
from iris_cli.volume.reading import read_image

COMPARED: tuple[Precision, Precision] = ("fp32", "bf16")
SETS = ("hippocampus", "openkbp")
TARGET = 0.99
SMALLEST_CLASS = 50


@dataclass(frozen=True)
class Compared:
    """One query. dice: class -> fp32 against bf16. seconds: CPU seconds in fp32 and bf16."""

    case: str
    dice: dict[str, float]
    seconds: tuple[float, float]


def read_set(
    folder: Path, lists: dict[str, list[str]], queries: int
) -> tuple[Reference, list[Path], list[ClassLabel]]:
    """A reference, some queries, and the classes of a set."""
    info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    classes = [ClassLabel(n, (int(v),), int(v)) for v, n in info["labels"].items() if int(v)]

    def file(kind: str, case: str) -> Path:
        return next((folder / kind).glob(f"{case}*"))

    first = lists["train"][0]
    reference = Reference(file("images", first), file("labels", first))
    return reference, [file("images", case) for case in lists["validate"][:queries]], classes


def compare(
    model: Model, reference: Reference, queries: list[Path], classes: list[ClassLabel]
) -> Iterator[Compared]:
    """Every query in both precisions."""
    tasks: dict[Precision, Task] = {
        precision: encode(model, reference, classes, precision) for precision in COMPARED
    }
    for path in queries:
        volume = read_image(path)
        found: dict[str, Prediction] = {}
        seconds: dict[str, float] = {}
        for precision, task in tasks.items():
            started = time.process_time()
            found[precision] = predict_volume(model, task, volume, how=How(precision=precision))
            seconds[precision] = time.process_time() - started
        dice = {
            entry.name: overlap(*(f.labels == entry.value for f in found.values()))
            for entry in tasks["fp32"].header.classes
            if found["fp32"].voxels[entry.name] >= SMALLEST_CLASS
        }
        yield Compared(path.name, dice, (seconds["fp32"], seconds["bf16"]))


def encode(
    model: Model, reference: Reference, classes: list[ClassLabel], precision: Precision
) -> Task:
    """A task of one reference."""
    return encode_references(model, [reference], classes, precision=precision)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two masks."""
    both = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / max(1, both)


def main() -> None:
    """Print the table and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--queries", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model()
    splits = json.loads((given.data / "splits.json").read_text(encoding="utf-8"))["sets"]
    rows = []
    for name in SETS:
        parts = read_set(given.data / name, splits[name], given.queries)
        compared = list(compare(model, *parts))
        values = [dice for one in compared for dice in one.dice.values()]
        rows.append(
            [
                name,
                str(len(compared)),
                f"{median(values):.4f}",
                f"{min(values):.4f}",
                "yes" if min(values) >= TARGET else "no",
                spread([one.seconds[0] for one in compared]),
                spread([one.seconds[1] for one in compared]),
            ]
        )
    head = (
        "set",
        "queries",
        "Dice, median",
        "lowest",
        f">= {TARGET}",
        "fp32, CPU s",
        "bf16, CPU s",
    )
    words = "computes in bf16" if has_bfloat16(torch.device("cpu")) else "emulates bf16"
    publish("precision", f"bf16 against fp32, {model.card.name}", [f"this CPU {words}"], head, rows)


if __name__ == "__main__":
    main()
