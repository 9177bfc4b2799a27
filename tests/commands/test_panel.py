"""What `iris train` shows while it trains."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from iris_cli.commands._output import Detail, Output
from iris_cli.commands._panel import TrainingLines, TrainingPanel, sparkline, training_view
from iris_cli.training.checkpoint import LATEST
from iris_cli.training.observers import Observer, StepReport

FIGURES: dict[str, Any] = {
    "score": 0.5,
    "seen": {f"set_{i}": {"k1": {"mean": 0.5, "low": 0.4, "high": 0.6}} for i in range(14)},
    "unseen": {"other [set]": {"k2": {"mean": 0.25, "low": None, "high": None}}},
    "failed": {"broken": {"k1": "a file is gone"}},
}


def report(step: int, loss: float | None = 0.5, skipped: int = 0) -> StepReport:
    return StepReport(
        step=step,
        steps=100,
        loss=loss,
        dice=0.4,
        dice_of={"pseudo": 0.25, "real": 0.75},
        lr=2e-3,
        grad_norm=None,
        skipped=skipped,
        step_s=2.0,
        wait_share=0.125,
        seconds=step * 2.0,
        eta_s=7200.0,
        memory_bytes=3 << 30,
        device_memory_bytes=40 << 30,
    )


def show(observer: Observer) -> None:
    observer.step(report(10))
    observer.step(report(20, loss=None, skipped=3))
    observer.validation(20, FIGURES)
    observer.step(report(30))


def screen(width: int, folder: Path) -> str:
    console = Console(file=io.StringIO(), width=width, height=60, force_terminal=True)
    panel = TrainingPanel(folder, console)
    show(panel)
    panel.close()
    with console.capture() as capture:
        console.print(panel.render())
    return capture.get()


def test_the_panel_says_where_the_run_stands(tmp_path: Path) -> None:
    (tmp_path / LATEST).touch()
    text = screen(120, tmp_path)
    for part in (
        "step 30/100", "2.0 h left", "real 0.75", "12% of it waiting", "2.00e-03", "3.0 GiB",
        "40.0 GiB on the device", "0.500 [0.40, 0.60]", "other [set] (unseen)", "0.250",
        "a file is gone", "score 0.500", " ago", tmp_path.name,
    ):  # fmt: skip
        assert part in text


@pytest.mark.parametrize("width", [20, 60, 120])
def test_no_line_is_wider_than_the_terminal(tmp_path: Path, width: int) -> None:
    console = Console(width=width, force_terminal=False)
    plain = Console(file=io.StringIO(), width=width)
    panel = TrainingPanel(tmp_path, console)
    panel._report, panel._validated = report(30), (20, FIGURES)
    plain.print(panel.render())
    assert isinstance(plain.file, io.StringIO)
    lines = plain.file.getvalue().splitlines()
    assert len(lines) > 10
    assert {len(line) for line in lines} == {width}


def lines_of(every_s: float) -> list[str]:
    stream = io.StringIO()
    lines = TrainingLines(Console(file=stream, width=40), every_s=every_s)
    show(lines)
    lines.step(report(100))
    lines.close()
    return stream.getvalue().splitlines()


def test_a_log_gets_whole_lines_at_a_sensible_rate() -> None:
    texts = [line for line in lines_of(1000.0) if line.startswith("step")]
    assert [text.split(",")[0] for text in texts] == ["step 10/100", "step 100/100"]
    assert "2.0 h left" in texts[0]
    assert len([line for line in lines_of(0.0) if line.startswith("step")]) == 4


def test_validations_always_come_one_line_for_each_set() -> None:
    lines = lines_of(1000.0)
    assert "validation after step 20: score 0.500" in lines
    assert "  other [set] (unseen): k2 0.250" in lines
    assert "  broken: k1 failed: a file is gone" in lines


def test_quiet_shows_nothing_and_a_file_gets_lines(tmp_path: Path) -> None:
    assert training_view(Output(detail=Detail.QUIET), tmp_path) == ()
    (view,) = training_view(Output(), tmp_path)
    assert isinstance(view, TrainingLines)


def test_the_lowest_part_of_a_curve_is_lowest() -> None:
    assert sparkline([3.0, 2.0, 1.0, 0.0], 4) == "█▆▃▁"
    assert sparkline([1.0] * 100, 5) == "▁" * 5
    assert sparkline([1.0], 5) == ""
