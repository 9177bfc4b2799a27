"""`iris train`: a run folder with a frozen plan, trained until it is done, validated in context."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iris_cli import __version__
from iris_cli.errors import DataRefused, UsageError
from iris_cli.execution.signals import StopRequest
from iris_cli.files.publish import publish_json
from iris_cli.model.model import ModelCard, save_model
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.planning.overrides import apply_overrides
from iris_cli.planning.plan import Plan, read_plan, write_plan
from iris_cli.planning.training_sets import sets_for_training
from iris_cli.report.curves import draw_progress
from iris_cli.training.checkpoint import BEST, LATEST
from iris_cli.training.run import TrainingOutcome, plan_fingerprint, read_weights
from iris_cli.training.run import train as train_network
from iris_cli.workflows.validation import InContextValidation

RUNS, RUN_PLAN, MANIFEST, MODEL, PROGRESS = (
    "runs", "plan.json", "manifest.json", "model", "progress.png",
)  # fmt: skip


@dataclass(frozen=True)
class TrainReport:
    """A finished run: what training says, where the run and its model are."""

    outcome: TrainingOutcome
    folder: Path
    model: Path

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "run": str(self.folder),
            "model": str(self.model),
            "steps": self.outcome.steps,
            "skipped": self.outcome.skipped,
            "best_score": self.outcome.best_score,
            "best_step": self.outcome.best_step,
        }


def train(
    run: str | Path,
    *,
    workspace: Path,
    plan: Path | None = None,
    overrides: Sequence[str] = (),
    init_from: Path | None = None,
    device: str = "cpu",
    workers: int | None = None,
    validation: InContextValidation | None = None,
    stop: StopRequest | None = None,
) -> TrainReport:
    """Train a model by a plan, or go on with a run; the finished model lies in `<run>/model`.

    run: a name below `<workspace>/runs`, or a folder. The plan (default `plans/default.json`) is
    copied into it when the run begins; from then on that copy counts, and only what cannot change
    the result may be overridden.
    init_from: checkpoint or model whose weights a new run starts from.
    validation: default `InContextValidation()` with its own settings.
    raises Stopped (everything is saved), Diverged, DataRefused, UsageError.
    """
    folder = run_folder(run, workspace)
    made = _plan_of_run(folder, plan or workspace / "plans" / "default.json", overrides)
    sets = sets_for_training(made, workspace)
    _write_manifest(folder, made, workspace, device)
    validate = (validation or InContextValidation()).bind(made, workspace, device)
    outcome = train_network(
        folder,
        made.network,
        made.training,
        sets,
        made.patch,
        validate=validate,
        observe=lambda metrics: _picture(metrics, folder / PROGRESS),
        stop=stop,
        init_from=init_from,
        device=device,
        workers=workers,
    )
    return TrainReport(outcome, folder, export_model(folder))


def run_folder(run: str | Path, workspace: Path) -> Path:
    """The folder a run name or path means."""
    path = Path(run)
    return path if len(path.parts) > 1 or path.is_dir() else workspace / RUNS / path


def export_model(folder: Path, *, name: str | None = None, licence: str | None = None) -> Path:
    """Write the model of a run: averaged weights of its best checkpoint, else of its latest one.

    name: default, the run's. returns: `<run>/model`.
    raises UsageError where the run has no checkpoint yet.
    """
    plan = read_plan(folder / RUN_PLAN)
    weights = _best_weights(folder)
    network = IrisNetwork(plan.network)
    network.load_state_dict(weights)
    card = ModelCard.of(
        network,
        name=name or folder.resolve().name,
        version="1",
        s0=plan.s0,
        patch=plan.patch,
        licence=licence or _licence(plan),
        training_sets=tuple(sorted(plan.sets)),
    )
    return save_model(folder / MODEL, network, card)


def _best_weights(folder: Path) -> dict[str, torch.Tensor]:
    for path in (folder / BEST, folder / LATEST):
        if path.exists():
            return read_weights(path)
    raise UsageError(
        "this run has no checkpoint yet", file=folder, fix="train it first: iris train"
    )


def _licence(plan: Plan) -> str:
    licences = sorted({item.licence for item in plan.sets.values() if item.licence})
    return "trained on data under: " + ", ".join(licences) if licences else "unknown"


def _plan_of_run(folder: Path, source: Path, overrides: Sequence[str]) -> Plan:
    own = folder / RUN_PLAN
    if not own.exists():
        made = apply_overrides(read_plan(source), overrides)
        write_plan(own, made)
        return made
    begun = read_plan(own)
    changed = apply_overrides(begun, overrides)
    if _fingerprint(begun) != _fingerprint(changed):
        raise DataRefused(
            "this run has begun: its plan cannot be changed any more",
            file=own,
            found=", ".join(overrides),
            expected="only what cannot change the result, such as training.log_every",
            fix="start another run, with --init-from to keep the weights",
        )
    return changed


def _fingerprint(plan: Plan) -> str:
    sets = sets_for_training(plan, Path())
    return plan_fingerprint(plan.network, plan.training, sets, plan.patch)


def _write_manifest(folder: Path, plan: Plan, workspace: Path, device: str) -> None:
    """What the run was begun with; a run that goes on keeps the manifest of its beginning."""
    path = folder / MANIFEST
    if path.exists():
        return
    packages = ("torch", "numpy", "batchgenerators", "pytorch-optimizer", "blosc2")
    publish_json(
        path,
        {
            "iris": __version__,
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in packages},
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "seed": plan.training.seed,
            "device": device,
            "hardware": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "plan_fingerprint": _fingerprint(plan),
            "sets": {name: plan.store_folder(workspace, name).name for name in plan.sets},
        },
    )


def _picture(metrics: Path, picture: Path) -> None:
    if metrics.exists():
        draw_progress(metrics, picture)
