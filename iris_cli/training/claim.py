"""One process at a time trains into a run folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from iris_cli.errors import EnvironmentProblem, Stopped
from iris_cli.execution.claims import Claims, read_claim

CLAIMS = ".claims"
_NAME = "run"
_LOOK_S = 1.0


@contextlib.contextmanager
def claimed(
    folder: Path, asked_to_stop: Callable[[], bool], *, claims: Claims | None = None
) -> Iterator[None]:
    """Hold the claim of a run folder, a stale one taken over.

    A holder on this host is seen to live or not at once. Of one on another host only its
    heartbeat can be seen: it is watched until it moves or has been missing for `stale_s`, so that
    a job that a cluster starts again elsewhere goes on by itself.
    raises EnvironmentProblem naming the process that trains here already, Stopped when asked to
    stop while watching.
    """
    with claims or Claims(folder / CLAIMS) as held:
        path = held.path(_NAME)
        first_beat: float | None = None
        while not held.take(_NAME):
            holder, beat = read_claim(path)
            if first_beat is None:
                first_beat = beat
            moves = beat is not None and beat != first_beat
            if holder is not None and (holder.is_gone() is False or moves):
                raise EnvironmentProblem(
                    "another process trains into this run folder",
                    file=folder,
                    found=f"process {holder.pid} on {holder.host}",
                    fix="wait until it has ended or stop it, or train into another folder",
                )
            if asked_to_stop():
                raise Stopped("stopped before training began; nothing was changed", file=folder)
            time.sleep(min(_LOOK_S, held.beat_s))
        try:
            yield
        finally:
            held.release(_NAME)


def claim_file(folder: Path) -> Path:
    """The claim of the process that trains into a run folder."""
    return Claims(folder / CLAIMS).path(_NAME)
