"""Progress: rate and time left, few lines where nobody watches."""

from __future__ import annotations

import io

import pytest

from iris_cli.execution.progress import (
    PlainProgress,
    Progress,
    SilentProgress,
    Tally,
    TerminalProgress,
    duration,
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def tell(progress: Progress, statuses: list[str]) -> None:
    progress.start(len(statuses), "predict")
    for number, status in enumerate(statuses):
        progress.advance(f"case_{number}", status)
    progress.finish()


def test_plain_lines_come_seldom_and_the_last_one_always() -> None:
    stream = io.StringIO()
    tell(PlainProgress(stream, every_s=1000), ["done"] * 50 + ["failed"])
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("predict 51/51, 1 failed, ")
    assert lines[0].endswith("(case_50)")


def test_plain_lines_have_rate_and_time_left() -> None:
    stream = io.StringIO()
    tell(PlainProgress(stream, every_s=0), ["done", "kept", "done"])
    first, second, _ = stream.getvalue().splitlines()
    assert first.startswith("predict 1/3, ")
    assert "/s, " in first
    assert "left" in first
    assert ", 1 kept, " in second


def test_no_terminal_gets_plain_lines() -> None:
    stream = io.StringIO()
    tell(TerminalProgress(stream, every_s=0), ["done"])
    assert stream.getvalue().startswith("predict 1/1")


def test_a_terminal_gets_a_bar_and_names_are_no_markup() -> None:
    stream = Terminal()
    progress = TerminalProgress(stream)
    progress.start(1, "predict [red]")
    progress.advance("case_[bold]", "failed")
    progress.finish()
    assert "1 failed" in stream.getvalue()
    assert "[red]" in stream.getvalue()


def test_finishing_without_starting_is_harmless() -> None:
    TerminalProgress(Terminal()).finish()
    tell(SilentProgress(), ["done"])


def test_kept_cases_have_no_part_in_the_rate() -> None:
    tally = Tally("predict", 10)
    tally.count("kept")
    assert tally.per_second() is None
    tally.count("done")
    rate = tally.per_second()
    assert rate is not None
    assert rate > 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text
