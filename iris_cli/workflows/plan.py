"""`iris plan`: integrity of raw sets, then a plan with reasons."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from iris_cli.dataset.dataset_json import FILE_NAME
from iris_cli.dataset.raw import RawDataset, read_raw_dataset
from iris_cli.errors import UsageError
from iris_cli.execution.progress import Progress
from iris_cli.execution.signals import StopRequest
from iris_cli.files.schema import nearest
from iris_cli.planning.adapt import Adapted, Budget, adapt
from iris_cli.planning.estimate import TrainingEstimate, estimate_training
from iris_cli.planning.overrides import (
    BY_HAND,
    apply_overrides,
    override_record,
    split_override,
)
from iris_cli.planning.plan import Plan, RawSet, fingerprint_of, make_plan, write_plan
from iris_cli.planning.presets import DEFAULT_RECIPE, Preset, Recipe, preset, recipe
from iris_cli.preparation.codes import Code, read_codes
from iris_cli.preparation.findings import IntegrityReport, raise_if_refused
from iris_cli.preparation.integrity import check_datasets
from iris_cli.workflows.preprocess import most_memory
from iris_cli.workflows.repair import write_repaired
from iris_cli.workflows.validation import read_unseen_set

RAW, PLANS, DEFAULT_PLAN = "raw", "plans", "default"
CHECKED = ".checked"
"""Folder in `plans/` with what integrity found of every case."""

# Keys that another option or the data decide: set by hand they would contradict the plan.
_NOT_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "name": "name the plan with --name",
        "preset": "pick the preset with --preset",
        "recipe": "pick the recipe with --recipe",
        "format": "leave it out: it says which version of iris reads the file",
        "held_out_sets": "name sets that are held out with --hold-out",
        "validation_sets": "name sets to validate on alone with --validate-on",
    }
)


@dataclass(frozen=True)
class PlanReport:
    """What planning found and decided, and where the plan was written.

    estimate, estimate_cuda: memory of the largest training step on a CPU and on a GPU.
    preprocess_bytes: most memory that one worker of `iris preprocess` will take.
    """

    plan: Plan
    path: Path
    integrity: tuple[IntegrityReport, ...]
    estimate: TrainingEstimate
    estimate_cuda: TrainingEstimate
    preprocess_bytes: int

    def set_rows(self) -> list[dict[str, str]]:
        """One row per set for a table."""
        return [_set_row(self.plan, name) for name in self.plan.sets]

    def to_json(self) -> dict[str, Any]:
        """The plan, findings and estimate, JSON values only."""
        return {
            "path": str(self.path),
            "plan": self.plan.model_dump(mode="json", by_alias=True),
            "integrity": [report.to_json() for report in self.integrity],
            "estimate": self.estimate.to_json(),
            "estimate_cuda": self.estimate_cuda.to_json(),
            "preprocess_bytes_per_worker": self.preprocess_bytes,
        }


def plan(
    sets: Sequence[str | Path] = (),
    *,
    workspace: Path,
    output: Path | None = None,
    name: str = DEFAULT_PLAN,
    preset_name: str | None = None,
    recipe_name: str = DEFAULT_RECIPE,
    held_out_sets: Sequence[str | Path] = (),
    validation_sets: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    seed: int = 0,
    accept: Sequence[str] = (),
    workers: int = 0,
    case_timeout_s: float | None = None,
    repair: Path | None = None,
    budget: Budget | None = None,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> PlanReport:
    """Check the sets, plan for them, and write `plans/<name>.json` (or `output`).

    sets: names below `<workspace>/raw` or folders; none means all of them that are neither held
    out nor for validation alone. validation_sets: sets that only validation opens; they are
    checked like the others, and share no image with them.
    preset_name: by default the one that the recipe is meant for.
    overrides: `key=value`; `network.*`, `patch`, `s0` and `training.*` act before the spacings
    are chosen, everything else on the finished plan.
    accept: codes of findings that are meant (`preparation.codes`); the plan records them.
    case_timeout_s: longest check of one case, with workers. repair: folder for label maps that a
    turn of axes puts on their image's grid; nothing in the sets is changed.
    budget: fit network, patch, spacing and schedule to the sets and to this (`planning.adapt`); the
    preset is chosen by it then. Overrides act on what was chosen.
    raises DataDefects with every error of every set, UsageError for unknown names and keys.
    """
    path = _target(workspace, name, output)
    accepted = read_codes(accept)
    held_out = [find_raw(workspace, item) for item in held_out_sets]
    unseen = [find_raw(workspace, item) for item in validation_sets]
    folders = find_raw_sets(workspace, sets, without=[*held_out, *unseen])
    _check_apart(folders, held_out, "planned for and held out")
    _check_apart(folders, unseen, "planned for and an unseen set of validation")
    _check_apart(unseen, held_out, "an unseen set of validation and held out")
    unseen_sets = [read_unseen_set(folder) for folder in unseen]
    early, late = _split_overrides(overrides)
    followed = recipe(recipe_name)
    if budget is None:  # a value that cannot be is said before any volume is read
        override_record(_fitted((), preset_name, followed, seed, None).preset, early)
    checks = partial(
        check_datasets,
        unseen=[raw.name for raw in unseen_sets],
        workers=workers,
        cache=workspace / PLANS / CHECKED,
        timeout_s=case_timeout_s,
        progress=progress,
        stop=stop,
    )
    sets_read = [read_raw_dataset(folder, strict=False) for folder in folders]
    reports = _checked([*sets_read, *unseen_sets], checks, accepted, repair)
    # Of what only validation opens nothing is planned.
    raw_sets = [RawSet(raw, report) for raw, report in zip(sets_read, reports, strict=False)]
    fitted = _fitted(raw_sets, preset_name, followed, seed, budget)
    chosen = override_record(fitted.preset, early)
    made = make_plan(
        raw_sets,
        chosen,
        name=name,
        preset_name=fitted.name,
        workspace=workspace,
        held_out_sets={set_name(folder): folder for folder in held_out},
        validation_sets={set_name(folder): folder for folder in unseen},
        seed=seed,
    )
    made = _follow(made, recipe_name, followed)
    made = made.model_copy(update={"reasons": {**made.reasons, **fitted.reasons}})
    made = apply_overrides(made, late)
    made = _note_accepted(_note(made, early), reports)
    write_plan(path, made)
    return PlanReport(
        made,
        path,
        reports,
        estimate=estimate_training(made, "cpu"),
        estimate_cuda=estimate_training(made, "cuda"),
        preprocess_bytes=most_memory(made, workspace),
    )


def _fitted(
    raw_sets: Sequence[RawSet],
    preset_name: str | None,
    followed: Recipe,
    seed: int,
    budget: Budget | None,
) -> Adapted:
    """The named preset (by default the recipe's), or what fits sets and budget."""
    name = preset_name or followed.preset
    chosen = followed.applied_to(_seeded(preset(name), seed))
    if budget is None:
        return Adapted(name, chosen, {})
    if preset_name is not None:
        raise UsageError(
            "a preset is named, and one is to be chosen for the data",
            found=f"--preset {preset_name} with --adapt, --memory or --hours",
            fix="leave out one of them",
        )
    found = {raw_set.raw.name: fingerprint_of(raw_set, seed=seed) for raw_set in raw_sets}
    return adapt(chosen.training, found, budget)


def _checked(
    raws: Sequence[RawDataset],
    check: Callable[[Sequence[RawDataset]], tuple[IntegrityReport, ...]],
    accepted: frozenset[Code],
    repair: Path | None,
) -> tuple[IntegrityReport, ...]:
    """What was found in the sets, in their order; raises DataDefects where that refuses one."""
    reports = tuple(report.accepting(accepted) for report in check(raws))
    if repair is not None:
        write_repaired(raws, reports, repair)
    raise_if_refused(reports)
    return reports


def find_raw_sets(
    workspace: Path, sets: Sequence[str | Path] = (), *, without: Sequence[Path] = ()
) -> tuple[Path, ...]:
    """Raw folders by name or path; all of the workspace where none is named."""
    if sets:
        folders = [find_raw(workspace, item) for item in sets]
    else:
        left_out = {folder.resolve() for folder in without}
        folders = [f for f in _raw_folders(workspace) if f.resolve() not in left_out]
    if not folders:
        raise UsageError(
            "there is no raw data set",
            file=workspace / RAW,
            expected=f"a folder with {FILE_NAME}",
            fix="make one with `iris convert`, or name a folder",
        )
    _check_distinct(folders)
    return tuple(folders)


def find_raw(workspace: Path, item: str | Path) -> Path:
    """The raw folder that a name or a path means; raises UsageError with the nearest name."""
    for folder in (workspace / RAW / item, Path(item)):
        if (folder / FILE_NAME).is_file():
            return folder
    names = [folder.name for folder in _raw_folders(workspace)]
    guess = nearest(str(item), names)
    raise UsageError(
        f"there is no raw data set {str(item)!r}",
        file=workspace / RAW,
        expected=f"a folder with {FILE_NAME}",
        fix=f"did you mean {guess!r}?" if guess else "check the name",
    )


def set_name(folder: Path) -> str:
    """The name `read_raw_dataset` gives the set of a folder: a link keeps its own name."""
    return Path(os.path.abspath(folder)).name


def _check_distinct(folders: Sequence[Path]) -> None:
    """Refuse two sets of one name, and one folder under two names."""
    by_name: dict[str, Path] = {}
    by_place: dict[Path, Path] = {}
    for folder in folders:
        other = by_name.setdefault(set_name(folder), folder)
        if other is not folder:
            raise UsageError(
                f"two sets have the same name {set_name(folder)!r}",
                found=f"{other}, {folder}",
                fix="name each set once; rename one of the folders where they differ",
            )
        other = by_place.setdefault(folder.resolve(), folder)
        if other is not folder:
            raise UsageError(
                "two sets are the same folder", found=f"{other}, {folder}", fix="name it once"
            )


def _check_apart(ours: Sequence[Path], theirs: Sequence[Path], uses: str) -> None:
    """Refuse a set with two uses."""
    _check_distinct(theirs)
    for folder in ours:
        for other in theirs:
            if folder.resolve() == other.resolve() or set_name(folder) == set_name(other):
                raise UsageError(
                    f"set {set_name(folder)!r} is both {uses}",
                    found=f"{folder}, {other}",
                    fix="name it among the sets, with --hold-out or with --validate-on, and only "
                    "once; rename one of the folders where they differ",
                )


def _target(workspace: Path, name: str, output: Path | None) -> Path:
    """Where the plan will be written; refused before any work where that cannot be."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(
            "this is no plain name for a plan",
            found=repr(name),
            expected="letters, digits, and . _ - after the first of them",
            fix="write it to another place with --output FILE",
        )
    path = output or workspace / PLANS / f"{name}.json"
    if path.is_dir():
        raise UsageError(
            "a plan is a file, and this is a folder",
            file=path,
            fix=f"write it to {path / f'{name}.json'}",
        )
    return path


def _seeded(chosen: Preset, seed: int) -> Preset:
    training = chosen.training.model_copy(update={"seed": seed})
    return chosen.model_copy(update={"training": training})


def _raw_folders(workspace: Path) -> list[Path]:
    return sorted(file.parent for file in (workspace / RAW).glob(f"*/{FILE_NAME}"))


def _split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    for text in overrides:
        if _group(text) in _NOT_SETTINGS:
            raise UsageError(
                f"{_group(text)!r} is not set with --set",
                found=text,
                fix=_NOT_SETTINGS[_group(text)],
            )
    settings = set(Preset.model_fields) - {"reason"}
    early = [text for text in overrides if _group(text) in settings]
    return early, [text for text in overrides if text not in early]


def _group(text: str) -> str:
    return split_override(text)[0].split(".")[0]


def _follow(made: Plan, name: str, followed: Recipe) -> Plan:
    """The plan with the name of its recipe, and its reasons."""
    reasons = {**made.reasons, "recipe": followed.reason, **followed.reasons()}
    if {"steps", "batch"} <= set(followed.settings):
        reasons["training"] = f"schedule of recipe {name}"
    return made.model_copy(update={"recipe": name, "reasons": reasons})


def _note(made: Plan, early: Sequence[str]) -> Plan:
    """Reasons for what was set before planning."""
    keys = [split_override(text)[0] for text in early]
    reasons = {**made.reasons, **dict.fromkeys(keys, BY_HAND)}
    return made.model_copy(update={"reasons": reasons})


def _note_accepted(made: Plan, reports: Sequence[IntegrityReport]) -> Plan:
    """What the user took on, code by code: the plan is where it is looked for later."""
    reasons = dict(made.reasons)
    for report in reports:
        use = "sets" if report.set in made.sets else "validation_sets"
        for code in sorted({finding.code for finding in report.accepted}):
            where = [f.case or "the set" for f in report.accepted if f.code is code]
            reasons[f"{use}.{report.set}.accepted.{code}"] = (
                f"accepted by hand (--accept): {len(where)} findings ({', '.join(where[:10])}"
                + (", ...)" if len(where) > 10 else ")")
            )
    return made.model_copy(update={"reasons": reasons})


def _set_row(made: Plan, name: str) -> dict[str, str]:
    planned = made.sets[name]
    fingerprint = planned.fingerprint
    return {
        "set": name,
        "modality": ", ".join(channel.modality for channel in planned.channels),
        "train": str(len(planned.train)),
        "validate": str(len(planned.validate_)),
        "test": str(len(planned.test)),
        "unlabelled": str(len(planned.unlabelled)),
        "classes": str(len(planned.classes)),
        "native spacing zyx (mm)": " x ".join(f"{s:.3g}" for s in fingerprint.spacing_mm_median),
        "native shape zyx": " x ".join(f"{n:.0f}" for n in fingerprint.shape_median),
        "working spacing (mm)": f"{planned.spacing_mm:.4g}",
        "why": made.reasons.get(f"sets.{name}.spacing_mm", ""),
    }
