"""Workers of a dask cluster that can do the cases: found and greeted in the background.

A worker counts from its answer to a greeting on. One that is frozen does not answer, and holds up
nothing but its own greeting. All questions are asked in the loop of the client, which has a thread
of its own: the thread that keeps the schedule notices signals while a scheduler keeps silent.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from iris_cli import __version__

_SILENT_S = 30.0
# Between two looks while nobody works.
_HURRY_S = 0.5
_LOG = logging.getLogger(__name__)


class Workers:
    """What is known of the workers of a client.

    folder: one that they have to see. wake: called when something has changed, in another thread.
    look_s: between two looks at who is there.

    there: addresses of all at the last look. fit: of those that can do the cases. refusals: address
    -> why it cannot. problem: why the scheduler could not be asked. answered_at: when it last
    answered, and seen_at: when there was last one that is fit (monotonic; at first, the beginning).
    """

    def __init__(self, client: Any, folder: Path, wake: Callable[[], None], look_s: float) -> None:
        self._client, self._folder, self._wake = client, folder, wake
        self._look_s, self._look_at = look_s, 0.0
        self._looking: asyncio.Task[None] | None = None
        self._greetings: dict[str, asyncio.Task[None]] = {}
        self._greeted_at: dict[str, float] = {}
        self.there: frozenset[str] = frozenset()
        self.fit: frozenset[str] = frozenset()
        self.refusals: dict[str, str] = {}
        self.problem: Exception | None = None
        self.answered_at = self.seen_at = time.monotonic()

    @property
    def unanswered(self) -> list[str]:
        """Addresses of those that have not answered their greeting so far."""
        return sorted(self._greetings)

    def look(self) -> float:
        """See who is there, where that is due; does not wait for the answer.

        Returns the seconds until it is due again.
        """
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + (self._look_s if self.fit else min(self._look_s, _HURRY_S))
            self._client.loop.add_callback(self._begin_look)
        return self._look_at - now

    def close(self) -> None:
        """Ask nothing any more."""
        self._client.loop.add_callback(self._cancel)

    # From here on in the loop of the client.

    def _begin_look(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        try:
            there = frozenset(await self._client.nthreads())
        except Exception as error:
            self.problem = error
            self._wake()
            return
        self.answered_at = time.monotonic()
        self.there, self.fit = there, self.fit & there
        if self.fit:
            self.seen_at = self.answered_at
        for gone in self._greetings.keys() - there:
            self._greetings.pop(gone).cancel()
        for new in there - self.fit - self._greetings.keys():
            self._greeted_at[new] = self.answered_at
            self._greetings[new] = asyncio.ensure_future(self._greet(new))
        self._say_silent()

    async def _greet(self, worker: str) -> None:
        words = (_greeting, str(self._folder))
        try:
            answers = await self._client.run(*words, workers=[worker], on_error="return")
            said = answers[worker]
        except Exception as error:
            said = error
        self._greetings.pop(worker, None)
        if isinstance(said, OSError):
            return  # it has gone, or is greeted again
        why = _misfit(said)
        if why is None:
            self.fit |= {worker}
            self.seen_at = time.monotonic()
        else:
            self.refusals[worker] = why
        self._wake()

    def _say_silent(self) -> None:
        """Say once of each worker that it does not answer."""
        for worker in self.unanswered:
            if self.answered_at - self._greeted_at.get(worker, self.answered_at) >= _SILENT_S:
                del self._greeted_at[worker]
                _LOG.warning("dask worker %s does not answer and gets no case so far", worker)

    def _cancel(self) -> None:
        asked = [*self._greetings.values(), *([self._looking] if self._looking else [])]
        for task in asked:
            task.cancel()


def environment_here() -> str:
    """What has to be the same on every worker."""
    return f"iris {__version__} on Python {sys.version_info.major}.{sys.version_info.minor}"


def _greeting(folder: str) -> tuple[str, str | None]:
    """On a worker: its environment, and what is missing of what it has to see."""
    return environment_here(), None if Path(folder).is_dir() else f"{folder} is not there"


def _misfit(said: object) -> str | None:
    """Why a worker that gave this greeting cannot do the cases; None where it can."""
    if isinstance(said, BaseException):
        return f"iris cannot be loaded ({type(said).__name__}: {said})"
    environment, missing = cast(tuple[str, str | None], said)
    return missing if environment == environment_here() else environment
