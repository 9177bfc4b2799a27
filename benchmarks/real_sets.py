"""Dice on real sets, beside copying a reference: python benchmarks/real_sets.py DATA WORK.

DATA is a folder of sets in the form images/ + labels/ + info.json with splits.json beside them.
References are the first fully contoured cases of the train list (of `context` for a set that was
never trained on), queries its validation list (or `query`). Every set goes through the commands'
own workflows: convert, encode-task, predict, evaluate. Test lists are never read.

The figures for `registration` are the frozen ones (settings in the script's table); `copy` is
computed here: the label map of the first reference on the query, nearest neighbour, aligned by
world coordinates, by centres, and by stretching box on box.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_conversion.registry import convert
from iris_cli.dataset.building import TransferMode
from iris_cli.dataset.raw import Case, RawDataset, read_raw_dataset
from iris_cli.evaluation.metrics import compute_metrics
from iris_cli.model.model import load_model
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import Volume, read_labels
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from iris_cli.workflows.evaluate import evaluate
from iris_cli.workflows.predict import PredictSettings, predict

RESULTS = Path(__file__).parent / "results" / "real_sets.md"
ALIGNMENTS = ("world", "centre", "box")


@dataclass(frozen=True)
class Protocol:
    """A set, which of its lists are references and queries, and the frozen registration Dice."""

    name: str
    references: str
    queries: str
    registration: tuple[float, float]  # one reference, majority vote of three
    trained_on: bool


PROTOCOLS = (
    Protocol("hippocampus", "train", "validate", (0.733, 0.794), True),
    Protocol("openkbp", "train", "validate", (0.593, 0.631), True),
    Protocol("sts_ct", "context", "query", (0.135, 0.135), False),
)


def main() -> None:
    """Run all protocols and append a table to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", help="name or folder; default: the model that ships")
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    splits = json.loads((arguments.data / "splits.json").read_text())["sets"]
    rows = [
        row for protocol in PROTOCOLS for row in _rows(protocol, splits[protocol.name], arguments)
    ]
    card = load_model(arguments.model).card
    text = _table(rows, f"{card.name} {card.version}, fingerprint {card.fingerprint[:12]}")
    sys.stdout.write(text)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(text)


def _rows(
    protocol: Protocol, lists: dict[str, list[str]], arguments: argparse.Namespace
) -> list[list[str]]:
    raw_folder = arguments.work / "raw" / protocol.name
    if not raw_folder.exists():
        convert("info_json", arguments.data / protocol.name, raw_folder, mode=TransferMode.COPY)
    raw = read_raw_dataset(raw_folder, strict=False)
    pool = [c for c in lists[protocol.references] if not raw.case(c).not_annotated]
    queries = lists[protocol.queries]
    copied = _copy(raw, raw.case(pool[0]), [raw.case(name) for name in queries])
    rows = []
    for count, registered in zip((1, 3), protocol.registration, strict=True):
        references = pool[:count]
        began = _cpu_seconds()
        report, task = _iris(protocol, raw, references, queries, arguments)
        seconds = _cpu_seconds() - began
        headline = report["headline_dice"]
        per_class = ", ".join(
            f"{name} {_number(item['dice']['mean'])}" for name, item in report["classes"].items()
        )
        rows.append(
            [
                protocol.name, "yes" if protocol.trained_on else "no", str(len(references)),
                str(len(queries)), f"{task.header.spacing_mm:.3g}",
                f"**{_number(headline['mean'])}** ({_number(headline['low'])}-"
                f"{_number(headline['high'])})",
                " / ".join(_number(value) for value in copied), f"{registered:.3f}",
                per_class, f"{seconds / len(queries):.1f}",
            ]
        )  # fmt: skip
        sys.stderr.write(" | ".join(rows[-1]) + "\n")
    return rows


def _iris(
    protocol: Protocol,
    raw: RawDataset,
    references: Sequence[str],
    queries: Sequence[str],
    arguments: argparse.Namespace,
) -> tuple[dict[str, Any], Any]:
    folder = arguments.work / "results" / f"{protocol.name}_k{len(references)}"
    encoded = encode_task(
        ReferenceSource(raw.folder, cases=tuple(references)),
        folder / "set.task.pt",
        model=arguments.model,
    )
    predicted = predict(
        [raw.case(name).images[0] for name in queries],
        folder / "predictions",
        task=encoded.path,
        settings=PredictSettings(model=arguments.model, workers=arguments.workers),
    )
    predicted.run.raise_for_failures()
    truths = {_label(raw.case(name)).parent for name in queries}
    if len(truths) > 1:
        raise SystemExit(f"{protocol.name}: queries lie in several folders")
    report = evaluate(folder / "predictions", truths.pop(), cases=queries)
    return report.to_json(), encoded.task


def _copy(raw: RawDataset, reference: Case, queries: Sequence[Case]) -> list[float]:
    """Mean over classes of mean Dice over queries that have the class, per alignment."""
    source = read_labels(_label(reference))
    means = []
    for alignment in ALIGNMENTS:
        scores: dict[str, list[float]] = {label.name: [] for label in raw.classes}
        for query in queries:
            truth = read_labels(_label(query))
            copied = _nearest(source, truth.grid, alignment)
            for label in raw.classes:
                mask = np.isin(truth.array, label.values)
                if label.name not in query.not_annotated and mask.any():
                    dice = compute_metrics(np.isin(copied, label.values), mask).dice
                    scores[label.name].append(dice)
        means.append(float(np.mean([np.mean(values) for values in scores.values() if values])))
    return means


def _nearest(source: Volume, target: Grid, alignment: str) -> npt.NDArray[Any]:
    """Labels of the source on the target grid; both are canonical, so axes correspond."""
    shape = np.array(source.array.shape)
    index = np.stack(np.meshgrid(*map(np.arange, target.shape_zyx), indexing="ij"), axis=-1)
    if alignment == "world":
        world = target.voxel_to_world(index.reshape(-1, 3)[:, ::-1])
        found = source.grid.world_to_voxel(world)[:, ::-1].reshape(index.shape)
    else:
        centred = index + 0.5 - np.array(target.shape_zyx) / 2
        if alignment == "centre":
            scale = np.array(target.spacing_zyx) / np.array(source.grid.spacing_zyx)
        else:
            scale = shape / np.array(target.shape_zyx)
        found = centred * scale + shape / 2 - 0.5
    nearest = np.rint(found).astype(int)
    inside = np.all((nearest >= 0) & (nearest < shape), axis=-1)
    z, y, x = np.moveaxis(np.clip(nearest, 0, shape - 1), -1, 0)
    return np.where(inside, source.array[z, y, x], 0)


def _label(case: Case) -> Path:
    if case.label is None:
        raise SystemExit(f"{case.name} has no label map")
    return case.label


def _cpu_seconds() -> float:
    """CPU time of this process and of the workers that ended."""
    return sum(os.times()[:4])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(rows: list[list[str]], model: str) -> str:
    head = [
        "set", "trained on", "references", "queries", "spacing mm", "iris (95 %)",
        "copy world / centre / box", "registration", "per class", "CPU s a query",
    ]  # fmt: skip
    today = datetime.datetime.now(tz=datetime.UTC).date()
    lines = [
        f"\n## {today}, {model}",
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}; `registration` is frozen, see the script.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
