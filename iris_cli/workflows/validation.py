"""In-context validation: references from training cases, queries from validation cases.

Everything is done as a user would do it (METHOD.md 7): a task is encoded from raw references, the
raw query is predicted by full sliding window, Dice is taken on its native grid. Seeds are fixed, so
that curves of one run compare.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iris_cli.dataset.raw import Case, RawDataset, read_raw_dataset
from iris_cli.errors import Interrupted, IrisError, Stopped
from iris_cli.evaluation.metrics import compute_metrics
from iris_cli.inference.case import predict_volume
from iris_cli.model.model import Model, ModelCard
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.planning.plan import Plan, SetPlan
from iris_cli.task.encoding import Reference, encode_references
from iris_cli.volume.reading import read_image, read_labels

Validate = Callable[[IrisNetwork, int], Mapping[str, float | str]]


@dataclass(frozen=True)
class InContextValidation:
    """How much is validated: queries per set, numbers of references, seed of the choice."""

    cases_per_set: int = 2
    references: tuple[int, ...] = (1, 3)
    seed: int = 0

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> InContextValidation:
        return cls(
            int(content["cases_per_set"]), tuple(content["references"]), int(content["seed"])
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "references": list(self.references)}

    def bind(self, plan: Plan, workspace: Path, device: str) -> Validate | None:
        """The function training calls; None where there is nothing to validate on."""
        jobs = [
            job
            for name, item in plan.sets.items()
            for job in _jobs(self, name, item, plan.raw_folder(workspace, name))
        ]
        if not jobs:
            return None

        def validate(network: IrisNetwork, step: int) -> Mapping[str, float | str]:
            card = ModelCard.of(
                network, name="validation", version=str(step), s0=plan.s0, patch=plan.patch
            )
            return _figures(jobs, Model(network, card), device)

        return validate


@dataclass(frozen=True)
class _Job:
    """One task of one set: references, queries, classes."""

    set: str
    count: int
    raw: RawDataset
    references: tuple[Case, ...]
    queries: tuple[Case, ...]
    held_out: frozenset[str]

    def dice(self, model: Model, device: str) -> dict[str, list[float]]:
        """Dice of every class over the queries where its truth has voxels."""
        names = {n for case in self.references for n in _shown(case, self.raw)}
        classes = [label for label in self.raw.classes if label.name in names]
        task = encode_references(
            model,
            [Reference(c.images[0], _label(c), c.not_annotated) for c in self.references],
            classes,
            ignore_value=self.raw.ignore_value,
            other_values=[v for label in self.raw.classes for v in label.values],
            modality=self.references[0].modality[0],
            device=device,
        )
        found: dict[str, list[float]] = {label.name: [] for label in classes}
        for query in self.queries:
            truth = read_labels(_label(query)).array
            prediction = predict_volume(model, task, read_image(query.images[0]), device=device)
            for label in classes:
                mask = np.isin(truth, label.values)
                if label.name not in query.not_annotated and mask.any():
                    metrics = compute_metrics(prediction.labels == label.value, mask)
                    found[label.name].append(metrics.dice)
        return found


def _jobs(settings: InContextValidation, name: str, item: SetPlan, folder: Path) -> list[_Job]:
    if not item.validate_ or item.pairing == "image" or settings.cases_per_set == 0:
        return []
    raw = read_raw_dataset(folder, strict=False)
    generator = random.Random(f"{settings.seed}/{name}")
    complete = [raw.case(case) for case in item.train if not raw.case(case).not_annotated]
    pool = sorted(complete or [raw.case(case) for case in item.train], key=lambda case: case.name)
    generator.shuffle(pool)
    queries = [raw.case(case) for case in sorted(item.validate_)]
    generator.shuffle(queries)
    pool, queries = _of_one_modality(pool, queries)
    chosen = tuple(queries[: settings.cases_per_set])
    return [
        _Job(name, count, raw, tuple(pool[:count]), chosen, frozenset(item.held_out_classes))
        for count in settings.references
        if chosen and count <= len(pool)
    ]


def _of_one_modality(pool: list[Case], queries: list[Case]) -> tuple[list[Case], list[Case]]:
    """The cases of the modality with most queries: a task is encoded in one modality."""
    offered = {case.modality[0] for case in pool}
    counts = Counter(case.modality[0] for case in queries if case.modality[0] in offered)
    if not counts:
        return [], []
    modality = min(counts, key=lambda kind: (-counts[kind], str(kind)))
    return (
        [case for case in pool if case.modality[0] == modality],
        [case for case in queries if case.modality[0] == modality],
    )


def _shown(case: Case, raw: RawDataset) -> set[str]:
    """Classes this reference has voxels of."""
    values = set(np.unique(read_labels(_label(case)).array).tolist())
    return {
        label.name
        for label in raw.classes
        if label.name not in case.not_annotated and values & set(label.values)
    }


def _label(case: Case) -> Path:
    if case.label is None:
        raise ValueError(f"{case.name} has no label map")
    return case.label


def _figures(jobs: list[_Job], model: Model, device: str) -> dict[str, float | str]:
    """Mean Dice per set and number of references; `score` is of held-out classes if there are.

    A task that cannot be done leaves a note in words and no figure. There is then no score: it
    would not compare with scores over all tasks.
    """
    figures: dict[str, float | str] = {}
    seen: list[float] = []
    unseen: list[float] = []
    failed = False
    for job in jobs:
        try:
            dice = job.dice(model, device)
        except (Stopped, Interrupted):
            raise
        except IrisError as error:
            failed = True
            figures[f"failed/{job.set}/k{job.count}"] = error.problem
            continue
        means = {name: float(np.mean(values)) for name, values in dice.items() if values}
        groups = (
            ("seen", seen, [v for n, v in means.items() if n not in job.held_out]),
            ("held_out", unseen, [v for n, v in means.items() if n in job.held_out]),
        )
        for group, collected, values in groups:
            if values:
                figures[f"{group}/{job.set}/k{job.count}"] = float(np.mean(values))
                collected.append(float(np.mean(values)))
    if failed:
        return figures
    return {"score": float(np.mean(unseen or seen or [0.0])), **figures}
