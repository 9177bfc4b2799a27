"""Cases that overlap: the same outcomes, earlier; never more than one case in a step."""

from __future__ import annotations

import pickle
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from iris_cli.errors import DataRefused, Stopped
from iris_cli.execution.claims import Claims
from iris_cli.execution.jobs import CaseJob, CaseResult, run_cases
from iris_cli.execution.overlap import OwnTime, Steps, in_steps
from iris_cli.execution.progress import SilentProgress
from iris_cli.execution.schedule import Rules
from iris_cli.execution.signals import StopRequest

PATIENCE_S = 20.0


@dataclass
class Watched:
    """A case that tells when its steps begin, waits for others, or fails in a step."""

    name: str
    diary: list[str]
    fails_at: str = ""
    waits_for: dict[str, threading.Event] = field(default_factory=dict)
    sets: dict[str, threading.Event] = field(default_factory=dict)
    stops: StopRequest | None = None
    has_result: bool = False

    def begin(self, step: str) -> None:
        self.diary.append(f"{step} {self.name}")
        if step in self.sets:
            self.sets[step].set()
        if step in self.waits_for:
            assert self.waits_for[step].wait(PATIENCE_S), f"nothing overlapped {step} {self.name}"
        if self.stops is not None and step == "compute":
            self.stops.request("SIGTERM")
        if step == self.fails_at:
            raise DataRefused(f"{step} failed", file=Path(self.name))


@in_steps
def watched(case: Watched) -> Steps:
    """A case in three steps."""
    case.begin("read")
    if case.has_result:
        return CaseResult("kept", {"value": case.name})
    yield
    case.begin("compute")
    yield
    case.begin("write")
    return CaseResult("done", {"value": case.name})


def jobs(*cases: Watched) -> list[CaseJob]:
    return [CaseJob(case.name, case) for case in cases]


def test_called_as_it_is_all_steps_are_taken_and_it_travels_by_its_name() -> None:
    diary: list[str] = []
    result = watched(Watched("a", diary))
    assert result == CaseResult("done", {"value": "a"})
    assert diary == ["read a", "compute a", "write a"]
    assert pickle.loads(pickle.dumps(watched)) is watched


def test_reading_and_writing_go_on_while_a_case_is_computed() -> None:
    """b is computed for as long as it takes a to be written and c to be read."""
    diary: list[str] = []
    written, read = threading.Event(), threading.Event()
    a = Watched("a", diary, sets={"write": written})
    b = Watched("b", diary, waits_for={"compute": written})
    c = Watched("c", diary, sets={"read": read})
    d = Watched("d", diary)
    # a itself is not written before c is read, which is during the computing of b.
    a.waits_for = {"write": read}
    summary = run_cases(jobs(a, b, c, d), watched, overlap=True)
    assert [outcome.name for outcome in summary.outcomes] == ["a", "b", "c", "d"]
    assert {outcome.status for outcome in summary.outcomes} == {"done"}
    assert [line for line in diary if line.startswith("compute")] == [
        f"compute {name}" for name in "abcd"
    ]


def test_outcomes_are_those_without_overlap() -> None:
    cases = [
        Watched("a", []),
        Watched("b", [], fails_at="read"),
        Watched("c", [], has_result=True),
        Watched("d", [], fails_at="compute"),
        Watched("e", [], fails_at="write"),
        Watched("f", []),
    ]

    def told(overlap: bool) -> list[tuple[object, ...]]:
        outcomes = run_cases(jobs(*cases), watched, overlap=overlap).outcomes
        return [
            (
                o.name,
                o.status,
                o.result,
                (o.error or {}).get("problem"),
                (o.error or {}).get("file"),
            )
            for o in outcomes
        ]

    assert told(overlap=True) == told(overlap=False)
    statuses = [status for _, status, *_ in told(overlap=True)]
    assert statuses == ["done", "failed", "kept", "failed", "failed", "done"]


class Recorded(SilentProgress):
    """Sets an event when it has been told of some cases."""

    def __init__(self, *names: str) -> None:
        self.missing, self.all_told = set(names), threading.Event()

    def advance(self, name: str, status: str) -> None:
        self.missing.discard(name)
        if not self.missing:
            self.all_told.set()


def test_outcomes_are_recorded_while_another_case_is_computed(tmp_path: Path) -> None:
    """b is computed until a, written meanwhile, and c, which cannot be read, are recorded."""
    diary: list[str] = []
    told = Recorded("a", "c")
    b = Watched("b", diary, waits_for={"compute": told.all_told})
    cases = [Watched("a", diary), b, Watched("c", diary, fails_at="read"), Watched("d", diary)]
    rules = Rules(failures=tmp_path / "failed")
    summary = run_cases(
        jobs(*cases),
        watched,
        overlap=True,
        claims=tmp_path / "claims",
        rules=rules,
        progress=told,
    )
    assert [outcome.status for outcome in summary.outcomes] == ["done", "done", "failed", "done"]
    assert not (tmp_path / "claims").exists()


def test_the_time_of_a_case_is_that_of_its_steps() -> None:
    own = OwnTime()
    began = time.perf_counter()
    with own.paused():
        time.sleep(0.2)
    assert own.seconds <= time.perf_counter() - began - 0.2
    before = own.seconds
    time.sleep(0.05)
    assert own.seconds >= before + 0.05


def test_when_asked_to_stop_what_was_computed_is_written_and_claims_are_given_back(
    tmp_path: Path,
) -> None:
    diary: list[str] = []
    stop = StopRequest()
    cases = [Watched("a", diary), Watched("b", diary, stops=stop), Watched("c", diary)]
    with pytest.raises(Stopped, match="2 of 3 cases are finished"):
        run_cases(jobs(*cases), watched, overlap=True, stop=stop, claims=tmp_path)
    assert "write b" in diary
    assert "compute c" not in diary
    with Claims(tmp_path) as others:
        assert all(others.take(case.name) for case in cases)


def test_a_case_that_others_hold_comes_last(tmp_path: Path) -> None:
    diary: list[str] = []
    held = Claims(tmp_path)
    with held:
        assert held.take("a")
        given_back = threading.Event()
        timer = threading.Timer(0.5, lambda: (held.release("a"), given_back.set()))
        timer.start()
        cases = [Watched(name, diary) for name in "abc"]
        summary = run_cases(jobs(*cases), watched, overlap=True, claims=tmp_path)
    assert given_back.is_set()
    assert [outcome.name for outcome in summary.outcomes] == ["a", "b", "c"]
    assert [line for line in diary if line.startswith("read")] == ["read b", "read c", "read a"]
