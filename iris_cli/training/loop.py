"""The loop of a run: steps, checkpoints, validation and stopping, in one or several processes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn, Protocol

import torch

from iris_cli.errors import Diverged, Stopped
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.training.batches import AnyEpisode, Batch, iterate_any
from iris_cli.training.checkpoint import LATEST
from iris_cli.training.distributed import RankEpisodes, Ranks
from iris_cli.training.episodes import Episode, EpisodeSampler
from iris_cli.training.log import Tally
from iris_cli.training.observers import Observer, StepReport, memory_in_use
from iris_cli.training.optimiser import learning_rate
from iris_cli.training.state import Run
from iris_cli.training.step import Stepper

Validate = Callable[[IrisNetwork, int], Mapping[str, Any]]
"""Gets the network with averaged weights and the number of finished steps; returns figures, of
which `score` (higher is better; it may be missing) chooses checkpoint_best.pt, and notes in words
for the log. Raises Stopped where a stop is requested: it is done again when the run goes on."""


class Stop(Protocol):
    """What the loop needs of execution.signals.StopRequest."""

    @property
    def requested(self) -> bool: ...
    @property
    def reason(self) -> str | None: ...


class _Cancelled(Exception):
    """A stop was requested in the middle of a step; the step is dropped and made again later."""


@dataclass(frozen=True)
class Loop:
    """Trains a run to its end, in this rank of several that all do the same.

    observers and `validate` are those of rank 0; in the others there are none.
    """

    run: Run
    stepper: Stepper
    sampler: EpisodeSampler
    ranks: Ranks
    observers: Sequence[Observer]
    validate: Validate | None
    stop: Stop | None

    def train(self, workers: int) -> None:
        """raises Stopped, Diverged (the last good checkpoint stays), RankLost.

        A validation that was due and did not come to its end, because the process was stopped or
        killed in it, is done first: it may choose another best checkpoint.
        """
        run = self.run
        indices = RankEpisodes.of(self.ranks, run.settings, run.progress.step)
        stream = iterate_any(self.sampler, indices, device=run.device, workers=workers)
        saved = _LastSave()
        tally = Tally()
        with contextlib.closing(stream):
            self.ranks.from_first(self._validate_if_due, f"validating after step {self._at}")
            while run.progress.step < run.settings.steps:
                try:
                    self._step(stream, indices.each, tally)
                except _Cancelled:
                    self._save_and_stop()
                self._check_divergence()
                if _every(run.settings.log_every, run) or self._is_last:
                    tally = self._report(tally)
                self.ranks.from_first(
                    lambda: self._keep(saved), f"saving and validating after step {self._at}"
                )

    @property
    def _at(self) -> int:
        return self.run.progress.step

    @property
    def _is_last(self) -> bool:
        return self._at == self.run.settings.steps

    @property
    def _shows(self) -> bool:
        """Whether the episodes of the next step are shown to the observers."""
        every = self.run.settings.sheet_every
        due = every > 0 and (self._at == 0 or (self._at + 1) % every == 0)
        return due and bool(self.observers)

    def _step(self, stream: Iterator[AnyEpisode], count: int, tally: Tally) -> None:
        """Fetch and take one step; nothing of it remains where a stop comes in between."""
        began = time.perf_counter()

        def parts() -> Iterator[list[AnyEpisode]]:
            for size in sizes_of_parts(count, self.run.settings.accumulation):
                self._look_for_a_stop()
                before = time.perf_counter()
                part = list(islice(stream, size))
                tally.add("wait_s", time.perf_counter() - before)
                yield part

        self.stepper.take(parts(), tally, self._show if self._shows else None)
        seconds = time.perf_counter() - began
        self.run.progress.seconds += seconds
        tally.add("step_s", seconds)

    def _look_for_a_stop(self) -> None:
        """A stop that was asked of any rank stops all of them at the same place."""
        asked = self.stop is not None and self.stop.requested
        if self.ranks.sum([float(asked)], f"the beginning of step {self._at + 1}")[0]:
            raise _Cancelled

    def _save_and_stop(self) -> NoReturn:
        mine = self.stop.reason if self.stop else None
        reasons = self.ranks.gather(mine, "the reason to stop")
        saved = self.ranks.from_first(self.run.save, "saving what was done")
        state = (
            "everything is saved" if saved else "weights not finite, the last good checkpoint stays"
        )
        raise Stopped(
            f"stopped after {self._at} of {self.run.settings.steps} steps: "
            f"{next(filter(None, reasons), None)}; {state}",
            file=self.run.folder,
            fix="run the same line again to go on",
        )

    def _check_divergence(self) -> None:
        progress, settings = self.run.progress, self.run.settings
        if progress.skipped_in_a_row >= settings.skipped_in_a_row_max:
            raise Diverged(
                f"{progress.skipped_in_a_row} steps in a row had a loss or gradient that is not "
                "finite",
                file=self.run.folder / LATEST,
                found=f"step {progress.step}, {progress.skipped} skipped in all",
                fix="lower optimiser.lr or clip, or use precision float32; the checkpoint is "
                "intact",
            )

    def _show(self, episodes: Sequence[Episode], batch: Batch, logits: torch.Tensor) -> None:
        for observer in self.observers:
            observer.episodes(self._at + 1, episodes, batch, logits)

    def _report(self, tally: Tally) -> Tally:
        """Tell the observers of the steps since the last report, of all ranks; begin anew."""
        tallies = self.ranks.gather(tally, f"the log of step {self._at}")
        report = _report_of(self.run, Tally.merged(tallies))
        for observer in self.observers:
            observer.step(report)
        return Tally()

    def _keep(self, saved: _LastSave) -> None:
        """In rank 0: write a checkpoint and validate where it is time."""
        validates = self.validate is not None and self._validation_is_due
        if validates or self._is_last or saved.age_s >= self.run.settings.checkpoint_every_s:
            # Before validation: whatever happens there, the steps are not lost.
            self._save()
            saved.renew()
        self._validate_if_due()

    @property
    def _validation_is_due(self) -> bool:
        """By what the checkpoint holds: a run that is stopped often validates as often."""
        settings, progress = self.run.settings, self.run.progress
        if progress.validated_step == progress.step:
            return False
        if self._is_last:
            return True
        if every := settings.validate_every_steps:
            return progress.step // every > progress.validated_step // every
        return progress.seconds - progress.validated_seconds >= settings.validate_every_s

    def _validate_if_due(self) -> None:
        if self.validate is not None and self._validation_is_due:
            self._validate(self.validate)

    def _save(self) -> None:
        if not self.run.save() and self._is_last:
            raise Diverged(
                "the weights are not finite after the last step",
                file=self.run.folder / LATEST,
                fix="lower optimiser.lr or clip, or use precision float32",
            )

    def _validate(self, validate: Validate) -> None:
        run, progress = self.run, self.run.progress
        began = time.perf_counter()
        figures = dict(validate(run.averaged_network(), progress.step))
        score = float(figures.get("score", math.nan))
        best = -math.inf if progress.best_score is None else progress.best_score
        if progress.chooses_best and math.isfinite(score) and score > best:
            run.save_best(score)
        figures["seconds"] = time.perf_counter() - began
        for observer in self.observers:
            observer.validation(progress.step, figures)
        progress.validated_step, progress.validated_seconds = progress.step, progress.seconds
        run.save()


class _LastSave:
    """How long ago this process last wrote a checkpoint, or began."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self._at = time.monotonic()

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._at


def sizes_of_parts(episodes: int, most: int) -> list[int]:
    """How a rank cuts its episodes of a step: into at most `most` parts, the larger ones first."""
    parts = min(episodes, most)
    return [episodes // parts + (part < episodes % parts) for part in range(parts)]


def _every(steps: int, run: Run) -> bool:
    return run.progress.step % steps == 0


def _report_of(run: Run, tally: Tally) -> StepReport:
    settings, progress = run.settings, run.progress
    step_s = tally.mean("step_s") or 0.0
    memory, device_memory = memory_in_use(run.device)
    return StepReport(
        step=progress.step,
        steps=settings.steps,
        loss=tally.mean("loss"),
        dice=tally.mean("dice"),
        dice_of=tally.means("dice/"),
        lr=learning_rate(progress.step - 1, settings.steps, settings.optimiser),
        grad_norm=tally.mean("grad_norm"),
        skipped=progress.skipped,
        step_s=step_s,
        wait_share=tally.total("wait_s") / max(tally.total("step_s"), 1e-9),
        seconds=progress.seconds,
        eta_s=step_s * (settings.steps - progress.step),
        memory_bytes=memory,
        device_memory_bytes=device_memory,
    )
