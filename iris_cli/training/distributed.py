"""The ranks of a run: one process for each device, all taking every step together.

`joined` makes this process a rank of what torchrun or `launch` started, or leaves it alone. Rank 0
writes the run folder and decides what depends on time; the others wait for it. Numbers cross on the
CPU (gloo), where a process that ended is noticed at once and one that hangs after a time limit;
gradients cross on the device (NCCL on CUDA), in a fixed order, so that a resumed run adds up alike.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast, overload

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from iris_cli.errors import EnvironmentProblem, IrisError, UsageError
from iris_cli.training.settings import TrainingSettings

T = TypeVar("T")

# How long the others wait for rank 0 where it does what they do not: a validation takes hours.
PATIENCE = timedelta(days=7)
# Gradients are added up in pieces of so many numbers, a copy of one piece at a time.
_PIECE = 1 << 24


class RankLost(EnvironmentProblem):
    """Another rank of the run has ended or does not answer; its own message says why."""


class Ranks(Protocol):
    """What the loop needs of the processes that train together; every one makes the same calls.

    `what` names the occasion, for the message of a rank that waits in vain.
    """

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def backend(self) -> str | None: ...

    def sum(self, values: Sequence[float], what: str) -> list[float]:
        """Sums over all ranks."""

    def add_gradients(self, gradients: Sequence[torch.Tensor], what: str) -> None:
        """Replace every tensor by its sum over all ranks: the same bits in each."""

    def gather(self, item: T, what: str) -> list[T]:
        """What every rank has, in the order of ranks."""

    def from_first(self, make: Callable[[], T], what: str) -> T:
        """What `make` returns in rank 0, or its error, in every rank; however long it takes."""


class Alone:
    """One process: nothing to agree on."""

    rank = 0
    world = 1
    backend = None

    def sum(self, values: Sequence[float], what: str) -> list[float]:
        return list(values)

    def add_gradients(self, gradients: Sequence[torch.Tensor], what: str) -> None:
        return

    def gather(self, item: T, what: str) -> list[T]:
        return [item]

    def from_first(self, make: Callable[[], T], what: str) -> T:
        return make()


ALONE = Alone()


def slots_of(ranks: Ranks, settings: TrainingSettings) -> range:
    """The slots of a step whose episodes this rank takes.

    raises UsageError where they cannot be shared out evenly.
    """
    if settings.batch % ranks.world:
        raise UsageError(
            "the episodes of a step cannot be shared out evenly",
            found=f"batch {settings.batch} over {ranks.world} ranks",
            expected=f"a batch that is a multiple of {ranks.world}",
            fix="use another number of devices, or begin a run with another training.batch",
        )
    each = settings.batch // ranks.world
    return range(ranks.rank * each, (ranks.rank + 1) * each)


@dataclass(frozen=True)
class RankEpisodes(Sequence[int]):
    """Indices of the episodes one rank makes, from step `first_step` to the end of a run.

    Of the `batch` slots of each step they are the `each` from slot `first`; over all ranks every
    index step * batch + slot comes once, whatever the number of ranks.
    """

    first_step: int
    steps: int
    batch: int
    first: int
    each: int

    @classmethod
    def of(cls, ranks: Ranks, settings: TrainingSettings, first_step: int) -> RankEpisodes:
        """raises UsageError as `slots_of` does."""
        slots = slots_of(ranks, settings)
        return cls(first_step, settings.steps, settings.batch, slots.start, len(slots))

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.each

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[int]: ...
    def __getitem__(self, at: int | slice) -> int | Sequence[int]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not 0 <= at < len(self):
            raise IndexError(at)
        step, slot = divmod(at, self.each)
        return (self.first_step + step) * self.batch + self.first + slot


@dataclass(frozen=True)
class Place:
    """Where a launcher (torchrun, `launch`) put this process.

    local: number among the ranks of this machine. restarts: how often the launcher starts all
    ranks again when one of them ends with another exit code than 0.
    """

    rank: int
    local: int
    restarts: int

    @classmethod
    def of_this_process(cls) -> Place | None:
        """None in a process that no launcher started."""
        told = os.environ
        if not all(name in told for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")):
            return None
        rank = int(told["RANK"])
        local, restarts = told.get("LOCAL_RANK", rank), told.get("TORCHELASTIC_MAX_RESTARTS", 0)
        return cls(rank, int(local), int(restarts))


@contextlib.contextmanager
def joined(device: torch.device, timeout_s: float) -> Iterator[Ranks]:
    """This process as one rank of what was launched, or alone.

    timeout_s: how long a rank waits for the others where all do the same.
    raises RankLost where another rank ended, or did not come in time; EnvironmentProblem where the
    ranks do not find each other.
    """
    if Place.of_this_process() is None:
        yield ALONE
        return
    ranks = _Group(device, timeout_s)
    try:
        yield ranks
    except BaseException:
        ranks.leave()
        raise
    ranks.end()


class _Group:
    """A rank of several."""

    def __init__(self, device: torch.device, timeout_s: float) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self.backend = "nccl" if device.type == "cuda" else "gloo"
        self._timeout = timedelta(seconds=timeout_s)
        try:
            self._store, self.rank, self.world = next(iter(rendezvous("env://")))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=PrefixStore(f"group {_attempt()}", self._store),
                rank=self.rank,
                world_size=self.world,
                timeout=self._timeout,
            )
            self._patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError, OSError) as error:
            raise EnvironmentProblem(
                "the processes of this run did not find each other",
                found=error,
                fix="see docs/training.md, Several devices",
            ) from error
        self._calls = 0

    def sum(self, values: Sequence[float], what: str) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64)
        with self._together(what):
            dist.all_reduce(total)
        found: list[float] = total.tolist()
        return found

    def add_gradients(self, gradients: Sequence[torch.Tensor], what: str) -> None:
        for piece in _pieces(gradients):
            flat = torch.cat([tensor.flatten() for tensor in piece])
            # What is made here may find no memory; only in between can another rank be at fault.
            with self._together(what):
                self._add_up(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in piece])
            for tensor, part in zip(piece, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def _add_up(self, values: torch.Tensor) -> None:
        work = dist.all_reduce(values, async_op=True)
        # With a time limit NCCL waits here and raises here; without one it would return at once,
        # and its watchdog would end the process later without a word about who was missing.
        work.wait(self._timeout)

    def gather(self, item: T, what: str) -> list[T]:
        found: list[Any] = [None] * self.world
        with self._together(what):
            dist.all_gather_object(found, item)
        return found

    def from_first(self, make: Callable[[], T], what: str) -> T:
        if self.rank:
            found = self._broadcast(None, what)
            if isinstance(found, IrisError):
                raise found
            return cast(T, found)
        try:
            made = make()
        except Exception as error:
            with contextlib.suppress(RankLost):
                self._broadcast(_sendable(error), what)
            raise
        self._broadcast(made, what)
        return made

    def _broadcast(self, item: Any, what: str) -> Any:
        box = [item]
        with self._together(what):
            dist.broadcast_object_list(box, src=0, group=self._patient)
        return box[0]

    @contextlib.contextmanager
    def _together(self, what: str) -> Iterator[None]:
        """Note in the store what this rank waits for; who has not come is named if it fails."""
        self._calls += 1
        began = time.monotonic()
        with contextlib.suppress(RuntimeError):  # its keeper may be gone; only messages need it
            self._store.set(f"at/{self.rank}", f"{self._calls} {what}")
        try:
            yield
        except (RuntimeError, ValueError) as error:
            said = str(error).lower()
            timed_out = "timed out" in said or "timeout" in said
            raise self._lost(what, time.monotonic() - began, timed_out) from error

    def _lost(self, what: str, waited_s: float, timed_out: bool) -> RankLost:
        missing = self._missing()
        who = ", ".join(f"rank {rank} ({at})" for rank, at in missing) or "a rank"
        return RankLost(
            f"rank {self.rank} waited {waited_s:.0f} s for the others: {what}; {who} "
            + ("has not answered" if timed_out else "has ended"),
            fix="see the messages of the other ranks; run the same line again to go on"
            + (" (training.timeout_s sets the time limit)" if timed_out else ""),
        )

    def _missing(self) -> list[tuple[int, str]]:
        """Ranks that had not come to this call, and what they did last."""
        found = []
        for rank in range(self.world):
            try:
                known = self._store.check([f"at/{rank}"])
                at = self._store.get(f"at/{rank}").decode() if known else "0 the start"
            except (RuntimeError, ValueError):
                return []  # the store was kept by a process that is gone
            calls, _, what = at.partition(" ")
            if int(calls) < self._calls:
                found.append((rank, f"last seen at {what}"))
        return found

    def end(self) -> None:
        """Leave in order."""
        dist.destroy_process_group()

    def leave(self) -> None:
        """Leave after an error: connections are closed, so that the others notice at once.

        NCCL would wait for the others first; its process ends soon anyway.
        """
        if self.backend == "gloo":
            dist.destroy_process_group()


def _attempt() -> str:
    """Which start of the ranks this is: addresses of an earlier one may still be in the store."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _pieces(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    piece: list[torch.Tensor] = []
    for tensor in tensors:
        if piece and sum(t.numel() for t in piece) + tensor.numel() > _PIECE:
            yield piece
            piece = []
        piece.append(tensor)
    if piece:
        yield piece


def _sendable(error: Exception) -> IrisError:
    if isinstance(error, IrisError):
        return error
    return RankLost(f"rank 0 failed: {type(error).__name__}: {error}")
