"""Workers that go on from one job to the next."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from iris_cli.execution.jobs import CaseJob, CaseResult, RunSummary, run_cases
from iris_cli.execution.kept_workers import KeptWorkers
from iris_cli.execution.parts import Part, run_part
from iris_cli.files.publish import process_is_alive
from tests.execution.case_functions import Order, perform


def process_of(order: Order) -> CaseResult:
    """Do as told, and say in which process."""
    perform(order)
    return CaseResult("done", {"pid": os.getpid()})


def processes(kept: KeptWorkers | None, *orders: Order, workers: int = 1) -> list[int | None]:
    jobs = [CaseJob(f"case_{index}", order) for index, order in enumerate(orders)]
    summary = run_cases(jobs, process_of, workers=workers, kept=kept)
    return [one.result.receipt["pid"] if one.result else None for one in summary.outcomes]


def test_a_worker_serves_job_after_job_and_ends_with_its_keeper() -> None:
    with KeptWorkers() as kept:
        (first,) = processes(kept, Order("work"))
        assert processes(kept, Order("work"), Order("refuse")) == [first, None]
        assert processes(kept, Order("work")) == [first]
        assert first is not None
        assert process_is_alive(first)
        # Gone while there is no job, or in the middle of one: another takes its place.
        os.kill(first, signal.SIGKILL)
        (second,) = processes(kept, Order("work"))
        assert second not in (None, first)
        assert processes(kept, Order("kill")) == [None]
    assert second is not None
    assert not process_is_alive(second)


def together(order: Order) -> CaseResult:
    """Wait until as many processes as `value` are in such a case."""
    assert order.folder is not None
    order.folder.mkdir(exist_ok=True)
    (order.folder / str(os.getpid())).touch()
    while len(list(order.folder.iterdir())) < order.value:
        time.sleep(0.01)
    return CaseResult("done", {"pid": os.getpid()})


def test_a_job_of_few_cases_leaves_the_other_workers_to_later_ones(tmp_path: Path) -> None:
    with KeptWorkers() as kept:

        def at_once(name: str, count: int) -> list[int]:
            jobs = [CaseJob(str(i), Order("work", count, tmp_path / name)) for i in range(count)]
            summary = run_cases(jobs, together, workers=3, kept=kept)
            return sorted(one.result.receipt["pid"] for one in summary.outcomes if one.result)

        first = at_once("first", 3)
        assert set(at_once("second", 1)) < set(first)
        assert at_once("third", 3) == first
    assert not any(process_is_alive(pid) for pid in first)


def test_a_worker_of_another_function_is_not_used() -> None:
    with KeptWorkers() as kept:
        (first,) = processes(kept, Order("work"))
        other = run_cases([CaseJob("a", Order("work"))], perform, workers=1, kept=kept)
        assert other.exit_code == 0
        assert first is not None
        assert not process_is_alive(first)


def test_a_part_that_helps_goes_on_with_its_workers() -> None:
    """Its own cases, and then those that others left, are two jobs."""
    jobs = [CaseJob(f"case_{index}", Order("work")) for index in range(4)]
    part = Part(0, 2, helps=True)
    with KeptWorkers() as kept:

        def run(some: Sequence[CaseJob], waits: bool) -> RunSummary:
            return run_cases(some, process_of, workers=1, kept=kept)

        summary, share = run_part(jobs, part, run, is_done=lambda _: False, failed=dict)
    assert share.helped == 2
    assert len({one.result.receipt["pid"] for one in summary.outcomes if one.result}) == 1
