"""What `iris train` shows while it trains: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from iris_cli.commands._output import Detail, Output
from iris_cli.execution.progress import duration
from iris_cli.training.checkpoint import LATEST
from iris_cli.training.observers import Observer, StepReport

# Lines of a job that runs for days: some thousand, not some hundred thousand.
LINE_EVERY_S = 30.0
REFRESH_PER_S = 2
LOSSES_KEPT = 600
_SPARKS = "▁▂▃▄▅▆▇█"
_SMOOTHING = 0.1
_GROUPS = {"seen": "", "held_out": "held out", "unseen": "unseen"}


def training_view(output: Output, run_folder: Path) -> tuple[Observer, ...]:
    """What this command line and this terminal ask for, on standard error; none with `-q`."""
    if output.detail is Detail.QUIET:
        return ()
    console = Console(file=sys.stderr)
    if console.is_terminal and not console.is_dumb_terminal:
        return (TrainingPanel(run_folder, console),)
    return (TrainingLines(console),)


class TrainingLines(Observer):
    """One line per report, but at most one in `every_s`; validations and the last step always."""

    def __init__(self, console: Console, *, every_s: float = LINE_EVERY_S) -> None:
        self._console = console
        self._every_s = every_s
        self._last = -every_s

    def step(self, report: StepReport) -> None:
        now = time.monotonic()
        if now - self._last >= self._every_s or report.step == report.steps:
            self._last = now
            self._say(", ".join(_facts(report)))

    def validation(self, step: int, figures: Mapping[str, Any]) -> None:
        for line in validation_lines(step, figures):
            self._say(line)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class TrainingPanel(Observer):
    """A panel that is drawn anew twice a second, from the first report to the end of the run."""

    def __init__(self, run_folder: Path, console: Console) -> None:
        self._folder = run_folder
        self._report: StepReport | None = None
        self._reported = 0.0
        self._losses: deque[float] = deque(maxlen=LOSSES_KEPT)
        self._validated: tuple[int, Mapping[str, Any]] | None = None
        self._live = Live(
            console=console,
            get_renderable=self.render,
            refresh_per_second=REFRESH_PER_S,
            vertical_overflow="crop",
        )

    def step(self, report: StepReport) -> None:
        self._report, self._reported = report, time.monotonic()
        if report.loss is not None:
            mean = self._losses[-1] if self._losses else report.loss
            self._losses.append(mean + _SMOOTHING * (report.loss - mean))
        self._live.start(refresh=True)

    def validation(self, step: int, figures: Mapping[str, Any]) -> None:
        self._validated = step, figures

    def close(self) -> None:
        self._live.stop()

    def render(self) -> Panel:
        """The panel as it stands now, as wide as the terminal."""
        parts: list[Any] = []
        if self._report is not None:
            left = max(self._report.eta_s - (time.monotonic() - self._reported), 0.0)
            parts += [_bar(self._report, left), self._table(self._report)]
        if self._validated is not None:
            step, figures = self._validated
            parts.append(Text(_validation_heading(step, figures)))
            parts.append(_validation_table(figures))
        title = Text(f" {self._folder.resolve().name} ", style="bold")
        hint = Text(" Ctrl-C saves and stops ", style="dim")
        return Panel(Group(*parts), title=title, subtitle=hint)

    def _table(self, report: StepReport) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(ratio=1)
        loss = Text.assemble(_number(self._losses[-1] if self._losses else None), "  ")
        loss.append(sparkline(list(self._losses), 24), style="cyan")
        table.add_row("loss", loss)
        table.add_row("episode Dice", _dice_text(report))
        table.add_row("pace", _pace_text(report))
        table.add_row("learning rate", f"{report.lr:.2e}, gradient {_number(report.grad_norm)}")
        table.add_row("memory", _memory_text(report))
        skipped = Text(str(report.skipped), style="bold red" if report.skipped else "")
        table.add_row("skipped steps", skipped)
        table.add_row("checkpoint", self._checkpoint_text())
        return table

    def _checkpoint_text(self) -> str:
        try:
            written = (self._folder / LATEST).stat().st_mtime
        except OSError:
            return "none yet"
        return f"{duration(max(time.time() - written, 0.0))} ago"


def validation_lines(step: int, figures: Mapping[str, Any]) -> list[str]:
    """A validation in lines: the score, then one per set."""
    rows = _validation_rows(figures)
    return [_validation_heading(step, figures)] + [
        f"  {label}: " + ", ".join(f"{count} {text}" for count, text in by_count.items())
        for label, by_count in rows.items()
    ]


def sparkline(values: list[float], width: int) -> str:
    """Means of equal parts of the values as bars, the lowest part lowest."""
    width = min(width, len(values))
    if width < 2:
        return ""
    edges = [len(values) * i // width for i in range(width + 1)]
    parts = [values[a:b] for a, b in pairwise(edges)]
    means = [sum(part) / len(part) for part in parts]
    low, span = min(means), max(max(means) - min(means), 1e-9)
    top = len(_SPARKS) - 1
    return "".join(_SPARKS[round((mean - low) / span * top)] for mean in means)


def _bar(report: StepReport, left_s: float) -> Table:
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    left = "done" if report.step == report.steps else f"{duration(left_s)} left"
    share = f"{report.step / report.steps:.0%}"
    row.add_row(
        f"step {report.step}/{report.steps}",
        ProgressBar(total=report.steps, completed=report.step),
        f"{share}, {left}",
    )
    return row


def _validation_table(figures: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    rows = _validation_rows(figures)
    counts = sorted({k for by_count in rows.values() for k in by_count}, key=lambda k: int(k[1:]))
    table.add_column("Dice", overflow="ellipsis", no_wrap=True)
    for count in counts:
        table.add_column(count, no_wrap=True, overflow="ellipsis")
    for label, by_count in rows.items():
        table.add_row(Text(label), *(Text(by_count.get(count, "-")) for count in counts))
    return table


def _validation_rows(figures: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Dice with its interval by set (and what is special about it) and number of references."""
    rows: dict[str, dict[str, str]] = {}
    for group, label in _GROUPS.items():
        for name, by_count in figures.get(group, {}).items():
            row = rows.setdefault(f"{name} ({label})" if label else name, {})
            row.update({count: _dice_with_interval(found) for count, found in by_count.items()})
    for name, by_count in figures.get("failed", {}).items():
        rows.setdefault(name, {}).update({k: f"failed: {why}" for k, why in by_count.items()})
    return rows


def _dice_with_interval(found: Mapping[str, float | None]) -> str:
    mean, low, high = (found[key] for key in ("mean", "low", "high"))
    return f"{mean:.3f}" if low is None else f"{mean:.3f} [{low:.2f}, {high:.2f}]"


def _validation_heading(step: int, figures: Mapping[str, Any]) -> str:
    return f"validation after step {step}: score {_number(figures.get('score'))}"


def _facts(report: StepReport) -> Iterator[str]:
    yield f"step {report.step}/{report.steps}"
    yield f"loss {_number(report.loss)}"
    yield f"Dice {_dice_text(report)}"
    yield f"lr {report.lr:.1e}"
    yield _pace_text(report)
    if report.step < report.steps:
        yield f"{duration(report.eta_s)} left"
    if report.memory_bytes is not None:
        yield _memory_text(report)
    if report.skipped:
        yield f"{report.skipped} skipped"


def _dice_text(report: StepReport) -> str:
    kinds = ", ".join(f"{kind} {dice:.2f}" for kind, dice in report.dice_of.items())
    return f"{_number(report.dice)} ({kinds})" if kinds else _number(report.dice)


def _pace_text(report: StepReport) -> str:
    return f"{report.step_s:.2g} s a step, {report.wait_share:.0%} of it waiting for episodes"


def _memory_text(report: StepReport) -> str:
    parts = [
        f"{size / 2**30:.1f} GiB{place}"
        for size, place in (
            (report.memory_bytes, ""),
            (report.device_memory_bytes, " on the device"),
        )
        if size is not None
    ]
    return ", ".join(parts) or "not known"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
