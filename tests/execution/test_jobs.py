"""The supervisor: what becomes of cases whose function raises, hangs, or kills its process."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from iris_cli.errors import (
    DataRefused,
    EnvironmentProblem,
    Interrupted,
    IrisError,
    SomeCasesFailed,
    Stopped,
    UsageError,
)
from iris_cli.execution.claims import Claims, Holder
from iris_cli.execution.failures import read_failures
from iris_cli.execution.jobs import CaseJob, RunSummary, run_cases
from iris_cli.execution.progress import SilentProgress
from iris_cli.execution.schedule import Rules, Schedule
from iris_cli.execution.signals import StopRequest
from tests.execution.case_functions import (
    Order,
    environment_of_worker,
    perform,
    publish_once,
)


def jobs(*orders: Order) -> list[CaseJob]:
    return [CaseJob(f"case_{index}", order) for index, order in enumerate(orders)]


def run(*orders: Order, workers: int = 0, **options: object) -> RunSummary:
    return run_cases(jobs(*orders), perform, workers=workers, **options)  # type: ignore[arg-type]


def statuses(summary: RunSummary) -> list[str]:
    return [outcome.status for outcome in summary.outcomes]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_outcomes_are_the_same_for_any_number_of_workers(workers: int) -> None:
    orders = [Order("work", 1), Order("refuse"), Order("keep", 3), Order("crash"), Order("work", 5)]
    summary = run(*orders, workers=workers)
    assert [outcome.name for outcome in summary.outcomes] == [f"case_{i}" for i in range(5)]
    assert statuses(summary) == ["done", "failed", "kept", "failed", "done"]
    assert [o.result.receipt["value"] for o in summary.outcomes if o.result] == [1, 3, 5]
    refused, crashed = (outcome.error or {} for outcome in summary.failed)
    assert {key: refused[key] for key in ("problem", "file", "found", "expected", "fix")} == {
        "problem": "no voxel",
        "file": "a.nii.gz",
        "found": "0",
        "expected": "1",
        "fix": "another file",
    }
    assert (refused["exit_code"], refused["kind"]) == (4, "DataRefused")
    assert crashed["problem"] == "KeyError: 'spacing'"
    assert crashed["stage"] == "resampling"
    assert "Traceback" in crashed["debug"]
    assert "Traceback" not in crashed["problem"]
    assert summary.exit_code == 3


def test_poison_case_is_recorded_and_the_rest_is_done() -> None:
    summary = run(Order("work"), Order("kill"), Order("work"), Order("work"), workers=2)
    assert statuses(summary) == ["done", "failed", "done", "done"]
    error = summary.failed[0].error or {}
    assert error["problem"].startswith("killed (SIGKILL")
    assert summary.exit_code == 3
    with pytest.raises(SomeCasesFailed, match="case_1: killed"):
        summary.raise_for_failures()


def test_a_killed_worker_costs_its_case_one_retry(tmp_path: Path) -> None:
    orders = [Order("kill once", 0, tmp_path), Order("work"), Order("kill once", 2, tmp_path)]
    assert statuses(run(*orders, workers=2)) == ["done", "done", "done"]


def test_other_deaths_are_named() -> None:
    summary = run(Order("kill", signal.SIGSEGV), Order("exit"), workers=1)
    problems = [(outcome.error or {})["problem"] for outcome in summary.outcomes]
    assert problems == [
        "killed (SIGSEGV; a crash in native code)",
        "the worker process ended (exit status 7)",
    ]
    assert summary.exit_code == 5


def test_a_case_over_the_time_limit_fails_and_the_rest_is_done() -> None:
    summary = run(Order("sleep", 60), Order("work"), workers=1, timeout_s=0.4)
    assert statuses(summary) == ["failed", "done"]
    error = summary.failed[0].error or {}
    assert error["problem"] == "took longer than 0.4 s"
    assert "--case-timeout" in error["fix"]


def test_a_time_limit_needs_workers() -> None:
    with pytest.raises(UsageError, match="needs worker processes"):
        run(Order("work"), timeout_s=1.0)


def test_a_worker_that_gives_no_sign_of_life_is_a_hang_with_its_stage() -> None:
    summary = run(Order("stop", 0.5), Order("work"), workers=1, silence_s=1.0)
    assert statuses(summary) == ["failed", "done"]
    error = summary.failed[0].error or {}
    assert error["problem"] == "hung: no sign of life for 1 s"
    assert (error["kind"], error["stage"]) == ("Hung", "waiting for the disk")
    assert summary.exit_code == 3


def test_a_case_that_works_longer_than_the_silence_does_not_hang() -> None:
    assert statuses(run(Order("sleep", 1.2), workers=1, silence_s=0.5)) == ["done"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_of_others_comes_with_case_file_and_stage(
    workers: int, tmp_path: Path
) -> None:
    summary = run(Order("work"), Order("crash in stage", 0, tmp_path / "x.mha"), workers=workers)
    (failed,) = summary.failed
    error = failed.error or {}
    assert failed.name == "case_1"
    assert error["problem"] == "ZeroDivisionError: no width"
    assert (error["stage"], error["file"]) == ("resampling", str(tmp_path / "x.mha"))


def test_workers_compute_with_one_passive_thread() -> None:
    before = dict(os.environ)
    summary = run_cases(jobs(Order("work")), environment_of_worker, workers=1)
    assert summary.outcomes[0].result is not None
    receipt = summary.outcomes[0].result.receipt
    assert receipt["OMP_NUM_THREADS"] == "1"
    assert receipt["OMP_WAIT_POLICY"].lower() == "passive"
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("orders", "code", "error"),
    [
        ([Order("work")], 0, None),
        ([Order("refuse"), Order("refuse")], 4, DataRefused),
        ([Order("refuse"), Order("work")], 3, SomeCasesFailed),
        ([Order("refuse"), Order("crash")], 3, SomeCasesFailed),
        ([Order("crash")], 1, IrisError),
        ([Order("work"), Order("disk full")], 5, EnvironmentProblem),
    ],
)
def test_exit_codes(orders: Sequence[Order], code: int, error: type[IrisError] | None) -> None:
    summary = run(*orders)
    assert summary.exit_code == code
    if error is None:
        summary.raise_for_failures()
    else:
        with pytest.raises(error) as caught:
            summary.raise_for_failures()
        assert caught.value.exit_code == code


def test_failures_of_the_environment_in_a_row_end_the_job() -> None:
    summary = run(*[Order("disk full")] * 3, Order("work"), Order("work"))
    assert statuses(summary) == ["failed"] * 5
    assert (summary.failed[-1].error or {})["problem"].startswith("not started: the disk is full")
    assert summary.exit_code == 5


def test_cases_that_were_not_started_have_not_failed(tmp_path: Path) -> None:
    rules = Rules(failures=tmp_path / "failed")
    with Claims(tmp_path / "claims") as others:
        assert others.take("case_0")
        orders = [Order("work"), *[Order("disk full")] * 3, Order("work")]
        summary = run(*orders, rules=rules, claims=tmp_path / "claims")
    # The first one is done by another process; the last one by whoever comes next.
    tried, not_started = ["case_1", "case_2", "case_3"], "case_4"
    assert [outcome.name for outcome in summary.outcomes] == [*tried, not_started]
    assert (summary.failed[-1].error or {})["problem"].startswith("not started")
    assert summary.exit_code == 5
    assert list(read_failures(tmp_path / "failed")) == tried


def test_an_input_that_may_not_be_read_is_the_failure_of_its_case(tmp_path: Path) -> None:
    unreadable = Order("may not read", 0, tmp_path / "query.nii.gz")
    summary = run(*[Order("work")] * 9, unreadable)
    assert summary.exit_code == 3
    assert (summary.failed[0].error or {})["file"] == str(tmp_path / "query.nii.gz")
    assert statuses(run(*[unreadable] * 4, Order("work"))) == ["failed"] * 4 + ["done"]
    assert run(unreadable, unreadable).exit_code == 4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_cannot_be_written_ends_the_job(tmp_path: Path, number: int) -> None:
    summary = run(*[Order("errno", number, tmp_path / "out")] * 3, Order("work"))
    assert statuses(summary) == ["failed"] * 4
    assert summary.exit_code == 5


def test_an_output_folder_that_may_not_be_written_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    existing = tmp_path / "old.nii.gz"
    existing.touch()
    for path in (tmp_path / "new", existing):
        summary = run(*[Order("may not read", 0, path)] * 3, Order("work"))
        assert statuses(summary) == ["failed"] * 4
        assert summary.exit_code == 5


@pytest.mark.parametrize("kind", ["cpu memory", "device memory", "volume memory"])
def test_out_of_memory_is_the_failure_of_its_case(kind: str) -> None:
    summary = run(*[Order(kind)] * 3, Order("work"))
    assert statuses(summary) == ["failed"] * 3 + ["done"]
    assert summary.exit_code == 3
    error = summary.failed[0].error or {}
    assert error["problem"].startswith("not enough memory")
    assert "defect" not in (error["fix"] or "")
    assert run(Order(kind), Order(kind)).exit_code == 5


def test_a_stop_request_hands_out_no_more_cases(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.request("SIGTERM")
    with pytest.raises(Stopped, match="0 of 2 cases") as caught:
        run_cases(jobs(*[Order("work", i, tmp_path) for i in range(2)]), publish_once, stop=stop)
    assert caught.value.exit_code == 75
    assert not (tmp_path / "computed.txt").exists()


def send_when_started(folder: Path, *signals: signal.Signals) -> threading.Thread:
    """Send signals to this process, the first one when a case has left its trace in `folder`."""

    def send() -> None:
        while not (folder / "started").exists():
            time.sleep(0.01)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(0.2)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_finishes_the_case_in_work_and_stops(
    tmp_path: Path, workers: int, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    thread = send_when_started(tmp_path, number)
    with pytest.raises(Stopped, match=f"stopped by {number.name}: 1 of 9 cases"):
        run(*[Order("sleep", 0.5, tmp_path)] * 9, workers=workers)
    thread.join()
    assert signal.getsignal(number) is before


def test_a_case_longer_than_the_grace_period_is_dropped(tmp_path: Path) -> None:
    thread = send_when_started(tmp_path, signal.SIGTERM)
    started = time.monotonic()
    with pytest.raises(Stopped, match="0 of 1"):
        run(Order("sleep", 60, tmp_path), workers=1, grace_s=0.1)
    thread.join()
    assert time.monotonic() - started < 20


def test_the_time_limit_of_a_stop_request_stops() -> None:
    with pytest.raises(Stopped, match=r"--stop-after 0.2 s: [1-9] of 99"):
        run(*[Order("sleep", 0.05)] * 99, stop=StopRequest(0.2))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_second_interrupt_ends_the_work_at_once(tmp_path: Path, workers: int) -> None:
    thread = send_when_started(tmp_path, signal.SIGINT, signal.SIGINT)
    with pytest.raises(Interrupted):
        run(Order("sleep", 60, tmp_path), workers=workers)
    thread.join()


def test_processes_that_share_a_folder_compute_every_case_once(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from iris_cli.execution.jobs import CaseJob, run_cases
        from tests.execution.case_functions import Order, publish_once
        folder = Path({str(tmp_path)!r})
        jobs = [CaseJob(f"c{{i}}", Order("work", i, folder)) for i in range(12)]
        run_cases(jobs, publish_once, claims=folder / "claims").raise_for_failures()
        """
    )
    processes = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    computed = (tmp_path / "computed.txt").read_text().split()
    assert sorted(map(int, computed)) == list(range(12))
    assert not (tmp_path / "claims").exists()


def test_a_script_without_main_guard_can_use_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from iris_cli.execution.jobs import CaseJob, run_cases\n"
        "from tests.execution.case_functions import Order, perform\n"
        "summary = run_cases([CaseJob('a', Order('work'))], perform, workers=1)\n"
        "assert summary.exit_code == 0, summary\n"
    )
    root = Path(__file__).resolve().parents[2]  # a script finds only what lies beside it
    environment = {**os.environ, "PYTHONPATH": str(root)}
    ran = subprocess.run([sys.executable, script], timeout=60, check=False, env=environment)
    assert ran.returncode == 0


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import multiprocessing, pathlib, threading, time
        from iris_cli.execution.jobs import CaseJob, run_cases
        from tests.execution.case_functions import Order, perform
        folder = pathlib.Path({str(tmp_path)!r})
        def tell():
            while not (folder / "started").exists():
                time.sleep(0.01)
            print(multiprocessing.active_children()[0].pid, flush=True)
        threading.Thread(target=tell).start()
        run_cases([CaseJob("a", Order("sleep", 60, folder))], perform, workers=1)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_signals_that_reach_the_workers_too_are_left_to_the_supervisor(tmp_path: Path) -> None:
    def send_to_workers() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        for child in multiprocessing.active_children():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(int(child.pid or 0), number)

    thread = threading.Thread(target=send_to_workers)
    thread.start()
    summary = run(Order("sleep", 0.5, tmp_path), workers=1)
    thread.join()
    assert statuses(summary) == ["done"]
    assert summary.outcomes[0].seconds < 5


def test_a_function_that_cannot_be_sent_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="worker process"):
        run_cases(jobs(Order("work")), lambda _: None, workers=1)  # type: ignore[arg-type,return-value]


def test_two_cases_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two cases are called 'a'"):
        run_cases([CaseJob("a", Order("work"))] * 2, perform)


def test_no_cases_are_no_failure() -> None:
    assert run(workers=2).exit_code == 0


def test_a_payload_that_cannot_be_sent_fails_its_case_only() -> None:
    cases = [CaseJob("a", threading.Lock()), CaseJob("b", Order("work"))]
    summary = run_cases(cases, perform, workers=1)
    assert statuses(summary) == ["failed", "done"]
    assert "pickle" in (summary.failed[0].error or {})["problem"]


def test_cases_held_elsewhere_come_last_and_are_kept(tmp_path: Path) -> None:
    with Claims(tmp_path / "claims") as others:
        assert others.take("case_0")

        def finish_elsewhere() -> None:
            time.sleep(0.5)
            publish_once(Order("work", 0, tmp_path))
            others.release("case_0")

        thread = threading.Thread(target=finish_elsewhere)
        thread.start()
        cases = jobs(*[Order("work", value, tmp_path) for value in range(3)])
        summary = run_cases(cases, publish_once, claims=tmp_path / "claims")
        thread.join()
    assert statuses(summary) == ["kept", "done", "done"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_strict_job_ends_at_the_first_failure_with_its_exit_code(
    tmp_path: Path, workers: int
) -> None:
    orders = [Order("work"), Order("refuse"), Order("work"), Order("refuse")]
    rules = Rules(strict=True, failures=tmp_path)
    summary = run(*orders, workers=workers, rules=rules)
    assert statuses(summary) == ["done", "failed"]
    assert summary.exit_code == 4
    assert summary.ended_by == summary.outcomes[1]
    assert list(read_failures(tmp_path)) == ["case_1"]


def test_a_strict_job_finishes_what_is_in_work(tmp_path: Path) -> None:
    orders = [Order("sleep", 1, tmp_path), Order("kill"), Order("work"), Order("work")]
    summary = run(*orders, workers=2, rules=Rules(strict=True))
    # The second case is killed at once, tried again when the others are done, and then fails.
    assert statuses(summary) == ["done", "failed", "done", "done"]
    orders = [Order("sleep", 1, tmp_path), Order("refuse"), *[Order("sleep", 1)] * 9]
    summary = run(*orders, workers=2, rules=Rules(strict=True))
    assert statuses(summary)[:2] == ["done", "failed"]
    assert len(summary.outcomes) <= 3
    assert summary.exit_code == 4


def test_a_failure_is_noted_at_once_and_forgotten_when_the_case_is_done(tmp_path: Path) -> None:
    rules, stop = Rules(failures=tmp_path), StopRequest(0.5)
    with pytest.raises(Stopped):
        run(Order("refuse"), *[Order("sleep", 0.3)] * 9, rules=rules, stop=stop)
    assert read_failures(tmp_path)["case_0"]["problem"] == "no voxel"
    run(Order("work"), rules=rules)
    assert not read_failures(tmp_path)


def test_cases_held_elsewhere_can_be_left_alone(tmp_path: Path) -> None:
    with Claims(tmp_path / "claims") as others:
        assert others.take("case_0")
        orders = [Order("work", value, tmp_path) for value in range(3)]
        rules = Rules(waits=False)
        summary = run_cases(jobs(*orders), publish_once, claims=tmp_path / "claims", rules=rules)
    assert [outcome.name for outcome in summary.outcomes] == ["case_1", "case_2"]


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_case_of_a_lost_node_is_taken_over_by_one_that_leaves_cases_alone(
    tmp_path: Path, is_lost: bool
) -> None:
    elsewhere = {**Holder.this_process().__dict__, "host": "node-17"}
    (tmp_path / "case_0.claim").write_text(json.dumps(elsewhere))
    beat = time.time() - (3600 if is_lost else 0)
    os.utime(tmp_path / "case_0.claim", (beat, beat))
    with Claims(tmp_path, stale_s=0.3) as claims:
        schedule = Schedule(jobs(Order("work")), claims, SilentProgress(), Rules(waits=False))
        assert schedule.take() is None
        assert schedule.has_more == is_lost
        ends = time.monotonic() + 10
        while schedule.has_more and time.monotonic() < ends:
            time.sleep(schedule.wait_s() or 0.0)
            if schedule.take() is not None:
                return
    assert not is_lost


def test_a_host_whose_clock_is_wrong_is_not_lost(tmp_path: Path) -> None:
    claim = tmp_path / "a.claim"
    claim.write_text(json.dumps({**Holder.this_process().__dict__, "host": "node-17"}))
    with Claims(tmp_path) as claims:
        for age_s, seems_lost in ((3600, True), (3585, False)):
            beat = time.time() - age_s
            os.utime(claim, (beat, beat))
            assert not claims.take("a")
            assert claims.may_be_lost("a") == seems_lost


@pytest.mark.parametrize("failed", [True, False])
def test_half_a_note_of_a_killed_process_is_none_and_goes(tmp_path: Path, failed: bool) -> None:
    half = tmp_path / ".case_0.json.999999999-0badcafe.partial.json"
    half.write_text('{"problem": "x"}')
    assert not read_failures(tmp_path)
    run(Order("refuse" if failed else "work"), rules=Rules(failures=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["case_0.json"] * failed


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_gets_payloads_of_its_number(tmp_path: Path, workers: int) -> None:
    def assign(order: Order, number: int) -> Order:
        return Order(order.do, number, tmp_path)

    # With one worker, the one in the place of the killed one has its number.
    orders = [Order("kill once" if workers == 1 else "work"), *[Order("work")] * 5]
    summary = run(*orders, workers=workers, assign=assign)
    numbers = [o.result.receipt["value"] for o in summary.outcomes if o.result is not None]
    assert len(numbers) == 6
    assert set(numbers) <= set(range(workers))
