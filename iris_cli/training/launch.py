"""Starting the ranks of a run on this machine, one process for each device.

torchrun does the same over several machines; this needs no second command, forwards every signal
that asks to stop, and ends with the exit code of the run. The parent keeps the store by which the
ranks find each other, so that it outlives any of them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

from iris_cli.errors import EnvironmentProblem, IrisError
from iris_cli.execution.outcomes import is_out_of_memory
from iris_cli.execution.signals import StopRequest, blocked, unblock
from iris_cli.execution.threads import limit_torch
from iris_cli.training.distributed import PATIENCE, RankLost

T = TypeVar("T")

Work = Callable[[str, StopRequest], T]
"""What one rank does with its device; picklable, as what it returns."""

# When a rank has ended with an error the others notice by themselves; then they are ended.
GRACE_S = 20.0
KILL_S = 5.0


def launch(
    work: Work[T], devices: Sequence[str], stop: StopRequest, *, threads: int | None = None
) -> T:
    """Run `work` in one process for each device; returns what rank 0 returns.

    threads: of the computation in each process; default: the cores shared out.
    raises the error of the first rank that had one of its own, EnvironmentProblem where a process
    died. Whatever happens, no process is left behind.
    """
    import torch
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    threads = threads or max(1, torch.get_num_threads() // len(devices))
    children: list[_Child[T]] = []
    try:
        for rank, device in enumerate(devices):
            place = _Place(rank, len(devices), store.port, device, threads)
            children.append(_Child.start(work, place))
        _watch(children, stop)
    finally:
        for child in children:
            child.end(time.monotonic() + (KILL_S if sys.exc_info()[0] is None else 0.0))
    return _outcome(children)


@dataclass(frozen=True)
class _Place:
    """Which rank a process is, and where it finds the others."""

    rank: int
    world: int
    port: int
    device: str
    threads: int

    def environment(self) -> dict[str, str]:
        """As torchrun tells its processes."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.rank),
            "WORLD_SIZE": str(self.world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }


@dataclass
class _Child(Generic[T]):
    """A rank as its parent sees it."""

    rank: int
    process: SpawnProcess
    pipe: Connection
    result: list[T] = field(default_factory=list)
    error: IrisError | None = None

    @classmethod
    def start(cls, work: Work[T], place: _Place) -> _Child[T]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        name = f"iris-rank-{place.rank}"
        process = context.Process(target=_rank_main, args=(work, place, theirs), name=name)
        with blocked():
            # A signal that reaches the whole job must not end a rank while it imports torch.
            process.start()
        theirs.close()
        return cls(place.rank, process, ours)

    @property
    def failed(self) -> bool:
        return self.error is not None or self.process.exitcode not in (None, 0)

    def ask_to_stop(self, reason: str) -> None:
        with contextlib.suppress(OSError):
            # A Ctrl-C that the terminal gives to the rank as well must not count as the second.
            self.pipe.send("Ctrl-C" if reason == "SIGINT" else reason)

    def read(self) -> None:
        """What the rank sent, if it did: its result or its error."""
        with contextlib.suppress(EOFError, OSError):
            while self.pipe.poll():
                kind, content = self.pipe.recv()
                if kind == "result":
                    self.result.append(content)
                else:
                    self.error = content

    def end(self, until: float) -> None:
        """Wait for the process to end by itself until then; kill it otherwise."""
        self.process.join(max(0.0, until - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.read()
        self.pipe.close()


def _watch(children: Sequence[_Child[Any]], stop: StopRequest) -> None:
    """Return when all have ended, or some time after one has failed; pass a stop on."""
    asked = False
    give_up: float | None = None
    alive = list(children)
    while alive and (give_up is None or time.monotonic() < give_up):
        # A time limit has no file descriptor: it is looked at every second.
        wait([c.process.sentinel for c in alive] + _wakers(stop, asked), timeout=1.0)
        if stop.requested and not asked:
            asked = True
            for child in alive:
                child.ask_to_stop(stop.reason or "")
        for child in alive:
            child.read()
        alive = [child for child in alive if child.process.is_alive()]
        if give_up is None and any(child.failed for child in children):
            give_up = time.monotonic() + GRACE_S


def _wakers(stop: StopRequest, asked: bool) -> list[int]:
    return [stop.fileno()] if not asked and stop.fileno() >= 0 else []


def _outcome(children: Sequence[_Child[T]]) -> T:
    errors = [child.error for child in children if child.error is not None]
    own = [error for error in errors if not isinstance(error, RankLost)]
    if own:
        raise own[0]
    for child in children:
        if child.error is None and not child.result:
            raise EnvironmentProblem(
                f"rank {child.rank} has ended: {_how(child.process.exitcode)}; so the others were "
                "ended too",
                fix="look for what killed it (memory?); run the same line again to go on",
            )
    if errors:
        raise errors[0]
    return children[0].result[0]


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by signal {-code} ({signal.Signals(-code).name})"
    return f"exit code {code}"


def _rank_main(work: Work[T], place: _Place, pipe: Connection) -> None:
    """The inside of a rank."""
    os.environ.update(place.environment())
    limit_torch(place.threads)
    try:
        with StopRequest() as stop:
            unblock()
            threading.Thread(target=_listen, args=(pipe, stop), daemon=True).start()
            result = work(place.device, stop)
    except Exception as error:
        known = error if isinstance(error, IrisError) else _error_of(error, place)
        _send(pipe, "error", known)
        sys.exit(known.exit_code)
    _send(pipe, "result", result)


def _error_of(error: Exception, place: _Place) -> IrisError:
    """An exception that is none of ours, as what the parent raises."""
    if is_out_of_memory(error):
        return EnvironmentProblem(
            f"not enough memory in rank {place.rank}, on {place.device}",
            found=str(error).strip().partition("\n")[0],
            fix="set training.recompute, or training.accumulation in a new run; on a CPU close "
            "other programs",
        )
    problem = f"a defect in iris, in rank {place.rank}: {type(error).__name__}: {error}"
    return IrisError(problem, found=traceback.format_exc())


def _send(pipe: Connection, kind: str, content: Any) -> None:
    with contextlib.suppress(OSError):  # the parent may be gone
        pipe.send((kind, content))


def _listen(pipe: Connection, stop: StopRequest) -> None:
    """Hear the parent ask to stop; when it is gone, stop as well."""
    try:
        while True:
            stop.request(pipe.recv())
    except (EOFError, OSError):
        stop.request("the process that started the ranks is gone")
