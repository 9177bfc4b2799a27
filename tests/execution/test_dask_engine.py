"""Cases on a dask cluster of processes of this machine: as on any other engine, whatever dies."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from iris_cli import __version__
from iris_cli.errors import DataRefused, EnvironmentProblem, Stopped, UsageError
from iris_cli.execution import dask_engine, dask_workers
from iris_cli.execution.dask_engine import DaskEngine
from iris_cli.execution.jobs import CaseJob, RunSummary, run_cases
from iris_cli.execution.signals import StopRequest
from tests.execution.case_functions import (
    Order,
    alone_in_its_process,
    environment_of_worker,
    perform,
    publish_once,
)
from tests.execution.test_jobs import jobs, statuses

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A scheduler and two workers, which start again when they are killed."""
    started = distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=2,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
        memory_limit=None,
    )
    with started:
        yield started.scheduler_address


def run(cluster: str, folder: Path, *orders: Order, **options: object) -> RunSummary:
    engine = DaskEngine(cluster, folder, grace_s=1.0)
    return run_cases(jobs(*orders), perform, engine=engine, **options)  # type: ignore[arg-type]


def test_outcomes_are_those_of_other_engines(cluster: str, tmp_path: Path) -> None:
    orders = [Order("work", 1), Order("refuse"), Order("keep", 3), Order("crash"), Order("work", 5)]
    summary = run(cluster, tmp_path, *orders)
    here = run_cases(jobs(*orders), perform)
    assert statuses(summary) == statuses(here)
    assert [o.result for o in summary.outcomes] == [o.result for o in here.outcomes]
    assert [(o.error or {}).get("problem") for o in summary.outcomes] == [
        (o.error or {}).get("problem") for o in here.outcomes
    ]
    assert (summary.exit_code, here.exit_code) == (3, 3)


def test_a_killed_worker_loses_no_case_and_a_poison_case_is_recorded(tmp_path: Path) -> None:
    orders = [Order("kill once", 0, tmp_path), Order("work", 1), Order("kill"), Order("work", 3)]
    summary = run("local:2", tmp_path, *orders)
    assert statuses(summary) == ["done", "done", "failed", "done"]
    error = summary.failed[0].error or {}
    assert error["problem"] == "its dask workers died, 2 of them while it ran alone"
    assert "tcp://127.0.0.1" in error["found"]
    assert summary.exit_code == 3


def test_a_worker_has_one_case_with_one_thread_at_a_time(cluster: str, tmp_path: Path) -> None:
    engine = DaskEngine(cluster, tmp_path)
    orders = [Order("work", value, tmp_path) for value in range(8)]
    claims = tmp_path / "claims"
    summary = run_cases(jobs(*orders), publish_once, engine=engine, claims=claims)
    assert statuses(summary) == ["done"] * 8
    computed = (tmp_path / "computed.txt").read_text().split()
    assert sorted(float(value) for value in computed) == list(range(8))
    assert not claims.exists()
    (outcome,) = run_cases(jobs(Order("work")), environment_of_worker, engine=engine).outcomes
    assert outcome.result is not None
    assert outcome.result.receipt["OMP_NUM_THREADS"] == "1"


def test_lines_that_share_a_cluster_do_not_share_a_worker_at_a_time(
    cluster: str, tmp_path: Path
) -> None:
    def line() -> RunSummary:
        orders = [Order("work", value, tmp_path) for value in range(6)]
        return run_cases(jobs(*orders), alone_in_its_process, engine=DaskEngine(cluster, tmp_path))

    with ThreadPoolExecutor(2) as threads:
        lines = [threads.submit(line) for _ in range(2)]
        assert [statuses(one.result()) for one in lines] == [["done"] * 6] * 2


def test_a_signal_lets_the_cases_in_work_finish_and_begins_no_other(
    cluster: str, tmp_path: Path
) -> None:
    def send() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(Stopped, match="stopped by SIGTERM: 2 of 9 cases"):
        run(cluster, tmp_path, *[Order("sleep", 0.4, tmp_path)] * 9)
    thread.join()


def test_a_case_that_does_not_finish_in_time_is_dropped(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="1 of 3 cases"):
        run(cluster, tmp_path, Order("work"), *[Order("sleep", 4)] * 2, stop=StopRequest(1.0))


def test_a_payload_that_cannot_be_sent_fails_its_case_only(cluster: str, tmp_path: Path) -> None:
    engine = DaskEngine(cluster, tmp_path)
    cases = [jobs(Order("work"))[0], CaseJob("locked", threading.Lock())]
    assert statuses(run_cases(cases, perform, engine=engine)) == ["done", "failed"]


def test_workers_of_another_version_are_refused(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_workers, "__version__", "99.0")
    with pytest.raises(EnvironmentProblem, match="dask workers cannot do") as refused:
        run(cluster, tmp_path, Order("work"))
    assert "iris 99.0" in str(refused.value.expected)
    assert f"iris {__version__}" in str(refused.value.found)


def test_workers_that_do_not_see_the_folder_are_refused(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot do") as refused:
        run(cluster, tmp_path / "elsewhere", Order("work"))
    assert "elsewhere is not there" in str(refused.value.found)


def test_the_file_of_a_scheduler_is_enough(cluster: str, tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"type": "Scheduler", "address": cluster}))
    assert statuses(run(str(file), tmp_path, Order("work"))) == ["done"]
    file.write_text("{}")
    with pytest.raises(DataRefused, match="names no dask scheduler"):
        run(str(file), tmp_path, Order("work"))


def test_a_scheduler_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_engine, "_CONNECT_S", 0.5)
    with pytest.raises(EnvironmentProblem, match="cannot be reached") as refused:
        run("tcp://127.0.0.1:9", tmp_path, Order("work"))
    assert "tcp://127.0.0.1:9" in str(refused.value.found)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def worker_pids(cluster: str) -> dict[str, int]:
    with distributed.Client(cluster, set_as_default=False) as client:
        return dict(client.run(os.getpid))


def test_a_frozen_worker_is_left_out_and_others_do_the_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dask_workers, "_SILENT_S", 0.0)
    monkeypatch.setattr(dask_engine, "_LOOK_S", 0.2)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as two:
        cluster = two.scheduler_address
        pids = worker_pids(cluster)
        address, pid = sorted(pids.items())[0]
        with frozen(pid):
            assert statuses(run(cluster, tmp_path, *[Order("sleep", 0.1)] * 4)) == ["done"] * 4
        assert f"{address} does not answer" in caplog.text
        # With none that answers, a signal is heard, and the wait has an end.
        with frozen(pid), frozen(pids[sorted(pids)[1]]):
            with pytest.raises(Stopped, match="0 of 1 cases"):
                run(cluster, tmp_path, Order("work"), stop=StopRequest(0.5))
            engine = DaskEngine(cluster, tmp_path, no_worker_s=0.3)
            with pytest.raises(EnvironmentProblem, match="no dask worker") as ended:
                run_cases(jobs(Order("work")), perform, engine=engine)
            assert f"no answer from {address}" in str(ended.value.found)


@pytest.mark.slow
def test_a_frozen_scheduler_does_not_keep_signals_from_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "scheduler.json"
    alone = ("--host", "tcp://127.0.0.1", "--port", "0", "--no-dashboard")
    words = [sys.executable, "-m", "dask", "scheduler", *alone, "--scheduler-file", str(file)]
    scheduler = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    timer = threading.Timer(1.0, lambda: os.kill(scheduler.pid, signal.SIGSTOP))
    monkeypatch.setattr(dask_engine, "_CONNECT_S", 3.0)
    try:
        while not file.exists():
            time.sleep(0.05)
        timer.start()
        began = time.monotonic()
        with pytest.raises(Stopped):
            run(str(file), tmp_path, Order("work"), stop=StopRequest(2.0))
        assert time.monotonic() - began < 12.0
        os.kill(scheduler.pid, signal.SIGCONT)
        timer = threading.Timer(1.0, lambda: os.kill(scheduler.pid, signal.SIGSTOP))
        timer.start()
        engine = DaskEngine(str(file), tmp_path, no_worker_s=2.5)
        with pytest.raises(EnvironmentProblem):
            run_cases(jobs(Order("work")), perform, engine=engine)
    finally:
        timer.join()
        scheduler.kill()
        scheduler.wait()


@pytest.mark.slow
def test_a_scheduler_that_dies_ends_the_job_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    alone = ("--host", "tcp://127.0.0.1", "--port", "0", "--no-dashboard")
    line = [sys.executable, "-m", "dask", "scheduler", *alone, "--scheduler-file", file]
    worker = [sys.executable, "-m", "dask", "worker", "--scheduler-file", file, "--no-dashboard"]
    root = Path(__file__).resolve().parents[2]
    started = [
        subprocess.Popen(
            words, env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.DEVNULL
        )
        for words in (line, worker)
    ]
    scheduler = started[0]

    def kill() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        scheduler.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    while not file.exists():
        time.sleep(0.05)
    with pytest.raises(EnvironmentProblem, match="cannot be reached") as refused:
        run(str(file), tmp_path, *[Order("sleep", 2, tmp_path)] * 5)
    assert "scheduler.json" in str(refused.value.file)
    thread.join()
    for process in started:
        process.kill()
        process.wait()


def test_a_scheduler_without_workers_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with distributed.LocalCluster(
        n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
    ) as empty:
        engine = DaskEngine(empty.scheduler_address, tmp_path, no_worker_s=0.1)
        with pytest.raises(EnvironmentProblem, match="no dask worker"):
            run_cases(jobs(Order("work")), perform, engine=engine)


@pytest.mark.parametrize("word", ["local", "local:0", "local:x", "local:-1", "host:8786", ""])
def test_other_words_are_wrong_use(word: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such dask cluster"):
        DaskEngine(word, tmp_path)


def test_without_dask_the_line_that_installs_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(EnvironmentProblem) as refused:
        DaskEngine("local:2", tmp_path)
    assert refused.value.fix == "pip install 'iris-segmentation[dask]'"
