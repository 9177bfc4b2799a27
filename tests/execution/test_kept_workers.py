"""Workers that go on from one job to the next."""

from __future__ import annotations

import os
import signal

from iris_cli.execution.jobs import CaseJob, CaseResult, run_cases
from iris_cli.execution.kept_workers import KeptWorkers
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


def test_a_worker_of_another_function_is_not_used() -> None:
    with KeptWorkers() as kept:
        (first,) = processes(kept, Order("work"))
        other = run_cases([CaseJob("a", Order("work"))], perform, workers=1, kept=kept)
        assert other.exit_code == 0
        assert first is not None
        assert not process_is_alive(first)
