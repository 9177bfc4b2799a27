"""`iris train`: a run folder with a frozen plan, trained until it is done, validated in context."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from iris_cli.dataset.dataset_json import FILE_NAME
from iris_cli.errors import DataRefused, IrisError, UsageError
from iris_cli.execution.signals import StopRequest
from iris_cli.files.publish import publish_json
from iris_cli.files.schema import read_json
from iris_cli.model.bank import save_bank
from iris_cli.model.model import ModelCard, load_model, save_model
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.planning.bank import bank_of_run
from iris_cli.planning.declared import changes_since_planned, refuse_changed
from iris_cli.planning.overrides import apply_overrides
from iris_cli.planning.plan import Plan, read_plan, write_plan
from iris_cli.planning.training_sets import read_trained_raw, sets_for_training
from iris_cli.training.bank import MemoryBank
from iris_cli.training.checkpoint import BEST, State, read_checkpoint, read_newest
from iris_cli.training.distributed import Ranks, joined
from iris_cli.training.launch import launch
from iris_cli.training.observers import Observer
from iris_cli.training.run import TrainingOutcome
from iris_cli.training.run import train as train_network
from iris_cli.training.settings import WITHOUT_INFLUENCE
from iris_cli.workflows.manifest import (
    Sessions,
    frozen_validation,
    new_manifest,
    session_of,
)
from iris_cli.workflows.run_folder import MANIFEST, MODEL, RUN_PLAN, run_folder
from iris_cli.workflows.validation import InContextValidation
from iris_cli.workflows.watching import Expendable, pictures

_LOG = logging.getLogger(__name__)

View = Callable[[Path], Sequence[Observer]]
"""Gets the folder of a run; returns who looks on beside the records and pictures of the run."""


@dataclass(frozen=True)
class TrainReport:
    """A finished run: what training says, where the run and its model are, of which step."""

    outcome: TrainingOutcome
    folder: Path
    model: Path
    exported_step: int

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "run": str(self.folder),
            "model": str(self.model),
            "steps": self.outcome.steps,
            "skipped": self.outcome.skipped,
            "best_score": self.outcome.best_score,
            "best_step": self.outcome.best_step,
            "exported_step": self.exported_step,
        }


@dataclass(frozen=True)
class TrainOptions:
    """How to train; picklable, the same in every rank.

    plan: default `plans/default.json`; it is copied into the run when the run begins, and from
    then on that copy counts. overrides: `key=value`; of a begun run only what cannot change the
    result. init_from: checkpoint or model whose weights a new run starts from. workers: processes
    that make episodes, default the plan's. validation: default what the run was begun with,
    `InContextValidation()` for a new one; other settings are validated with, but their scores
    choose no best checkpoint. view: looks on in rank 0.
    """

    workspace: Path
    plan: Path | None = None
    overrides: tuple[str, ...] = ()
    init_from: Path | None = None
    workers: int | None = None
    validation: InContextValidation | None = None
    view: View | None = None


def train(
    run: str | Path,
    options: TrainOptions,
    *,
    device: str = "cpu",
    stop: StopRequest | None = None,
) -> TrainReport:
    """Train a model by a plan, or go on with a run; the finished model lies in `<run>/model`.

    run: a name below `<workspace>/runs`, or a folder.
    In a process that torchrun or `train_on` started this is one rank of several, which all make
    the same call and return the same.
    raises Stopped (everything is saved), Diverged, DataRefused, UsageError, RankLost.
    """
    workspace = options.workspace
    folder = run_folder(run, workspace)
    source = options.plan or workspace / "plans" / "default.json"
    plan = _plan_of_run(folder, source, options.overrides)
    sets = sets_for_training(plan, workspace)
    with joined(torch.device(device), plan.training.timeout_s) as ranks:
        manifest = ranks.from_first(
            lambda: _open_run(folder, plan, options, device, ranks), "opening the run folder"
        )
        frozen = frozen_validation(manifest)
        chosen = options.validation or frozen or InContextValidation()
        first = ranks.rank == 0
        outcome = train_network(
            folder,
            plan.network,
            plan.training,
            sets,
            plan.patch,
            validate=chosen.bind(plan, workspace, device, stop) if first else None,
            scores_compare=frozen in (None, chosen),
            observers=_observers(folder, options.view, session_of(device, ranks)) if first else (),
            stop=stop,
            init_from=options.init_from,
            device=device,
            workers=options.workers,
            ranks=ranks,
        )
        return ranks.from_first(lambda: _report(folder, outcome), "writing the model")


def train_on(
    devices: Sequence[str],
    run: str | Path,
    options: TrainOptions,
    *,
    stop: StopRequest,
    threads: int | None = None,
) -> TrainReport:
    """`train` with one process for each device, started and watched from here.

    threads: of each process, by default the cores shared out.
    raises what `train` raises, and EnvironmentProblem where a process died.
    """
    return launch(partial(_train_rank, run, options), devices, stop, threads=threads)


def _train_rank(
    run: str | Path, options: TrainOptions, device: str, stop: StopRequest
) -> TrainReport:
    return train(run, options, device=device, stop=stop)


def _open_run(
    folder: Path,
    plan: Plan,
    options: TrainOptions,
    device: str,
    ranks: Ranks,
) -> dict[str, Any]:
    """Write what a new run begins with; a run that goes on keeps it. returns: its manifest."""
    own, manifest = folder / RUN_PLAN, folder / MANIFEST
    # Made before anything is written: a run that cannot begin leaves no plan that is frozen.
    made = None
    if not manifest.exists():
        made = _begun_with(plan, options, device, ranks)
    else:
        _warn_of_changes(plan, options.workspace)
    if not own.exists():
        write_plan(own, plan)
    if made is not None:
        publish_json(manifest, made)
    content: dict[str, Any] = read_json(manifest)
    return content


def _begun_with(plan: Plan, options: TrainOptions, device: str, ranks: Ranks) -> dict[str, Any]:
    """The manifest of a new run; raises DataRefused where a raw set does not say what is stored."""
    raw = read_trained_raw(plan, options.workspace)
    for name in raw:
        refuse_changed(plan, name, raw[name])
    sets = sets_for_training(plan, options.workspace, raw)
    return new_manifest(plan, sets, device, ranks, options.validation or InContextValidation())


def _warn_of_changes(plan: Plan, workspace: Path) -> None:
    """A begun run reads the store alone, and its fingerprints tell whether that is another one."""
    try:
        for name, raw in read_trained_raw(plan, workspace).items():
            if changes := changes_since_planned(plan, name, raw):
                _LOG.warning(
                    "%s was changed after it was planned; this run goes on as it was begun: %s",
                    raw.folder / FILE_NAME,
                    "; ".join(changes),
                )
    except IrisError as error:
        _LOG.warning("a raw set cannot be read; this run goes on as it was begun: %s", error)


def _observers(folder: Path, view: View | None, session: dict[str, Any]) -> tuple[Observer, ...]:
    looking_on = (*pictures(folder), *(view(folder) if view is not None else ()))
    return (Sessions(folder, session), *map(Expendable, looking_on))


def _report(folder: Path, outcome: TrainingOutcome) -> TrainReport:
    state = _state_to_export(folder)
    return TrainReport(outcome, folder, _export(folder, state), int(state["step"]))


def export_model(folder: Path, *, name: str | None = None, licence: str | None = None) -> Path:
    """Write the model of a run: averaged weights of its best checkpoint, or of its latest one.

    The best is taken where the run chose it to its end by the validation it was begun with: other
    scores do not compare. The card notes the step. name: default, the run's. returns:
    `<run>/model`. raises UsageError where the run has no checkpoint yet.
    """
    return _export(folder, _state_to_export(folder), name=name, licence=licence)


def _export(
    folder: Path,
    state: State,
    *,
    name: str | None = None,
    licence: str | None = None,
) -> Path:
    plan = read_plan(folder / RUN_PLAN)
    network = IrisNetwork(plan.network)
    network.load_state_dict(state["ema"])
    card = ModelCard.of(
        network,
        name=name or folder.resolve().name,
        version="1",
        s0=plan.s0,
        patch=plan.patch,
        licence=licence or _licence(plan),
        training_sets=tuple(sorted(item.name for item in sets_for_training(plan, Path()))),
        notes=f"averaged weights after step {state['step']} of {plan.training.steps}",
    )
    model = save_model(folder / MODEL, network, card)
    # Checkpoints of an earlier version hold no bank.
    bank = state.get("bank") or MemoryBank(plan.network, plan.training.bank_ema).state()
    save_bank(model, bank_of_run(plan, bank), load_model(model).card.fingerprint)
    return model


def _state_to_export(folder: Path) -> State:
    """The best checkpoint where its score counts, else the latest."""
    best = folder / BEST
    newest = read_newest(folder)
    state = newest[0] if newest else None
    # Checkpoints of runs that were begun before this was noted do not say: their best counts.
    if best.exists() and (state is None or state.get("chooses_best", True)):
        state = read_checkpoint(best)
    if state is None:
        raise UsageError(
            "this run has no checkpoint yet", file=folder, fix="train it first: iris train"
        )
    return state


def _licence(plan: Plan) -> str:
    trained = {item.name for item in sets_for_training(plan, Path())}
    licences = sorted({s.licence for n, s in plan.sets.items() if n in trained and s.licence})
    return "trained on data under: " + ", ".join(licences) if licences else "unknown"


def _plan_of_run(folder: Path, source: Path, overrides: Sequence[str]) -> Plan:
    """The plan a run has, or is to begin with; nothing is written."""
    own = folder / RUN_PLAN
    if not own.exists():
        return apply_overrides(read_plan(source), overrides)
    begun = read_plan(own)
    changed = apply_overrides(begun, overrides)
    if _content(begun) != _content(changed):
        raise DataRefused(
            "this run has begun: its plan cannot be changed any more",
            file=own,
            found=", ".join(overrides),
            expected="only what cannot change the result, such as training.log_every",
            fix="start another run, with --init-from to keep the weights",
        )
    return changed


def _content(plan: Plan) -> dict[str, Any]:
    """All of a plan but its reasons and what cannot change the result."""
    content = plan.model_dump(mode="json", exclude={"reasons"})
    for key in WITHOUT_INFLUENCE:
        del content["training"][key]
    return content
