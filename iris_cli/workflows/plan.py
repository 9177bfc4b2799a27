"""`iris plan`: integrity of raw sets, then a plan with reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iris_cli.dataset.dataset_json import FILE_NAME
from iris_cli.dataset.raw import read_raw_dataset
from iris_cli.errors import UsageError
from iris_cli.execution.progress import Progress
from iris_cli.execution.signals import StopRequest
from iris_cli.files.schema import nearest
from iris_cli.planning.estimate import TrainingEstimate, estimate_preprocessing, estimate_training
from iris_cli.planning.overrides import apply_overrides, override_record, split_override
from iris_cli.planning.plan import Plan, RawSet, make_plan, write_plan
from iris_cli.planning.presets import DEFAULT_PRESET, Preset, preset
from iris_cli.preparation.findings import IntegrityReport, raise_if_refused
from iris_cli.preparation.integrity import check_datasets

RAW, PLANS, DEFAULT_PLAN = "raw", "plans", "default"


@dataclass(frozen=True)
class PlanReport:
    """What planning found and decided, and where the plan was written.

    preprocess_bytes: most memory that one worker of `iris preprocess` will take.
    """

    plan: Plan
    path: Path
    integrity: tuple[IntegrityReport, ...]
    estimate: TrainingEstimate
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
            "estimate": self.estimate.model_dump(mode="json"),
            "preprocess_bytes_per_worker": self.preprocess_bytes,
        }


def plan(
    sets: Sequence[str | Path] = (),
    *,
    workspace: Path,
    output: Path | None = None,
    name: str = DEFAULT_PLAN,
    preset_name: str = DEFAULT_PRESET,
    held_out_sets: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    seed: int = 0,
    workers: int = 0,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> PlanReport:
    """Check the sets, plan for them, and write `plans/<name>.json` (or `output`).

    sets: names below `<workspace>/raw` or folders; none means all of them that are not held out.
    overrides: `key=value`; `network.*`, `patch`, `s0` and `training.*` act before the spacings
    are chosen, everything else on the finished plan.
    raises DataRefused with every error of every set, UsageError for unknown names and keys.
    """
    held_out = [find_raw(workspace, item) for item in held_out_sets]
    folders = find_raw_sets(workspace, sets, without=held_out)
    early, late = _split_overrides(overrides)
    chosen: Preset = override_record(preset(preset_name), early)
    raws = [read_raw_dataset(folder, strict=False) for folder in folders]
    reports = check_datasets(raws, workers=workers, progress=progress, stop=stop)
    raise_if_refused(reports)
    raw_sets = [RawSet(raw, report) for raw, report in zip(raws, reports, strict=True)]
    made = make_plan(
        raw_sets,
        chosen,
        name=name,
        preset_name=preset_name,
        workspace=workspace,
        held_out_sets={folder.name: folder for folder in held_out},
        seed=seed,
    )
    made = apply_overrides(made, late)
    made = _note(made, early)
    path = output or workspace / PLANS / f"{name}.json"
    write_plan(path, made)
    return PlanReport(made, path, reports, estimate_training(made), estimate_preprocessing(made))


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
    names = [folder.resolve().name for folder in folders]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            "two sets have the same name", found=", ".join(twice), fix="rename one of the folders"
        )
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


def _raw_folders(workspace: Path) -> list[Path]:
    return sorted(file.parent for file in (workspace / RAW).glob(f"*/{FILE_NAME}"))


def _split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    early = [text for text in overrides if _group(text) in Preset.model_fields]
    return early, [text for text in overrides if text not in early]


def _group(text: str) -> str:
    return split_override(text)[0].split(".")[0]


def _note(made: Plan, early: Sequence[str]) -> Plan:
    """Reasons for what was set before planning."""
    keys = [split_override(text)[0] for text in early]
    reasons = {**made.reasons, **dict.fromkeys(keys, "set by hand (--set)")}
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
