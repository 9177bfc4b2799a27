"""As many workers as fit into the memory, and a refusal with numbers."""

from __future__ import annotations

import pytest

from iris_cli.errors import EnvironmentProblem
from iris_cli.planning import crew as room
from iris_cli.planning.crew import choose_crew, worth_starting

NEEDS = {"a": 30, "b": 20, "c": 10}


@pytest.fixture(autouse=True)
def own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "resident_bytes", lambda: 5)


@pytest.mark.parametrize(
    ("workers", "max_ram", "chosen", "needed"),
    [
        (0, 30, 0, 30),
        (1, 35, 1, 35),
        (2, 54, 1, 35),
        (2, 55, 2, 55),
        (8, 65, 3, 65),
        (3, 60, 2, 55),
    ],
)
def test_the_largest_cases_together_must_fit(
    workers: int, max_ram: int, chosen: int, needed: int
) -> None:
    crew = choose_crew(NEEDS, workers, max_ram)
    assert (crew.workers, crew.needed_bytes) == (chosen, needed)
    assert bool(crew.note) == (chosen < min(workers, len(NEEDS)))


def test_a_case_that_fits_nowhere_is_refused_with_the_numbers() -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        choose_crew(NEEDS, 2, 20)
    assert "a: 3.5e-08 GB, b: 2.5e-08 GB" in str(caught.value.found)


def test_without_a_limit_it_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "memory_limit", lambda: 40)
    assert choose_crew(NEEDS, 2).workers == 1
    monkeypatch.setattr(room, "memory_limit", lambda: None)
    assert choose_crew(NEEDS, 2).workers == 2


def test_nothing_to_do_needs_nothing() -> None:
    assert choose_crew({}, 2, 1).needed_bytes <= 5


@pytest.mark.parametrize(("work_s", "started"), [(0.0, 1), (0.9, 1), (2.5, 2), (60.0, 8)])
def test_no_more_workers_are_started_than_have_enough_to_do(work_s: float, started: int) -> None:
    workers, why = worth_starting(8, work_s)
    assert workers == started
    assert bool(why) == (started < 8)
    assert worth_starting(0, work_s) == (0, "")
