"""Episodes into batches, made in this process or by spawned workers, the same either way.

Where the training device is the CPU the workers render too, so that the training process is not
slowed; elsewhere they hand over what they read, and the device renders the whole batch:

    stream = iterate_any(sampler, indices, device=device, workers=workers)
    batch = collate(render(list(islice(stream, size)), device)).to(device)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields

import torch
from torch.utils.data import DataLoader, Dataset

from iris_cli.errors import EnvironmentProblem
from iris_cli.execution.signals import blocked, ignore_in_worker
from iris_cli.training.episodes import Episode, EpisodeSampler, RawEpisode

AnyEpisode = Episode | RawEpisode

# What torch says of a process that is gone; an error inside a living one is none of these.
_DIED = re.compile(r"DataLoader worker \(pid.*(exited unexpectedly|is killed by signal)")


@dataclass(frozen=True)
class Batch:
    """B episodes with N references in all, classes padded to the largest K.

    query: (B, 1, P, P, P). references: (N, 1, P, P, P). reference_masks: (N, K, P, P, P) bool.
    reference_valid: (N, K) bool. share: (B, N, K) float, how the tokens of the references are
    averaged for each episode and class. query_masks: (B, K, P, P, P) bool.
    class_valid: (B, K) bool, real classes. loss_valid: (B, K) bool, annotated in the query.
    counted: (B, P, P, P) bool. decoy: (B, K) bool, counted on the voxels of the classes alone.
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
    decoy: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        return Batch(**moved)


def collate(episodes: Sequence[Episode]) -> Batch:
    """Put episodes together; padded classes are invalid everywhere."""
    k = max(len(e.names) for e in episodes)
    device = episodes[0].query.device
    counts = [len(e.references) for e in episodes]
    owners = torch.tensor([i for i, n in enumerate(counts) for _ in range(n)], device=device)
    reference_valid = torch.cat([_padded(e.reference_valid, k, 1) for e in episodes])
    mine = owners[None] == torch.arange(len(episodes), device=device)[:, None]
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
        decoy=torch.tensor([_decoy_row(e, k) for e in episodes], device=device),
    )


def render(episodes: Sequence[AnyEpisode], device: torch.device) -> list[Episode]:
    """The episodes with everything made; raw ones are rendered on the training device."""
    return [e.render(device) if isinstance(e, RawEpisode) else e for e in episodes]


def iterate_any(
    sampler: EpisodeSampler, indices: Sequence[int], *, device: torch.device, workers: int = 0
) -> Generator[AnyEpisode, None, None]:
    """Episodes of these indices in order, rendered already where the CPU trains (`render`).

    Close it to end the workers.
    """
    make = sampler.episode if device.type == "cpu" else sampler.raw_episode
    if workers == 0:
        for index in indices:
            yield make(index)
        return
    loader: DataLoader[AnyEpisode] = DataLoader(
        _Episodes(make, indices),
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
        with blocked():
            # A signal that reaches every process of a job must end neither the workers while they
            # start nor Python's tracker of their shared memory, which is started with them.
            started = iter(loader)
        yield from started
    except RuntimeError as error:
        if not _DIED.search(str(error)):
            raise
        raise EnvironmentProblem(
            "a process that makes episodes died",
            found=error,
            fix="free memory or use fewer workers, then run the same line again to go on",
        ) from error


class _Episodes(Dataset[AnyEpisode]):
    def __init__(self, make: Callable[[int], AnyEpisode], indices: Sequence[int]) -> None:
        self.make, self.indices = make, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> AnyEpisode:
        return self.make(self.indices[index])


def _start_worker(_: int) -> None:
    # Ctrl-C reaches every process of a terminal; the training process decides what comes of it.
    ignore_in_worker()
    torch.set_num_threads(1)


def _decoy_row(episode: Episode, k: int) -> list[bool]:
    last = len(episode.names) - 1
    return [episode.decoy and i == last for i in range(k)]


def _padded(x: torch.Tensor, k: int, axis: int) -> torch.Tensor:
    missing = k - x.shape[axis]
    if missing == 0:
        return x
    shape = list(x.shape)
    shape[axis] = missing
    return torch.cat([x, x.new_zeros(shape)], dim=axis)
