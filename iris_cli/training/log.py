"""What a run writes about itself: the lines of `metrics.jsonl`, and means between them."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from iris_cli.files.jsonl import read_json_lines
from iris_cli.files.publish import publish_text

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class Tally:
    """Sums of a few steps between two lines of the log."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, name: str, value: float) -> None:
        """Add one value; what is not finite does not count."""
        if math.isfinite(value):
            self._sums[name] += value
            self._counts[name] += 1

    @classmethod
    def merged(cls, tallies: Iterable[Tally]) -> Tally:
        """All that was added to any of these."""
        merged = cls()
        for tally in tallies:
            for name, count in tally._counts.items():
                merged._sums[name] += tally._sums[name]
                merged._counts[name] += count
        return merged

    def mean(self, name: str) -> float | None:
        return self._sums[name] / self._counts[name] if self._counts.get(name) else None

    def total(self, name: str) -> float:
        return self._sums.get(name, 0.0)

    def means(self, prefix: str) -> dict[str, float]:
        """Means of all names that begin with `prefix`, without it."""
        names = sorted(name for name in self._counts if name.startswith(prefix))
        return {name[len(prefix) :]: self._sums[name] / self._counts[name] for name in names}


def drop_lines_after(path: Path, step: int) -> None:
    """Keep the whole lines of at most `step`: the run goes on from there."""
    if path.exists():
        kept = [line for line in read_lines(path) if line["step"] <= step]
        publish_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log that say of which step they are."""
    return [line for line in read_json_lines(path) if isinstance(line.get("step"), int)]


def finite(value: Any) -> Any:
    """JSON values of a log: six digits, None for what is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def iter_numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every finite number of nested tables, named by its keys with `/` in between."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from iter_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield prefix + name, float(value)
