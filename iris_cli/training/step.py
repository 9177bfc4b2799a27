"""One step: the parts of a batch forward and backward, one gradient, one update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from iris_cli.network.iris_network import IrisNetwork
from iris_cli.network.precision import autocast_type, compute_in
from iris_cli.training.bank import Sighting, sightings
from iris_cli.training.batches import AnyEpisode, Batch, collate, render
from iris_cli.training.distributed import Ranks
from iris_cli.training.episodes import Episode
from iris_cli.training.log import Tally
from iris_cli.training.loss import Loss, episode_loss
from iris_cli.training.optimiser import learning_rate, set_learning_rate
from iris_cli.training.state import Run

Model = Callable[[Batch], tuple[torch.Tensor, list[torch.Tensor]]]
"""What an EpisodeNetwork does, compiled or not."""
Show = Callable[[Sequence[Episode], Batch, torch.Tensor], None]
"""Gets episodes, their batch and the logits (B, K, P, P, P), no gradient."""


class EpisodeNetwork(torch.nn.Module):
    """The network as one function of a batch, so that it can be compiled as a whole."""

    def __init__(self, network: IrisNetwork, *, recompute: bool) -> None:
        super().__init__()
        self.network = network
        self.recompute = recompute

    def forward(self, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Segment the queries, given their references.

        returns: logits (B, K, P, P, P), and per stage the tokens they were decoded with, the mean
        over the references of each episode and class, (B, K, m + 1, C_i) float32.
        """
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
        logits = self.network.decode(
            [f[:b] for f in features], means, batch.class_valid, recompute=self.recompute
        )
        return logits, means


@dataclass(frozen=True)
class _Part:
    """What is left of a part of the step after its backward pass."""

    kinds: Sequence[str]
    loss: Loss
    seen: list[Sighting]


class Stepper:
    """Takes the steps of a run, in this process' share of every step.

    The gradient is that of the mean over all episodes of the step that have something to count, in
    whatever parts and ranks they lie: sums are added up, and divided at the end.
    """

    def __init__(self, run: Run, ranks: Ranks, model: Model) -> None:
        self._run, self._ranks, self._model = run, ranks, model
        self._autocast = autocast_type(run.settings.precision, run.device)

    def take(
        self, parts: Iterable[Sequence[AnyEpisode]], tally: Tally, show: Show | None = None
    ) -> None:
        """One optimiser step over the parts of this rank; skipped in all where one is not finite.

        show: gets the first part, with the logits before the update.
        """
        run, progress = self._run, self._run.progress
        run.optimiser.zero_grad(set_to_none=True)
        # Every part is taken, whatever came before: the stream must stand at the next step's start.
        done = [self._backward(part, show if i == 0 else None) for i, part in enumerate(parts)]
        loss, episodes = self._ranks.sum(
            [sum(float(p.loss.sum) for p in done), sum(float(p.loss.episodes) for p in done)],
            f"the losses of step {progress.step + 1}",
        )
        _tally(done, loss / episodes if episodes else math.nan, tally)
        norm = self._update(max(episodes, 1.0)) if math.isfinite(loss) else math.nan
        if math.isfinite(norm):
            run.average.update(run.network, progress.step)
            seen = self._ranks.gather([s for p in done for s in p.seen], "the memory bank")
            run.bank.update(sighting for rank in seen for sighting in rank)
            progress.skipped_in_a_row = 0
            tally.add("grad_norm", norm)
        else:
            progress.skipped += 1
            progress.skipped_in_a_row += 1
        progress.step += 1

    def _backward(self, raw: Sequence[AnyEpisode], show: Show | None) -> _Part:
        device = self._run.device
        episodes = render(raw, device)
        batch = collate(episodes).to(device)
        with compute_in(self._autocast, device):
            logits, tokens = self._model(batch)
            loss = episode_loss(
                logits, batch.query_masks, batch.counted, batch.loss_valid, batch.decoy
            )
        loss.sum.backward()  # type: ignore[no-untyped-call]
        if show is not None:
            show(episodes, batch, logits.detach())
        return _Part(
            kinds=[episode.kind for episode in episodes],
            loss=replace(loss, sum=loss.sum.detach()),
            seen=sightings(episodes, tokens),
        )

    def _update(self, episodes: float) -> float:
        """Update by the gradient over all ranks, unless it is not finite; returns its norm."""
        run = self._run
        gradients = [_gradient(parameter) for parameter in run.learning]
        self._ranks.add_gradients(gradients, f"the gradients of step {run.progress.step + 1}")
        torch._foreach_div_(gradients, episodes)
        norm = float(torch.nn.utils.clip_grad_norm_(run.learning, run.settings.clip))
        if math.isfinite(norm):
            settings = run.settings
            rate = learning_rate(run.progress.step, settings.steps, settings.optimiser)
            set_learning_rate(run.optimiser, rate)
            run.optimiser.step()
        return norm


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The gradient of a parameter, zero where nothing of this rank's episodes reached it.

    Where the warp has taken every class out of all references no task is encoded: the other ranks
    add up more tensors, and an update must not depend on who took which episodes.
    """
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _tally(parts: Sequence[_Part], loss: float, tally: Tally) -> None:
    tally.add("loss", loss)
    for part in parts:
        for kind, dice in zip(part.kinds, part.loss.dice.tolist(), strict=True):
            for value in dice:
                tally.add("dice", value)
                tally.add(f"dice/{kind}", value)
