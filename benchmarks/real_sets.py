"""Dice on real sets, beside copying a reference: python benchmarks/real_sets.py DATA WORK.

DATA is a folder of sets in the form images/ + labels/ + info.json with splits.json beside them.
Every set goes through the commands' own workflows: convert, encode-task, predict, evaluate.

Without options the validation lists are scored: references are the first fully contoured cases of
the train list (of `context` for a set that was never trained on), queries the validation list (or
`query`). With --test it is the test lists, once per release (METHOD.md 8): references of trained
sets are then drawn from the train list with several seeds, and the table goes to docs/test-log.md.

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
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_conversion.registry import convert
from iris_cli.dataset.building import TransferMode
from iris_cli.dataset.raw import Case, RawDataset, read_raw_dataset
from iris_cli.evaluation.metrics import compute_metrics
from iris_cli.files.hashing import hash_json
from iris_cli.model.model import load_model
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import Volume, read_labels
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from iris_cli.workflows.evaluate import evaluate
from iris_cli.workflows.predict import PredictSettings, predict

RESULTS = Path(__file__).parent / "results" / "real_sets.md"
TEST_LOG = Path(__file__).parents[1] / "docs" / "test-log.md"
ALIGNMENTS = ("world", "centre", "box")


@dataclass(frozen=True)
class Protocol:
    """A set, which of its lists are references and queries, and the frozen registration Dice.

    counts: numbers of references. registration: number of references -> Dice.
    seeds: each draws other references from the list; 0 draws takes its first cases.
    """

    name: str
    references: str
    queries: str
    trained_on: bool
    counts: tuple[int, ...] = (1, 3)
    registration: Mapping[int, float] = field(default_factory=dict)
    seeds: int = 0


@dataclass(frozen=True)
class Row:
    """One line of the table: a set with k references, all draws together."""

    protocol: Protocol
    count: int
    queries: int
    spacing_mm: float
    headlines: tuple[Mapping[str, float], ...]  # one for each draw
    copied: Sequence[float]
    classes: Mapping[str, float]
    seconds: float

    def cells(self) -> list[str]:
        means = [headline["mean"] for headline in self.headlines]
        spread = (
            f"({_number(self.headlines[0]['low'])}-{_number(self.headlines[0]['high'])})"
            if len(means) == 1
            else f"(draws {_number(min(means))}-{_number(max(means))})"
        )
        shown = sorted(self.classes.items(), key=lambda item: item[1])
        if len(shown) > CLASSES_SHOWN:
            shown = [*shown[: CLASSES_SHOWN // 2], *shown[-CLASSES_SHOWN // 2 :]]
        return [
            self.protocol.name,
            "yes" if self.protocol.trained_on else "no",
            str(self.count),
            str(self.queries),
            f"{self.spacing_mm:.3g}",
            f"**{_number(float(np.mean(means)))}** {spread}",
            " / ".join(_number(value) for value in self.copied),
            _number(self.protocol.registration.get(self.count)),
            ", ".join(f"{name} {_number(dice)}" for name, dice in shown),
            f"{self.seconds:.1f}",
        ]


CLASSES_SHOWN = 12
VALIDATION = (
    Protocol("hippocampus", "train", "validate", True, registration={1: 0.733, 3: 0.794}),
    Protocol("openkbp", "train", "validate", True, registration={1: 0.593, 3: 0.631}),
    Protocol("sts_ct", "context", "query", False, (1, 2), {1: 0.135, 2: 0.135}),
)
TEST = (
    Protocol("hippocampus", "train", "test", True, (1, 3, 5), seeds=5),
    Protocol("openkbp", "train", "test", True, (1, 3), seeds=1),
    Protocol("sts_mr", "train", "test", True, (1, 3), seeds=5),
    Protocol("prostate_mr_sim", "train", "test", True, (1, 3), seeds=5),
    Protocol("prostate_us_sim", "train", "test", True, (1, 3), seeds=5),
    Protocol("mouse", "context", "query", False, (1, 3), {1: 0.864, 3: 0.889}),
    Protocol("cardiac", "context", "query", False, (1, 2), {1: 0.546, 2: 0.546}),
    Protocol("brain_mr", "context", "query", False, (1,)),
    Protocol("sts_pet", "context", "query", False, (1, 3, 5)),
)


def main() -> None:
    """Run all protocols and append a table to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", help="name or folder; default: the model that ships")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--test", action="store_true", help="the test lists: once per release")
    parser.add_argument("--sets", nargs="+", help="only these sets")
    arguments = parser.parse_args()
    splits = json.loads((arguments.data / "splits.json").read_text())["sets"]
    rows = [
        row.cells()
        for protocol in (TEST if arguments.test else VALIDATION)
        if arguments.sets is None or protocol.name in arguments.sets
        for row in _rows(protocol, splits[protocol.name], arguments)
    ]
    card = load_model(arguments.model).card
    text = _table(rows, f"{card.name} {card.version}, fingerprint {card.fingerprint[:12]}")
    sys.stdout.write(text)
    results = TEST_LOG if arguments.test else RESULTS
    results.parent.mkdir(exist_ok=True)
    with results.open("a", encoding="utf-8") as stream:
        stream.write(text)


def _rows(
    protocol: Protocol, lists: dict[str, list[str]], arguments: argparse.Namespace
) -> Iterator[Row]:
    raw_folder = arguments.work / "raw" / protocol.name
    if not raw_folder.exists():
        convert("info_json", arguments.data / protocol.name, raw_folder, mode=TransferMode.COPY)
    raw = read_raw_dataset(raw_folder, strict=False)
    pool = [c for c in lists[protocol.references] if not raw.case(c).not_annotated]
    queries = lists[protocol.queries]
    copied = _copy(raw, raw.case(pool[0]), [raw.case(name) for name in queries])
    for count in (count for count in protocol.counts if count <= len(pool)):
        draws = [_drawn(pool, count, seed) for seed in range(protocol.seeds)] or [pool[:count]]
        began = _cpu_seconds()
        done = [_iris(protocol, raw, draw, queries, arguments) for draw in draws]
        seconds = _cpu_seconds() - began
        dice = [
            {name: item["dice"]["mean"] for name, item in report["classes"].items()}
            for report, _ in done
        ]
        row = Row(
            protocol=protocol,
            count=count,
            queries=len(queries),
            spacing_mm=done[0][1].header.spacing_mm,
            headlines=tuple(report["headline_dice"] for report, _ in done),
            copied=copied,
            classes={name: _mean([one.get(name) for one in dice]) for name in dice[0]},
            seconds=seconds / (len(queries) * len(draws)),
        )
        sys.stderr.write(" | ".join(row.cells()) + "\n")
        yield row


def _drawn(pool: Sequence[str], count: int, seed: int) -> list[str]:
    return random.Random(seed).sample(sorted(pool), count)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def _classes_shown(raw: RawDataset, references: Sequence[str]) -> list[str]:
    """The classes that have a voxel in some reference; nothing can be said about the others."""
    maps = [read_labels(_label(raw.case(name))).array for name in references]
    values = set().union(*(np.unique(labels).tolist() for labels in maps))
    return [found.name for found in raw.classes if values & set(found.values)]


def _iris(
    protocol: Protocol,
    raw: RawDataset,
    references: Sequence[str],
    queries: Sequence[str],
    arguments: argparse.Namespace,
) -> tuple[dict[str, Any], Any]:
    folder = arguments.work / "results" / protocol.name / hash_json(list(references))[:12]
    encoded = encode_task(
        ReferenceSource(raw.folder, cases=tuple(references)),
        folder / "set.task.pt",
        model=arguments.model,
        classes=_classes_shown(raw, references),
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
    return "-" if value is None or np.isnan(value) else f"{value:.3f}"


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
