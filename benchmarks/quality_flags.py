"""What the flags of `iris predict` catch: python -m benchmarks.quality_flags DATA

DATA is a folder of sets in the form images/ + labels/ + info.json with splits.json beside them.
Two tables, of training and validation lists alone:

- the shipped model with three references on the first queries of the validation lists: how many
  classes of cases each threshold flags, and how many of those are bad (Dice below 0.5) or good
  (from 0.7 up);
- true volumes alone: how often that of a case is outside the range of K references of the same set
  by each factor, over random draws. Every such flag is a false one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.results_table import publish
from iris_cli.dataset.classes import ClassLabel
from iris_cli.inference.case import predict_volume
from iris_cli.inference.quality import VOLUME, quality_flags
from iris_cli.inference.statistics import ClassStatistics, measure
from iris_cli.model.model import load_model
from iris_cli.task.encoding import Reference, encode_references
from iris_cli.task.task_file import ReferenceVolumes
from iris_cli.volume.reading import read_image, read_labels

SETS = ("hippocampus", "openkbp", "prostate_mr_sim", "prostate_us_sim", "sts_mr", "sts_ct")
REFERENCES, QUERIES = 3, 8
CONFIDENCES, FACTORS = (0.8, 0.86, 0.88, 0.9, 0.92, 0.94), (1.5, 2.0, 3.0, 4.0)
BAD, GOOD = 0.5, 0.7
DRAWS = 400


@dataclass(frozen=True)
class Structure:
    """One class of one case, as predicted. dice: against the truth."""

    found: ClassStatistics
    confidence: float | None
    references: ReferenceVolumes
    dice: float


def main() -> None:
    """Print both tables and append them to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    torch.set_num_threads(1)
    lists = json.loads((data / "splits.json").read_text(encoding="utf-8"))["sets"]
    structures = [one for name in SETS for one in _predicted(data / name, lists[name])]
    rows = [_row(f"confidence below {t}", structures, _below(t)) for t in CONFIDENCES]
    rows += [_row(f"volume, factor {f}", structures, _outside(f)) for f in FACTORS]
    rows.append(_row("volume, as flagged", structures, _flagged))
    head = ("flag", "flagged", f"of Dice < {BAD}", f"of Dice >= {GOOD}")
    note = f"{len(structures)} classes of cases, {REFERENCES} references"
    publish("quality_flags", "flags of predictions", (note,), head, rows)
    volumes = [row for name in SETS for row in _volume_rows(data / name, lists[name])]
    publish(
        "quality_flags",
        "true volumes outside the range of K references (1 / 3), part of draws",
        (f"{DRAWS} draws",),
        ("set", "class", "cases", *(f"factor {factor:g}" for factor in FACTORS)),
        volumes,
        words=2,
    )


def _predicted(folder: Path, lists: dict[str, list[str]]) -> Iterator[Structure]:
    model, classes = load_model(), _classes(folder)
    names = (lists.get("train") or lists["context"])[:REFERENCES]
    references = [Reference(_file(folder, "images", n), _file(folder, "labels", n)) for n in names]
    task = encode_references(model, references, classes)
    for name in (lists.get("validate") or lists["query"])[:QUERIES]:
        image, truth = (
            read_image(_file(folder, "images", name)),
            read_labels(_file(folder, "labels", name)),
        )
        done = predict_volume(model, task, image)
        values = [entry.value for entry in task.header.classes]
        found = measure(done.labels, image.array, image.grid.spacing_zyx, values)
        for entry in task.header.classes:
            here, there = done.labels == entry.value, truth.array == entry.value
            if there.any():
                dice = 2 * np.count_nonzero(here & there) / (here.sum() + there.sum())
                volumes = task.header.reference_volumes[entry.name]
                sure = done.confidence.get(entry.name)
                yield Structure(found[entry.value], sure, volumes, float(dice))


def _row(
    title: str, structures: Sequence[Structure], flagged: Callable[[Structure], bool]
) -> list[str]:
    def part(group: list[Structure]) -> str:
        return f"{sum(map(flagged, group))} of {len(group)}"

    bad = [one for one in structures if one.dice < BAD]
    good = [one for one in structures if one.dice >= GOOD]
    return [title, part(list(structures)), part(bad), part(good)]


def _below(threshold: float) -> Callable[[Structure], bool]:
    return lambda one: one.confidence is not None and one.confidence < threshold


def _outside(factor: float) -> Callable[[Structure], bool]:
    def outside(one: Structure) -> bool:
        low, high = min(one.references.volumes_ml), max(one.references.volumes_ml)
        return not low / factor <= one.found.volume_ml <= high * factor

    return outside


def _flagged(one: Structure) -> bool:
    return VOLUME in quality_flags(one.found, one.confidence, one.references)


def _volume_rows(folder: Path, lists: dict[str, list[str]]) -> Iterator[list[str]]:
    names = [n for key in ("train", "validate", "context", "query") for n in lists.get(key, [])]
    volumes: dict[str, list[float]] = {label.name: [] for label in _classes(folder)}
    for name in names:
        truth = read_labels(_file(folder, "labels", name))
        for label in _classes(folder):
            voxels = int(np.isin(truth.array, label.values).sum())
            if voxels:
                volumes[label.name].append(voxels * float(np.prod(truth.grid.spacing_xyz)))
    for name, known in volumes.items():
        parts = [_part_outside(np.array(known), count) for count in (1, REFERENCES)]
        cells = [f"{one:.2f} / {three:.2f}" for one, three in zip(*parts, strict=True)]
        yield [folder.name, name, str(len(known)), *cells]


def _part_outside(volumes: np.ndarray, count: int) -> list[float]:
    """For every factor: draws in which one volume is outside the range of `count` others."""
    generator = np.random.default_rng(0)
    outside = np.zeros(len(FACTORS))
    for _ in range(DRAWS):
        drawn = generator.permutation(volumes)
        low, high, one = drawn[:count].min(), drawn[:count].max(), drawn[count]
        outside += [one < low / factor or one > high * factor for factor in FACTORS]
    return (outside / DRAWS).tolist()


def _classes(folder: Path) -> list[ClassLabel]:
    info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    return [ClassLabel(n, (int(v),), int(v)) for v, n in info["labels"].items() if int(v)]


def _file(folder: Path, kind: str, case: str) -> Path:
    return next((folder / kind).glob(f"{case}.*"))


if __name__ == "__main__":
    main()
