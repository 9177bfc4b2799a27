"""What the ranks of a test do: functions that `launch` can start in processes of their own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from iris_cli.errors import DataRefused
from iris_cli.execution.signals import StopRequest
from iris_cli.network.config import NetworkConfig
from iris_cli.training import step as step_module
from iris_cli.training.batches import AnyEpisode
from iris_cli.training.distributed import Ranks, joined
from iris_cli.training.episodes import Episode
from iris_cli.training.loss import Loss
from iris_cli.training.observers import Observer, StepReport
from iris_cli.training.run import train
from iris_cli.training.settings import SetForTraining, TrainingSettings
from iris_cli.training.step import Stepper

NETWORK = NetworkConfig(channels=(4, 4, 4, 8, 8), blocks=(1, 1, 1, 1), queries=2, stages=2)
PATCH = 32


Seen = list[tuple[float | None, float | None]]
"""Loss and norm of the gradient of every report, with all digits."""


class Figures(Observer):
    """Keeps loss and gradient of every report."""

    def __init__(self) -> None:
        self.seen: Seen = []

    def step(self, report: StepReport) -> None:
        self.seen.append((report.loss, report.grad_norm))


@dataclass(frozen=True)
class Training:
    """A rank that trains, and what befalls it: (rank, step) each.

    blind: no reference of its episodes shows a class. starts_from: weights of rank 1 alone.
    returns: the figures of the steps, and the state of torch's generator in every rank.
    """

    folder: Path
    sets: tuple[SetForTraining, ...]
    settings: TrainingSettings
    stops: tuple[int, int] | None = None
    breaks: tuple[int, int] | None = None
    killed: tuple[int, int] | None = None
    exhausted: tuple[int, int] | None = None
    blind: tuple[int, int] | None = None
    starts_from: Path | None = None

    def __call__(self, device: str, stop: StopRequest) -> tuple[Seen, list[Any]]:
        with joined(torch.device(device), self.settings.timeout_s) as ranks:
            figures = Figures()
            with _before_steps(self._befall(ranks, stop)):
                train(
                    self.folder,
                    NETWORK,
                    self.settings,
                    self.sets,
                    PATCH,
                    ranks=ranks,
                    stop=stop,
                    observers=[figures],
                    init_from=self.starts_from if ranks.rank == 1 else None,
                )
            return figures.seen, ranks.gather(torch.get_rng_state().tolist(), "the test")

    def _befall(self, ranks: Ranks, stop: StopRequest) -> Callable[[int], None]:
        plain, render = step_module.episode_loss, step_module.render

        def befall(step: int) -> None:
            if (ranks.rank, step) == self.stops:
                stop.request("a test")
            if (ranks.rank, step) == self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            if (ranks.rank, step) == self.exhausted:
                torch.empty(1 << 60)
            breaks = (ranks.rank, step) == self.breaks
            blinds = (ranks.rank, step) == self.blind

            def loss(*arguments: torch.Tensor) -> Loss:
                found = plain(*arguments)
                return replace(found, sum=found.sum * float("nan")) if breaks else found

            def rendered(raw: Sequence[AnyEpisode], device: torch.device) -> list[Episode]:
                episodes = render(raw, device)
                return [blinded(episode) for episode in episodes] if blinds else episodes

            step_module.episode_loss = loss
            step_module.render = rendered

        return befall


def blinded(episode: Episode) -> Episode:
    """As where the warp has taken every class out of the references."""
    return replace(
        episode,
        reference_masks=torch.zeros_like(episode.reference_masks),
        reference_valid=torch.zeros_like(episode.reference_valid),
        query_valid=torch.zeros_like(episode.query_valid),
    )


class _before_steps:
    """Calls a function with the number of each step (0-based) before it is taken."""

    def __init__(self, befall: Callable[[int], None]) -> None:
        self._befall, self._take = befall, Stepper.take
        self._loss, self._render = step_module.episode_loss, step_module.render

    def __enter__(self) -> None:
        befall, plain = self._befall, self._take

        def take(stepper: Stepper, *arguments: Any) -> None:
            befall(stepper._run.progress.step)
            plain(stepper, *arguments)

        Stepper.take = take  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        Stepper.take = self._take  # type: ignore[method-assign]
        step_module.episode_loss = self._loss
        step_module.render = self._render


def agree(device: str, stop: StopRequest) -> dict[str, Any]:
    """Everything two ranks can agree on, once."""
    with joined(torch.device(device), 60.0) as ranks:
        one = torch.full((3,), float(ranks.rank + 1))
        many = torch.arange(4.0).reshape(2, 2) * (ranks.rank + 1)
        ranks.add_gradients([one, many], "gradients")
        refused = None
        try:
            ranks.from_first(_refuse, "a refusal")
        except DataRefused as error:
            refused = error.problem
        found = {
            "rank": ranks.rank,
            "sum": ranks.sum([1.0, float(ranks.rank)], "numbers"),
            "one": one.tolist(),
            "many": many.tolist(),
            "first": ranks.from_first(lambda: ranks.rank, "a rank"),
            "refused": refused,
        }
        return {"all": ranks.gather(found, "what was found"), "backend": ranks.backend}


def hang(device: str, stop: StopRequest) -> None:
    """Rank 1 does not come to the second sum in time."""
    with joined(torch.device(device), 1.5) as ranks:
        ranks.sum([1.0], "the losses of step 1")
        if ranks.rank == 1:
            time.sleep(8)
        ranks.sum([1.0], "the losses of step 2")


def _refuse() -> None:
    raise DataRefused("only rank 0 looked")
