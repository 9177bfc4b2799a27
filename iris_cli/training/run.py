"""Training a network into a run folder: beginning or going on, to the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from iris_cli.errors import DataRefused, EnvironmentProblem
from iris_cli.files.hashing import hash_json
from iris_cli.files.publish import remove_leftovers
from iris_cli.network.config import NetworkConfig
from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.checkpoint import LATEST, find_newest
from iris_cli.training.claim import claimed
from iris_cli.training.compiling import compiled
from iris_cli.training.distributed import ALONE, Ranks, slots_of
from iris_cli.training.ending import noted_end
from iris_cli.training.episodes import EpisodeSampler
from iris_cli.training.log import METRICS
from iris_cli.training.loop import Loop, Stop, Validate
from iris_cli.training.observers import Observer, records
from iris_cli.training.precision import computing_alike
from iris_cli.training.settings import SetForTraining, TrainingSettings
from iris_cli.training.state import Run
from iris_cli.training.step import EpisodeNetwork, Stepper


@dataclass(frozen=True)
class TrainingOutcome:
    """What a finished run leaves."""

    steps: int
    skipped: int
    best_score: float | None
    best_step: int | None
    checkpoint: Path
    metrics: Path


def train(
    run_folder: Path,
    network_config: NetworkConfig,
    settings: TrainingSettings,
    sets: Sequence[SetForTraining],
    patch: int,
    *,
    validate: Validate | None = None,
    scores_compare: bool = True,
    observers: Sequence[Observer] = (),
    stop: Stop | None = None,
    init_from: Path | None = None,
    device: str = "cpu",
    workers: int | None = None,
    ranks: Ranks = ALONE,
) -> TrainingOutcome:
    """Train a network, or go on with the run that is in `run_folder`.

    patch: edge of the cubic crops in voxels, a multiple of the network's `size_multiple`.
    scores_compare: whether `validate` does what it did since the run began; otherwise its figures
    are logged and choose no best checkpoint.
    observers: look on beside the records that every run keeps; used in rank 0, as `validate` is.
    init_from: weights to start from (a checkpoint or a model); ignored where the run goes on.
    workers: processes that make episodes, `settings.workers` where None; no result depends on it.
    ranks: the processes that train together, each with its own device; all make the same call and
    see the same folders.
    raises Stopped when `stop` is requested (everything is saved: the same call goes on), Diverged
    after `skipped_in_a_row_max` non-finite steps, DataRefused where the run in the folder was made
    with another plan or other data, EnvironmentProblem while another process trains in the folder,
    RankLost where another rank ends or does not answer, UsageError where the batch cannot be
    shared out. EnvironmentProblem also where the ranks do not begin with the same weights.
    """
    slots_of(ranks, settings)  # refuses before anything is written
    with contextlib.ExitStack() as held:
        ranks.from_first(
            lambda: held.enter_context(_own(run_folder, stop)), "taking the run folder"
        )
        run, sampler = _begin(
            run_folder, network_config, settings, sets, patch, init_from, device, ranks
        )
        run.progress.chooses_best = validate is not None and scores_compare
        first = ranks.rank == 0
        watching = held.enter_context(_looking_on(run, observers)) if first else ()
        loop = Loop(
            run, _stepper(run, ranks), sampler, ranks, watching, validate if first else None, stop
        )
        held.enter_context(computing_alike())
        loop.train(settings.workers if workers is None else workers)
        return ranks.from_first(lambda: _outcome(run), "the end of the run")


def plan_fingerprint(
    network_config: NetworkConfig,
    settings: TrainingSettings,
    sets: Sequence[SetForTraining],
    patch: int,
) -> str:
    """Hash of everything in the plan that can change the weights; not where the stores lie."""
    return hash_json(
        {
            "network": network_config.model_dump(mode="json"),
            "settings": settings.content_hash(),
            "sets": [item.description() for item in sets],
            "patch": patch,
        }
    )


@contextlib.contextmanager
def _own(folder: Path, stop: Stop | None) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder, lambda: stop is not None and stop.requested):
        remove_leftovers(folder)
        with noted_end(folder):
            yield


def _begin(
    folder: Path,
    network_config: NetworkConfig,
    settings: TrainingSettings,
    sets: Sequence[SetForTraining],
    patch: int,
    init_from: Path | None,
    device: str,
    ranks: Ranks,
) -> tuple[Run, EpisodeSampler]:
    """The run of the folder as its newest checkpoint has it, or a new one; and its episodes."""
    catalogue = read_catalogue(sets)
    fingerprints = {
        "plan": plan_fingerprint(network_config, settings, sets, patch),
        "data": catalogue.fingerprint(),
    }
    _check_alike(ranks.gather(fingerprints, "plan and data"))
    sampler = EpisodeSampler(catalogue, settings, patch)
    run = Run(folder, network_config, settings, fingerprints, torch.device(device))
    newest = ranks.from_first(lambda: find_newest(folder), "looking for a checkpoint")
    if newest is not None:
        run.go_on_from(newest)
    elif init_from is not None:
        run.start_from(init_from)
    _check_begun_alike(run, ranks)
    return run, sampler


def _check_alike(fingerprints: Sequence[dict[str, str]]) -> None:
    for rank, theirs in enumerate(fingerprints):
        for name, expected in fingerprints[0].items():
            if theirs[name] != expected:
                raise DataRefused(
                    f"the ranks of this run do not see the same {name}",
                    found=f"{theirs[name][:12]} in rank {rank}",
                    expected=f"{expected[:12]} as in rank 0",
                    fix="give every node the same plan and the same preprocessed folder",
                )


def _check_begun_alike(run: Run, ranks: Ranks) -> None:
    """Gradients alone are added up: other weights in one rank would go unnoticed for ever."""
    if ranks.world == 1:
        return
    begun = ranks.gather(
        f"step {run.progress.step}, weights {run.weights_hash()[:12]}", "what the run begins with"
    )
    for rank, theirs in enumerate(begun):
        if theirs != begun[0]:
            raise EnvironmentProblem(
                "the ranks of this run do not begin with the same weights",
                file=run.folder,
                found=f"{theirs} in rank {rank}",
                expected=f"{begun[0]} as in rank 0",
                fix="see that every node reads the same run folder, the same --init-from file and "
                "the same version of torch, then run the same line again",
            )


def _stepper(run: Run, ranks: Ranks) -> Stepper:
    model = EpisodeNetwork(run.network, recompute=run.settings.recompute)
    return Stepper(run, ranks, compiled(model, run.device) if run.settings.compile else model)


@contextlib.contextmanager
def _looking_on(run: Run, observers: Sequence[Observer]) -> Iterator[tuple[Observer, ...]]:
    """The records of the run and whoever else looks on; closed whatever happens."""
    with contextlib.ExitStack() as open_:
        watching = (*records(run.folder, run.progress.step), *observers)
        for observer in watching:
            open_.callback(observer.close)
            observer.begin(run.progress.step)
        yield watching


def _outcome(run: Run) -> TrainingOutcome:
    return TrainingOutcome(
        steps=run.progress.step,
        skipped=run.progress.skipped,
        best_score=run.progress.best_score,
        best_step=run.progress.best_step,
        checkpoint=run.folder / LATEST,
        metrics=run.folder / METRICS,
    )
