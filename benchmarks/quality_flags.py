"""What the flags of `iris predict` catch: python -m benchmarks.quality_flags DATA

DATA is a folder of sets in the form images/ + labels/ + info.json with splits.json beside them.
Four tables, of training and validation lists alone:

- the shipped model with three references on the first queries of the validation lists: how many
  classes of cases each threshold flags, and how many of those are bad (Dice below 0.5) or good
  (from 0.7 up);
- the same queries with their voxels changed before they are predicted, and true masks that are
  changed (`benchmarks.damage`): what each flag finds;
- token distances of all that was predicted, against 1, 3 and 8 references: how often that of a bad
  class is the larger one of a bad and a good one (AUC), and what some thresholds flag;
- true volumes alone: how often that of a case is outside the range of K references of the same set
  by each factor, over random draws. Every such flag is a false one.

With --cost instead: CPU seconds of predictions with and without comparing tokens, by turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.damage import MASKS, QUERIES
from benchmarks.results_table import publish, spread
from iris_cli.dataset.classes import ClassLabel
from iris_cli.inference.case import predict_volume
from iris_cli.inference.own_tokens import Comparison, own_distances
from iris_cli.inference.quality import (
    CONFIDENCE,
    DISTANCE_FACTOR,
    UNLIKE,
    VOLUME,
    Likeness,
    quality_flags,
)
from iris_cli.inference.statistics import ClassStatistics, measure
from iris_cli.inference.streaming import How
from iris_cli.model.model import load_model
from iris_cli.preparation.prepare import prepare_image
from iris_cli.task.encoding import Reference, encode_references
from iris_cli.task.task_file import ReferenceVolumes, Task
from iris_cli.volume.reading import Volume, read_image, read_labels

SETS = ("hippocampus", "openkbp", "prostate_mr_sim", "prostate_us_sim", "sts_mr", "sts_ct")
REFERENCES, CASES = 3, 20
CONFIDENCES, FACTORS = (0.8, 0.86, 0.88, 0.9, 0.92, 0.94), (1.5, 2.0, 3.0, 4.0)
COUNTS, DISTANCES = (1, 3, 8), (0.05, 0.1, 0.15, 0.2)
BAD, GOOD = 0.5, 0.7
DRAWS = 400
COST_SETS, COST_ROUNDS = ("hippocampus", "openkbp"), 5
AS_IT_IS = "as it is"
FLAGS = (CONFIDENCE, VOLUME, UNLIKE)

Flagged = Callable[["Structure"], bool]


@dataclass(frozen=True)
class Structure:
    """One class of one case. dice: against the truth.

    kind: what was done to the query or to the true mask. distances: number of references -> token
    distance, and of each reference from the others; empty where the class was not found.
    """

    kind: str
    found: ClassStatistics
    confidence: float | None
    references: ReferenceVolumes
    dice: float
    distances: dict[int, tuple[float, tuple[float, ...]]]

    def likeness(self, count: int = REFERENCES) -> Likeness | None:
        return Likeness.of(*self.distances[count]) if count in self.distances else None

    @property
    def flags(self) -> dict[str, str]:
        return quality_flags(self.found, self.confidence, self.references, self.likeness())


def main() -> None:
    """Print the tables and append them to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cost", action="store_true")
    given = parser.parse_args()
    data = given.data
    torch.set_num_threads(1)
    lists = json.loads((data / "splits.json").read_text(encoding="utf-8"))["sets"]
    if given.cost:
        _publish_cost(data, lists)
        return
    structures = [one for name in SETS for one in _of_set(data / name, lists[name])]
    plain = [one for one in structures if one.kind == AS_IT_IS]
    rows = [_row(f"confidence below {t}", plain, _below(t)) for t in CONFIDENCES]
    rows += [_row(f"volume, factor {f}", plain, _outside(f)) for f in FACTORS]
    rows += [_row(f"token distance above {t}", plain, _farther(t)) for t in DISTANCES]
    rows += [_row(f"{name}, as flagged", plain, _flagged(name)) for name in FLAGS]
    rows.append(_row("any of them", plain, _flagged(*FLAGS)))
    head = ("flag", "flagged", f"of Dice < {BAD}", f"of Dice >= {GOOD}")
    note = f"{len(plain)} classes of cases, {REFERENCES} references"
    publish("quality_flags", "flags of predictions", (note,), head, rows)
    publish(
        "quality_flags",
        "what the flags find",
        (f"of classes that were found; {REFERENCES} references",),
        ("changed", "classes", "mean Dice", *FLAGS, "any"),
        list(_kind_rows(structures)),
    )
    _publish_distances([one for one in structures if one.kind not in MASKS and one.distances])
    publish(
        "quality_flags",
        "true volumes outside the range of K references (1 / 3), part of draws",
        (f"{DRAWS} draws",),
        ("set", "class", "cases", *(f"factor {factor:g}" for factor in FACTORS)),
        [row for name in SETS for row in _volume_rows(data / name, lists[name])],
        words=2,
    )


def _publish_distances(predicted: Sequence[Structure]) -> None:
    bad = [one for one in predicted if one.dice < BAD]
    good = [one for one in predicted if one.dice >= GOOD]
    sure = [one for one in bad if not _flagged(CONFIDENCE)(one)]
    rows = []
    for count in COUNTS:
        auc = f"{_auc(bad, good, count):.3f}"
        for threshold in DISTANCES:
            for factor in (0.0, DISTANCE_FACTOR) if count > 1 else (0.0,):
                beyond = _farther(threshold, count, factor)
                words = f"{threshold:g}" + (f", or {factor:g} x references" if factor else "")
                parts = [_part(group, beyond) for group in (bad, good, sure)]
                rows.append([words, str(count), auc, *parts])
    head = ("distance above", "references", "AUC", f"of Dice < {BAD}", f"of Dice >= {GOOD}",
            f"of Dice < {BAD} and confidence not low")  # fmt: skip
    note = "predictions of queries as they are and changed, classes that were found"
    publish("quality_flags", "token distances", (note,), head, rows)


def _publish_cost(data: Path, lists: dict[str, dict[str, list[str]]]) -> None:
    rows = []
    for name in COST_SETS:
        folder, known = data / name, lists[name]["train"][:REFERENCES]
        files = [Reference(_file(folder, "images", n), _file(folder, "labels", n)) for n in known]
        classes = [label for label in _classes(folder) if _is_shown(folder, known, label)]
        task = encode_references(load_model(), files, classes)
        image = read_image(_file(folder, "images", lists[name]["validate"][0]))
        plain, compared = [], []
        for _ in range(COST_ROUNDS + 1):
            for comparison, seconds in ((Comparison.NONE, plain), (Comparison.ALL, compared)):
                started = time.process_time()
                done = predict_volume(load_model(), task, image, comparison=comparison)
                seconds.append(time.process_time() - started)
        ratio = median(compared[1:]) / median(plain[1:])  # the first round warms up
        cells = [str(done.windows.all), str(len(done.token_distances))]
        rows.append([name, *cells, spread(plain[1:]), spread(compared[1:]), f"{ratio:.2f}"])
    head = ("set", "windows", "classes compared", "without, CPU s", "with all, CPU s", "ratio")
    publish("quality_flags", "cost of comparing tokens", (f"{COST_ROUNDS} rounds",), head, rows)


def _of_set(folder: Path, lists: dict[str, list[str]]) -> Iterator[Structure]:
    names, classes = lists.get("train") or lists["context"], _classes(folder)
    tasks = {
        count: encode_references(
            load_model(),
            [Reference(_file(folder, "images", n), _file(folder, "labels", n)) for n in known],
            [label for label in classes if _is_shown(folder, known, label)],
        )
        for count in COUNTS
        if (known := names[:count])
    }
    for name in (lists["query"] if "query" in lists else lists["validate"])[:CASES]:
        image = read_image(_file(folder, "images", name))
        truth = read_labels(_file(folder, "labels", name)).array
        for kind, change in ((AS_IT_IS, None), *QUERIES.items()):
            changed, true = change(image, truth) if change else (image, truth)
            done = predict_volume(load_model(), tasks[REFERENCES], changed)
            yield from _structures(kind, tasks, changed, done.labels, true, done.confidence)
        for kind, damage in MASKS.items():
            yield from _structures(kind, tasks, image, damage(truth), truth, {})


def _structures(
    kind: str,
    tasks: dict[int, Task],
    image: Volume,
    labels: np.ndarray,
    truth: np.ndarray,
    confidence: dict[str, float],
) -> Iterator[Structure]:
    header = tasks[REFERENCES].header
    values = [entry.value for entry in header.classes]
    found = measure(labels, image.array, image.grid.spacing_zyx, values)
    distances = {count: _distances(task, image, labels) for count, task in tasks.items()}
    for entry in header.classes:
        here, there = labels == entry.value, truth == entry.value
        if there.any() and (here.any() or kind == AS_IT_IS):
            dice = 2 * np.count_nonzero(here & there) / (here.sum() + there.sum())
            usual = {n: tasks[n].header.token_distances.get(entry.name, ()) for n in tasks}
            yield Structure(
                kind,
                found[entry.value],
                confidence.get(entry.name),
                header.reference_volumes[entry.name],
                float(dice),
                {n: (d[entry.name], usual[n]) for n, d in distances.items() if entry.name in d},
            )


def _distances(task: Task, image: Volume, labels: np.ndarray) -> dict[str, float]:
    header, classes = task.header, len(task.header.classes)
    return own_distances(
        load_model(),
        task,
        prepare_image(image, header.modality, header.spacing_mm),
        labels,
        image.grid,
        range(classes),
        How(),
        crops=classes,
    )


def _kind_rows(structures: Sequence[Structure]) -> Iterator[list[str]]:
    for kind in dict.fromkeys(one.kind for one in structures):
        group = [one for one in structures if one.kind == kind and one.found.voxels]
        flags = [(CONFIDENCE,), (VOLUME,), (UNLIKE,), FLAGS]
        parts = [_part(group, _flagged(*names)) for names in flags]
        if kind in MASKS:  # nobody predicted them
            parts[0] = "-"
        dice = float(np.mean([one.dice for one in group]))
        yield [kind, str(len(group)), f"{dice:.2f}", *parts]


def _part(group: Sequence[Structure], flagged: Flagged) -> str:
    return f"{sum(map(flagged, group))} of {len(group)}"


def _row(title: str, structures: Sequence[Structure], flagged: Flagged) -> list[str]:
    bad = [one for one in structures if one.dice < BAD]
    good = [one for one in structures if one.dice >= GOOD]
    return [title, *(_part(group, flagged) for group in (structures, bad, good))]


def _auc(bad: Sequence[Structure], good: Sequence[Structure], count: int) -> float:
    worse, better = (np.array([one.distances[count][0] for one in some]) for some in (bad, good))
    return float(np.mean(worse[:, None] > better) + np.mean(worse[:, None] == better) / 2)


def _below(threshold: float) -> Flagged:
    return lambda one: one.confidence is not None and one.confidence < threshold


def _farther(threshold: float, count: int = REFERENCES, factor: float = 0.0) -> Flagged:
    def farther(one: Structure) -> bool:
        if count not in one.distances:
            return False
        distance, usual = one.distances[count]
        return distance > max([threshold, *(factor * apart for apart in usual)])

    return farther


def _outside(factor: float) -> Flagged:
    def outside(one: Structure) -> bool:
        low, high = min(one.references.volumes_ml), max(one.references.volumes_ml)
        return not low / factor <= one.found.volume_ml <= high * factor

    return outside


def _flagged(*names: str) -> Flagged:
    return lambda one: any(name in one.flags for name in names)


def _is_shown(folder: Path, names: Sequence[str], label: ClassLabel) -> bool:
    maps = (read_labels(_file(folder, "labels", name)).array for name in names)
    return any(bool(np.isin(array, label.values).any()) for array in maps)


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
