"""The training loop: steps, checkpoints, validation, stopping and resuming."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from iris_cli.errors import DataRefused, Diverged, Stopped
from iris_cli.files.hashing import hash_json
from iris_cli.files.publish import remove_leftovers
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.training.batches import Batch, collate, iterate_episodes
from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.checkpoint import (
    LATEST,
    State,
    read_checkpoint,
    read_newest,
    write_best,
    write_checkpoint,
)
from iris_cli.training.claim import claimed
from iris_cli.training.episodes import Episode, EpisodeSampler
from iris_cli.training.log import METRICS, MetricsLog, Tally
from iris_cli.training.loss import Loss, episode_loss
from iris_cli.training.optimiser import (
    AveragedWeights,
    build_optimiser,
    learning_rate,
    set_learning_rate,
)
from iris_cli.training.precision import autocast_type, compute_in
from iris_cli.training.settings import SetForTraining, TrainingSettings

Validate = Callable[[IrisNetwork, int], Mapping[str, float | str]]
"""Gets the network with averaged weights and the number of finished steps; returns figures, of
which `score` (higher is better; it may be missing) chooses checkpoint_best.pt, and notes in words
for the log."""
Observe = Callable[[Path], None]
"""Gets the path of metrics.jsonl after checkpoints and validations."""


class Stop(Protocol):
    """What the loop needs of execution.signals.StopRequest."""

    @property
    def requested(self) -> bool: ...
    @property
    def reason(self) -> str | None: ...


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
    observe: Observe | None = None,
    stop: Stop | None = None,
    init_from: Path | None = None,
    device: str = "cpu",
    workers: int | None = None,
) -> TrainingOutcome:
    """Train a network, or go on with the run that is in `run_folder`.

    patch: edge of the cubic crops in voxels, a multiple of the network's `size_multiple`.
    scores_compare: whether `validate` does what it did since the run began; otherwise its figures
    are logged and choose no best checkpoint.
    init_from: weights to start from (a checkpoint or a model); ignored where the run goes on.
    workers: processes that make episodes, `settings.workers` where None; no result depends on it.
    raises Stopped when `stop` is requested (everything is saved: the same call goes on), Diverged
    after `skipped_in_a_row_max` non-finite steps, DataRefused where the run in the folder was made
    with another plan or other data, EnvironmentProblem while another process trains in the folder.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    with claimed(run_folder, lambda: stop is not None and stop.requested):
        remove_leftovers(run_folder)
        run, sampler = _begin(run_folder, network_config, settings, sets, patch, init_from, device)
        run.chooses_best = validate is not None and scores_compare
        log = MetricsLog(run_folder, run.step)
        try:
            count = settings.workers if workers is None else workers
            _loop(run, sampler, log, validate, observe, stop, count)
        finally:
            log.close()
    return TrainingOutcome(
        steps=run.step,
        skipped=run.skipped,
        best_score=run.best_score,
        best_step=run.best_step,
        checkpoint=run_folder / LATEST,
        metrics=run_folder / METRICS,
    )


def _begin(
    folder: Path,
    network_config: NetworkConfig,
    settings: TrainingSettings,
    sets: Sequence[SetForTraining],
    patch: int,
    init_from: Path | None,
    device: str,
) -> tuple[_Run, EpisodeSampler]:
    """The run of the folder as its newest checkpoint has it, or a new one; and its episodes."""
    catalogue = read_catalogue(sets)
    fingerprints = {
        "plan": plan_fingerprint(network_config, settings, sets, patch),
        "data": catalogue.fingerprint(),
    }
    sampler = EpisodeSampler(catalogue, settings, patch)
    run = _Run(folder, network_config, settings, fingerprints, torch.device(device))
    if not run.resume() and init_from is not None:
        run.start_from(init_from)
    return run, sampler


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


class EpisodeNetwork(torch.nn.Module):
    """The network as one function of a batch, so that it can be wrapped for several devices."""

    def __init__(self, network: IrisNetwork, *, recompute: bool) -> None:
        super().__init__()
        self.network = network
        self.recompute = recompute

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (B, K, P, P, P) of the queries, given their references."""
        b = len(batch.query)
        # One pass for queries and references: instances do not see each other.
        features = self.network.encode_image(
            torch.cat([batch.query, batch.references]), recompute=self.recompute
        )
        tokens = self.network.encode_task(
            [f[b:] for f in features],
            batch.reference_masks,
            batch.reference_valid,
            recompute=self.recompute,
        )
        # A matrix product instead of scatter-add: that one has no fixed order on GPUs.
        with torch.autocast(batch.query.device.type, enabled=False):
            means = [torch.einsum("bnk,nkmc->bkmc", batch.share, t.float()) for t in tokens]
        return self.network.decode(
            [f[:b] for f in features], means, batch.class_valid, recompute=self.recompute
        )


class _Run:
    """The state of a run: what a checkpoint holds."""

    def __init__(
        self,
        folder: Path,
        network_config: NetworkConfig,
        settings: TrainingSettings,
        fingerprints: Mapping[str, str],
        device: torch.device,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.folder, self.settings, self.device = folder, settings, device
        self.network_config = network_config
        self.fingerprints = dict(fingerprints)
        self.network = IrisNetwork(network_config).to(device)
        self.model = EpisodeNetwork(self.network, recompute=settings.recompute)
        self.average = AveragedWeights(self.network, settings.ema)
        self.optimiser = build_optimiser(self.network.parameters(), settings.optimiser)
        self.autocast = autocast_type(settings.precision, device)
        self.step = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.seconds = 0.0
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.chooses_best = False

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint of the folder; False where there is none."""
        found = read_newest(self.folder)
        if found is None:
            return False
        state, path = found
        for name, ours in self.fingerprints.items():
            if state[name] != ours:
                raise DataRefused(
                    f"this run was made with another {name}",
                    file=path,
                    found=f"{name} {state[name][:12]} in the checkpoint",
                    expected=f"{ours[:12]}",
                    fix="train into another folder, or give the run what it was begun with",
                )
        self.network.load_state_dict(state["model"])
        self.average.state = {k: v.to(self.device) for k, v in state["ema"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["rng"])
        for name in ("step", "skipped", "skipped_in_a_row", "seconds", "best_score", "best_step"):
            setattr(self, name, state[name])
        return True

    def start_from(self, path: Path) -> None:
        """Take the weights of a checkpoint (the averaged ones) or of a model."""
        weights = read_weights(path)
        try:
            self.network.load_state_dict(weights)
        except RuntimeError as error:
            raise DataRefused(
                "these weights do not fit the network of the plan", file=path, found=error
            ) from None
        self.average = AveragedWeights(self.network, self.settings.ema)

    def state(self) -> State:
        return {
            "model": self.network.state_dict(),
            "ema": self.average.state,
            "optimiser": self.optimiser.state_dict(),
            "rng": torch.get_rng_state(),
            "network": self.network_config.model_dump(mode="json"),
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "seconds": self.seconds,
            "best_score": self.best_score,
            "best_step": self.best_step,
            "chooses_best": self.chooses_best,
            **self.fingerprints,
        }

    def save(self) -> bool:
        """Write a checkpoint, unless a weight is not finite: the last good generation stays.

        A skipped step touches no weight, so what it leaves is as good as what it found.
        """
        tensors = (*self.network.state_dict().values(), *self.average.state.values())
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
        if finite:
            write_checkpoint(self.folder, self.state())
        return finite

    def averaged_network(self) -> IrisNetwork:
        """A network of its own with the averaged weights, for validation."""
        with torch.random.fork_rng(devices=[]):
            network = IrisNetwork(self.network_config).to(self.device)
        network.load_state_dict(self.average.state)
        return network.eval().requires_grad_(False)

    def take_step(self, parts: Iterable[Sequence[Episode]], tally: Tally) -> None:
        """One optimiser step over the parts of a step's episodes; skipped where not finite."""
        self.optimiser.zero_grad(set_to_none=True)
        # Every part is taken, whatever came before: the stream must stand at the next step's start.
        finite = [self._backward(part, tally) for part in parts]
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        rate = learning_rate(self.step, self.settings.steps, self.settings.optimiser)
        if all(finite) and bool(torch.isfinite(norm)):
            set_learning_rate(self.optimiser, rate)
            self.optimiser.step()
            self.average.update(self.network, self.step)
            self.skipped_in_a_row = 0
            tally.add("grad_norm", float(norm))
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
        self.step += 1

    def _backward(self, episodes: Sequence[Episode], tally: Tally) -> bool:
        batch = collate(episodes).to(self.device)
        with compute_in(self.autocast, self.device):
            logits = self.model(batch)
            loss = episode_loss(logits, batch.query_masks, batch.counted, batch.loss_valid)
            (loss.total / self.settings.accumulation).backward()  # type: ignore[no-untyped-call]
        _tally_loss(loss, episodes, tally)
        return bool(torch.isfinite(loss.total))


class _Cancelled(Exception):
    """A stop was requested in the middle of a step; the step is dropped and made again later."""


def _loop(
    run: _Run,
    sampler: EpisodeSampler,
    log: MetricsLog,
    validate: Validate | None,
    observe: Observe | None,
    stop: Stop | None,
    workers: int,
) -> None:
    settings = run.settings
    size = settings.batch
    stream = iterate_episodes(sampler, run.step * size, settings.steps * size, workers=workers)
    clock = _Clock(run)
    tally = Tally()
    with contextlib.closing(stream):
        while run.step < settings.steps:
            try:
                _one_step(run, stream, tally, stop)
            except _Cancelled:
                raise _stopped(run, stop, saved=run.save()) from None
            _check_divergence(run)
            last = run.step == settings.steps
            if run.step % settings.log_every == 0 or last:
                log.write(_line(run, tally))
                tally = Tally()
            due = clock.validation_due() or last
            validates = validate is not None and due
            saves = clock.checkpoint_due() or last or validates
            if saves:
                # Before validation: whatever happens there, the steps are not lost.
                _save(run, last=last)
                clock.saved()
            if validate is not None and validates:
                if _validate(run, log, validate):
                    run.save()
                clock.validated()
            if observe is not None and saves:
                observe(log.path)


def _save(run: _Run, *, last: bool) -> None:
    if not run.save() and last:
        raise Diverged(
            "the weights are not finite after the last step",
            file=run.folder / LATEST,
            fix="lower optimiser.lr or clip, or use precision float32",
        )


def _stopped(run: _Run, stop: Stop | None, *, saved: bool) -> Stopped:
    state = "everything is saved" if saved else "weights not finite, the last good checkpoint stays"
    return Stopped(
        f"stopped after {run.step} of {run.settings.steps} steps: "
        f"{stop.reason if stop else None}; {state}",
        file=run.folder,
        fix="run the same line again to go on",
    )


def _one_step(run: _Run, stream: Iterator[Episode], tally: Tally, stop: Stop | None) -> None:
    """Fetch and take one step; nothing of it remains where a stop comes in between."""
    began = time.perf_counter()
    part_size = run.settings.batch // run.settings.accumulation

    def parts() -> Iterator[list[Episode]]:
        for _ in range(run.settings.accumulation):
            if stop is not None and stop.requested:
                raise _Cancelled
            before = time.perf_counter()
            part = list(islice(stream, part_size))
            tally.add("wait_s", time.perf_counter() - before)
            yield part

    run.take_step(parts(), tally)
    seconds = time.perf_counter() - began
    run.seconds += seconds
    tally.add("step_s", seconds)


class _Clock:
    """When the next checkpoint and the next validation are due."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._saved = self._validated = time.monotonic()

    def checkpoint_due(self) -> bool:
        return time.monotonic() - self._saved >= self._run.settings.checkpoint_every_s

    def validation_due(self) -> bool:
        steps = self._run.settings.validate_every_steps
        if steps:
            return self._run.step % steps == 0
        return time.monotonic() - self._validated >= self._run.settings.validate_every_s

    def saved(self) -> None:
        self._saved = time.monotonic()

    def validated(self) -> None:
        self._validated = time.monotonic()


def _check_divergence(run: _Run) -> None:
    if run.skipped_in_a_row >= run.settings.skipped_in_a_row_max:
        raise Diverged(
            f"{run.skipped_in_a_row} steps in a row had a loss or gradient that is not finite",
            file=run.folder / LATEST,
            found=f"step {run.step}, {run.skipped} skipped in all",
            fix="lower optimiser.lr or clip, or use precision float32; the checkpoint is intact",
        )


def _validate(run: _Run, log: MetricsLog, validate: Validate) -> bool:
    """Log one validation; True where its score is the best so far."""
    began = time.perf_counter()
    figures = dict(validate(run.averaged_network(), run.step))
    score = float(figures.get("score", math.nan))
    best = -math.inf if run.best_score is None else run.best_score
    better = run.chooses_best and math.isfinite(score) and score > best
    if better:
        run.best_score, run.best_step = score, run.step
        write_best(
            run.folder,
            {
                "ema": run.average.state,
                "network": run.network_config.model_dump(mode="json"),
                "step": run.step,
                "score": score,
                **run.fingerprints,
            },
        )
    seconds = time.perf_counter() - began
    log.write({"step": run.step, "validation": {**figures, "seconds": seconds}})
    return better


def _line(run: _Run, tally: Tally) -> dict[str, Any]:
    step_s = tally.mean("step_s") or 0.0
    total = max(tally.total("step_s"), 1e-9)
    return {
        "step": run.step,
        "loss": tally.mean("loss"),
        "dice": tally.mean("dice"),
        "dice_of": tally.means("dice/"),
        "lr": learning_rate(run.step - 1, run.settings.steps, run.settings.optimiser),
        "grad_norm": tally.mean("grad_norm"),
        "skipped": run.skipped,
        "step_s": step_s,
        "wait_share": tally.total("wait_s") / total,
        "seconds": run.seconds,
        "eta_s": step_s * (run.settings.steps - run.step),
    }


def _tally_loss(loss: Loss, episodes: Sequence[Episode], tally: Tally) -> None:
    tally.add("loss", float(loss.total.detach()))
    for episode, dice in zip(episodes, loss.dice.tolist(), strict=True):
        for value in dice:
            tally.add("dice", value)
            tally.add(f"dice/{episode.kind}", value)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint of iris (the averaged ones), or of a model folder or file."""
    if path.suffix == ".pt":
        weights: dict[str, torch.Tensor] = read_checkpoint(path)["ema"]
        return weights
    from iris_cli.model.model import load_model

    return dict(load_model(path).network.state_dict())
