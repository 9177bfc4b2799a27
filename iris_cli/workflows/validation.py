"""In-context validation: references and queries of different subjects, as a user would do it.

A task is encoded from raw references, the raw query is predicted by full sliding window, Dice is
taken on its native grid (METHOD.md 7). Of the sets that are trained on, references are training
cases and queries validation cases. Unseen sets, of which the plan trains on nothing, have their own
references. Cases of role `test` are never opened. Seeds are fixed, so that curves of one run
compare.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from iris_cli.dataset.classes import sharing_values
from iris_cli.dataset.raw import Case, RawDataset, read_raw_dataset
from iris_cli.errors import DataRefused, Interrupted, IrisError, Stopped
from iris_cli.evaluation.metrics import compute_metrics
from iris_cli.evaluation.statistics import Table, table_means
from iris_cli.inference.case import predict_volume
from iris_cli.inference.streaming import How
from iris_cli.model.model import Model, ModelCard
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.planning.plan import Plan, SetPlan
from iris_cli.task.encoding import Reference, encode_references
from iris_cli.training.loop import Stop, Validate
from iris_cli.volume.reading import read_image, read_labels

Figures = dict[str, Any]
OnProgress = Callable[[int, int], None]

Group = Literal["seen", "held_out", "unseen"]
"""Classes that are trained on, classes of trained sets that are not, and sets that are not."""
GROUPS: tuple[Group, ...] = ("seen", "held_out", "unseen")
QUERY_FOLDER = "imagesTs"


@dataclass(frozen=True)
class InContextValidation:
    """How much is validated: queries per set, numbers of references, seed of the choice.

    A set that names its queries (validation cases in imagesTs) is validated on all of them.
    """

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

    def bind(
        self, plan: Plan, workspace: Path, device: str, stop: Stop | None = None
    ) -> Validate | None:
        """The function training calls; None where there is nothing to validate on.

        It raises Stopped soon after `stop` is requested: between references and between windows.
        raises DataRefused where a set has nothing that validation may open, or the plan names a
        test case.
        """
        jobs = _all_jobs(self, plan, workspace)
        if not jobs:
            return None

        def validate(network: IrisNetwork, step: int) -> Mapping[str, Any]:
            card = ModelCard.of(
                network, name="validation", version=str(step), s0=plan.s0, patch=plan.patch
            )
            return _figures(jobs, Model(network, card), device, _stopper(stop, step))

        return validate


def _stopper(stop: Stop | None, step: int) -> OnProgress:
    """To be called with (done, total) of anything; raises Stopped where a stop is requested."""

    def look(_done: int, _total: int) -> None:
        if stop is not None and stop.requested:
            raise Stopped(
                f"stopped in the validation after step {step}: {stop.reason}; everything is saved",
                fix="run the same line again to go on",
            )

    return look


def read_unseen_set(folder: Path) -> RawDataset:
    """A set that nothing is trained on, for validation.

    raises DataRefused where fewer than two of its subjects may be opened (labelled, and not of
    role `test`).
    """
    raw = read_raw_dataset(folder, strict=False)
    subjects = {case.subject for case in _may_be_opened(raw)}
    if len(subjects) < 2:
        roles = Counter(case.role for case in raw.cases)
        raise DataRefused(
            f"set {raw.name} cannot be validated on",
            file=folder,
            found=", ".join(f"{count} {role} cases" for role, count in sorted(roles.items())),
            expected="two labelled subjects that are not of role test: a reference and a query",
            fix="name another set; test cases are opened once, by the evaluation",
        )
    return raw


@dataclass(frozen=True)
class _Job:
    """One task of one set: references, queries, and the group each class counts to."""

    set: str
    count: int
    raw: RawDataset
    references: tuple[Case, ...]
    queries: tuple[Case, ...]
    held_out: frozenset[str] = frozenset()
    """Every class that training does not see, those that share a value with one among them."""
    unseen: bool = False

    def group(self, name: str) -> Group:
        """The group of a class."""
        if self.unseen:
            return "unseen"
        return "held_out" if name in self.held_out else "seen"

    def dice(
        self, model: Model, device: str, on_progress: OnProgress
    ) -> tuple[tuple[str, ...], Table]:
        """Names of K classes, and Dice (queries, K): nan where a truth has no voxel of a class.

        Voxels that the truth ignores count nowhere.
        """
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
            on_reference=on_progress,
        )
        table = np.full((len(self.queries), len(classes)), np.nan)
        for row, query in enumerate(self.queries):
            truth = read_labels(_label(query)).array
            image = read_image(query.images[0])
            how = How(device=device, on_window=on_progress)
            found = predict_volume(model, task, image, how=how).labels
            if self.raw.ignore_value is not None:
                found = np.where(truth == self.raw.ignore_value, 0, found)
            for column, label in enumerate(classes):
                mask = np.isin(truth, label.values)
                if label.name not in query.not_annotated and mask.any():
                    table[row, column] = compute_metrics(found == label.value, mask).dice
        return tuple(label.name for label in classes), table


def _all_jobs(settings: InContextValidation, plan: Plan, workspace: Path) -> list[_Job]:
    if settings.cases_per_set == 0:
        return []
    seen = [
        job
        for name, item in plan.sets.items()
        for job in _jobs(settings, name, item, plan.raw_folder(workspace, name))
    ]
    unseen = [
        job
        for name, folder in plan.validation_sets.items()
        for job in _unseen_jobs(settings, name, workspace / folder)
    ]
    return seen + unseen


def _jobs(settings: InContextValidation, name: str, item: SetPlan, folder: Path) -> list[_Job]:
    if not item.validate_ or item.pairing == "image" or settings.cases_per_set == 0:
        return []
    raw = read_raw_dataset(folder, strict=False)
    _refuse_test_cases(raw, name, (*item.train, *item.validate_))
    generator = random.Random(f"{settings.seed}/{name}")
    complete = [raw.case(case) for case in item.train if not raw.case(case).not_annotated]
    pool = sorted(complete or [raw.case(case) for case in item.train], key=lambda case: case.name)
    generator.shuffle(pool)
    queries = [raw.case(case) for case in sorted(item.validate_)]
    generator.shuffle(queries)
    pool, queries = _of_one_modality(pool, queries)
    chosen = tuple(queries[: settings.cases_per_set])
    held_out = sharing_values(item.held_out_classes, {c.name: c.values for c in raw.classes})
    return [
        _Job(name, count, raw, tuple(pool[:count]), chosen, held_out)
        for count in settings.references
        if chosen and count <= len(pool)
    ]


def _refuse_test_cases(raw: RawDataset, name: str, cases: Sequence[str]) -> None:
    """A plan may be edited, and roles may change after it was made."""
    found = [case for case in cases if raw.case(case).role == "test"]
    if found:
        raise DataRefused(
            f"test cases of {name} cannot be validated on",
            file=raw.folder / "dataset.json",
            found=", ".join(found),
            fix="take them out of the plan's train and validate lists; test cases are opened once, "
            "by the evaluation",
        )


def _unseen_jobs(settings: InContextValidation, name: str, folder: Path) -> list[_Job]:
    """References are up to as many as asked for, where the set has that many to give."""
    raw = read_unseen_set(folder)
    pool, queries = _of_one_modality(*_unseen_cases(settings, raw))
    counts = sorted({min(count, len(pool)) for count in settings.references})
    return [
        _Job(name, count, raw, tuple(pool[:count]), tuple(queries), unseen=True)
        for count in counts
        if count > 0 and queries
    ]


def _unseen_cases(settings: InContextValidation, raw: RawDataset) -> tuple[list[Case], list[Case]]:
    """References and queries: the set's own lists where it has them, else drawn by subject."""
    usable = _may_be_opened(raw)
    queries = [case for case in usable if case.images[0].parent.name == QUERY_FOLDER]
    subjects = {case.subject for case in queries}
    context = [case for case in usable if case.subject not in subjects]
    if queries and context:
        return context, queries
    names = sorted({case.subject for case in usable})
    random.Random(f"{settings.seed}/{raw.name}").shuffle(names)
    given = min(max(settings.references), len(names) - 1)
    order = {subject: index for index, subject in enumerate(names)}
    by_subject = sorted(usable, key=lambda case: (order[case.subject], case.name))
    first = {case.subject: case for case in reversed(by_subject)}
    rest = [case for case in by_subject if order[case.subject] >= given]
    return [first[name] for name in names[:given]], rest[: settings.cases_per_set]


def _may_be_opened(raw: RawDataset) -> list[Case]:
    return [case for case in raw.cases if case.role in ("train", "validate") and case.label]


def _of_one_modality(
    pool: Sequence[Case], queries: Sequence[Case]
) -> tuple[list[Case], list[Case]]:
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


def _figures(jobs: Sequence[_Job], model: Model, device: str, on_progress: OnProgress) -> Figures:
    """Dice by group, set and number of references: `{"seen": {"liver": {"k1": {...}}}}`.

    A task that cannot be done leaves a note in words under `failed` and no figure. There is then
    no `score`: it would not compare with scores over all tasks.
    """
    figures: Figures = {}
    for job in jobs:
        key = f"k{job.count}"
        try:
            names, table = job.dice(model, device, on_progress)
        except (Stopped, Interrupted):
            raise
        except IrisError as error:
            figures.setdefault("failed", {}).setdefault(job.set, {})[key] = error.problem
            continue
        for group, content in _by_group(job, names, table).items():
            figures.setdefault(group, {}).setdefault(job.set, {})[key] = content
    score = None if "failed" in figures else _score(figures)
    return figures if score is None else {"score": score, **figures}


def _by_group(job: _Job, names: Sequence[str], table: Table) -> dict[Group, Figures]:
    """Per group of classes: mean over classes with its interval over subjects, and each class."""
    subjects = [case.subject for case in job.queries]
    found: dict[Group, Figures] = {}
    for group in GROUPS:
        columns = [i for i, name in enumerate(names) if job.group(name) == group]
        means = table_means(table[:, columns], subjects, seed=0)
        if means.headline.mean is None:
            continue
        classes = {names[i]: c.to_json() for i, c in zip(columns, means.columns, strict=True)}
        found[group] = {**means.headline.to_json(), "classes": classes}
    return found


def _score(figures: Figures) -> float | None:
    """Mean over sets and numbers of references: of what is new to the network where there is any,
    else of what it was trained on; None where nothing was scored."""

    def means(group: str) -> list[float]:
        return [
            f["mean"] for by_count in figures.get(group, {}).values() for f in by_count.values()
        ]

    values = means("held_out") + means("unseen") or means("seen")
    return float(np.mean(values)) if values else None
