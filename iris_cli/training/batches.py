"""Episodes into batches, made in this process or by spawned workers, the same either way."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, fields

import torch
from torch.utils.data import DataLoader, Dataset

from iris_cli.errors import EnvironmentProblem
from iris_cli.execution.signals import ignore_in_worker
from iris_cli.training.episodes import Episode, EpisodeSampler

# What torch says of a process that is gone; an error inside a living one is none of these.
_DIED = re.compile(r"DataLoader worker \(pid.*(exited unexpectedly|is killed by signal)")


@dataclass(frozen=True)
class Batch:
    """B episodes with N references in all, classes padded to the largest K.

    query: (B, 1, P, P, P). references: (N, 1, P, P, P). reference_masks: (N, K, P, P, P) bool.
    reference_valid: (N, K) bool. share: (B, N, K) float, how the tokens of the references are
    averaged for each episode and class. query_masks: (B, K, P, P, P) bool.
    class_valid: (B, K) bool, real classes. loss_valid: (B, K) bool, annotated in the query.
    counted: (B, P, P, P) bool.
    """

    query: torch.Tensor
    references: torch.Tensor
    reference_masks: torch.Tensor
    reference_valid: torch.Tensor
    share: torch.Tensor
    query_masks: torch.Tensor
    class_valid: torch.Tensor
    loss_valid: torch.Tensor
    counted: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        return Batch(**moved)


def collate(episodes: Sequence[Episode]) -> Batch:
    """Put episodes together; padded classes are invalid everywhere."""
    k = max(len(e.names) for e in episodes)
    owners = torch.tensor([i for i, e in enumerate(episodes) for _ in range(len(e.references))])
    reference_valid = torch.cat([_padded(e.reference_valid, k, 1) for e in episodes])
    mine = owners[None] == torch.arange(len(episodes))[:, None]
    share = (mine[:, :, None] & reference_valid[None]).float()
    share = share / share.sum(dim=1, keepdim=True).clamp(min=1)
    return Batch(
        query=torch.stack([e.query for e in episodes])[:, None],
        references=torch.cat([e.references for e in episodes])[:, None],
        reference_masks=torch.cat([_padded(e.reference_masks, k, 1) for e in episodes]),
        reference_valid=reference_valid,
        share=share,
        query_masks=torch.stack([_padded(e.query_masks, k, 0) for e in episodes]),
        class_valid=share.sum(dim=1) > 0,
        loss_valid=torch.stack([_padded(e.query_valid, k, 0) for e in episodes]),
        counted=torch.stack([e.counted for e in episodes]),
    )


def iterate_episodes(
    sampler: EpisodeSampler, first: int, last: int, *, workers: int = 0
) -> Generator[Episode, None, None]:
    """Episodes first..last-1 in order; close it to end the workers."""
    if workers == 0:
        for index in range(first, last):
            yield sampler.episode(index)
        return
    loader: DataLoader[Episode] = DataLoader(
        _Episodes(sampler, first, last),
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        multiprocessing_context="spawn",
        worker_init_fn=_start_worker,
        prefetch_factor=4,
        # The loader would otherwise draw its base seed from torch's global generator, which the
        # checkpoint holds; episodes are seeded by their index alone.
        generator=torch.Generator(),
    )
    try:
        yield from loader
    except RuntimeError as error:
        if not _DIED.search(str(error)):
            raise
        raise EnvironmentProblem(
            "a process that makes episodes died",
            found=error,
            fix="free memory or use fewer workers, then run the same line again to go on",
        ) from error


class _Episodes(Dataset[Episode]):
    def __init__(self, sampler: EpisodeSampler, first: int, last: int) -> None:
        self.sampler, self.first, self.last = sampler, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> Episode:
        return self.sampler.episode(self.first + index)


def _start_worker(_: int) -> None:
    # Ctrl-C reaches every process of a terminal; the training process decides what comes of it.
    ignore_in_worker()
    torch.set_num_threads(1)


def _padded(x: torch.Tensor, k: int, axis: int) -> torch.Tensor:
    missing = k - x.shape[axis]
    if missing == 0:
        return x
    shape = list(x.shape)
    shape[axis] = missing
    return torch.cat([x, x.new_zeros(shape)], dim=axis)
