"""Where commands write: results to standard output, messages to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rich.console import Console
from rich.table import Table

from iris_cli.errors import IrisError


class Detail(Enum):
    """How much a command says beside its result."""

    QUIET = "quiet"
    NORMAL = "normal"
    VERBOSE = "verbose"


@dataclass(frozen=True)
class Output:
    """What a command shows: a table for people or JSON for machines, never both."""

    as_json: bool = False
    detail: Detail = Detail.NORMAL

    @classmethod
    def choose(cls, as_json: bool, verbose: bool, quiet: bool) -> Output:
        """From the three shared switches; quiet wins over verbose."""
        detail = Detail.QUIET if quiet else Detail.VERBOSE if verbose else Detail.NORMAL
        return cls(as_json, detail)

    def say(self, message: str) -> None:
        """A message for people, on standard error."""
        if self.detail is not Detail.QUIET:
            _stderr().print(message, markup=False, highlight=False, soft_wrap=True)

    def explain(self, message: str) -> None:
        """A message only `-v` shows."""
        if self.detail is Detail.VERBOSE:
            self.say(message)

    def result(self, value: Any) -> None:
        """The result for machines; written only with `--json`."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def line(self, text: str) -> None:
        """A line of the result for people, on standard output."""
        if not self.as_json:
            _stdout().print(text, markup=False, highlight=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table of the result for people; columns of numbers are set to the right."""
        if self.as_json:
            return
        table = Table(title=title, title_justify="left")
        lines = [tuple(row) for row in rows]
        for index, column in enumerate(columns):
            numbers = all(_is_number(line[index]) for line in lines)
            table.add_column(column, justify="right" if numbers else "left", overflow="fold")
        for row in lines:
            table.add_row(*(_cell(value) for value in row))
        _stdout().print(table, markup=False)


def show_error(error: IrisError) -> None:
    """The four parts of an error, on standard error."""
    _stderr().print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)


def _stdout() -> Console:
    return Console(file=sys.stdout)


def _stderr() -> Console:
    return Console(file=sys.stderr)
