"""Cases that overlap in one process: while one is computed, the next is read, the last written.

A case function that can be overlapped is written as one generator that yields twice, after reading
and after computing:

    @in_steps
    def predict_case(payload):
        volume = read(payload)
        yield
        labels = segment(volume)
        yield
        return CaseResult("done", write(labels))

Called as it is, it is an ordinary case function. A generator may return before a yield, where
nothing is left to do. At most three cases are in work at a time, one in each step, so that memory
stays bounded; what becomes of a case does not depend on what is beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from iris_cli.execution.outcomes import CaseResult
from iris_cli.execution.schedule import Schedule
from iris_cli.execution.signals import StopRequest
from iris_cli.execution.supervisor import raise_if_stopped, wait_for
from iris_cli.execution.worker import CaseFunction, Ran, run_case

Steps = Generator[None, None, CaseResult]
Payload = TypeVar("Payload", contravariant=True)

_GOES_ON = CaseResult("kept", {})
"""Stands for a step that was not the last one."""
_BEGUN = Ran(0.0, None, None)


class SteppedFunction(Protocol[Payload]):
    """A case function whose steps can be taken one by one."""

    steps: Callable[[Any], Steps]

    def __call__(self, payload: Payload) -> CaseResult: ...


def in_steps(steps: Callable[[Payload], Steps]) -> SteppedFunction[Payload]:
    """The case function that takes all steps of a generator function; see the module."""

    @functools.wraps(steps)  # its name, by which it travels to workers
    def function(payload: Payload) -> CaseResult:
        taken = steps(payload)
        while (result := _next(taken)) is _GOES_ON:
            pass
        return result

    stepped = cast(SteppedFunction[Payload], function)
    stepped.steps = steps
    return stepped


def steps_of(function: CaseFunction) -> Callable[[Any], Steps] | None:
    """The steps of a case function that was made of some."""
    return getattr(function, "steps", None)


class OwnTime:
    """How long a case has worked, from here on: without the time that it waits between its steps.

    Used as `with own.paused(): yield`.
    """

    def __init__(self) -> None:
        self._before = 0.0
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._since

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside does not count."""
        self._before = self.seconds
        yield
        self._since = time.perf_counter()


def run_overlapped(schedule: Schedule, steps: Callable[[Any], Steps], stop: StopRequest) -> None:
    """Until every case has an outcome, which is recorded when it is there.

    raises Stopped when asked to stop: cases that were computed are written before, a case that was
    only read is dropped.
    """
    with _Threads(schedule) as threads:
        while True:
            threads.raise_if_stopped(stop)
            case = threads.read_case(steps)
            if case is None:
                threads.written()  # what it writes may be what others wait for
                if not schedule.has_more:
                    return
                wait_for([], stop, schedule.wait_s())
                continue
            threads.read_ahead(steps)
            threads.raise_if_stopped(stop)
            threads.compute(case)


@dataclass
class _Case:
    """A case in work. ran: seconds so far; without result and error until the last step."""

    index: int
    steps: Steps
    ran: Ran = _BEGUN

    @property
    def has_ended(self) -> bool:
        return self.ran.result is not None or self.ran.error is not None

    def step(self) -> None:
        """Take one more step, of a case that has not ended."""
        now = run_case(_next, self.steps)
        seconds = self.ran.seconds + now.seconds
        result = None if now.result is _GOES_ON else now.result
        self.ran = dataclasses.replace(now, seconds=seconds, result=result)


def _next(steps: Steps) -> CaseResult:
    try:
        next(steps)
    except StopIteration as end:
        return cast(CaseResult, end.value)
    return _GOES_ON


class _Threads:
    """One thread that reads and one that writes; the caller's computes and hands cases out."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._reader = ThreadPoolExecutor(1, "iris-read")
        self._writer = ThreadPoolExecutor(1, "iris-write")
        self._reading: Future[_Case] | None = None
        self._writing: Future[_Case] | None = None

    def __enter__(self) -> _Threads:
        return self

    def __exit__(self, *exception: object) -> None:
        self._reader.shutdown(cancel_futures=True)
        self.written()
        self._writer.shutdown()

    def raise_if_stopped(self, stop: StopRequest) -> None:
        """Raise Stopped if asked to, with what was computed written before."""
        if stop.requested:
            self.written()
            raise_if_stopped(self._schedule, stop)

    def read_ahead(self, steps: Callable[[Any], Steps]) -> None:
        """Begin to read the next case, where there is one and none is being read."""
        if self._reading is not None or (index := self._schedule.take()) is None:
            return
        case = _Case(index, steps(self._schedule.jobs[index].payload))
        self._reading = self._reader.submit(self._step, case)

    def read_case(self, steps: Callable[[Any], Steps]) -> _Case | None:
        """The next case, read; None where there is none right now."""
        self.read_ahead(steps)
        reading, self._reading = self._reading, None
        return None if reading is None else reading.result()

    def compute(self, case: _Case) -> None:
        """Take the next step of a case that was read, and begin the last one after it."""
        if not case.has_ended and not self._step(case).has_ended:
            self.written()
            self._writing = self._writer.submit(self._step, case)

    def written(self) -> None:
        """Wait for the case that is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _step(self, case: _Case) -> _Case:
        """Take a step; where it was the last one, others see the outcome from now on."""
        case.step()
        if case.has_ended:
            self._schedule.record(case.index, case.ran)
        return case
