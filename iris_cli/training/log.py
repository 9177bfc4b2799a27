"""What a run says about itself: `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iris_cli.files.publish import publish_text

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class MetricsLog:
    """One JSON object per line, appended and flushed; the numbers also go to TensorBoard.

    Lines have `step` (finished steps) and either training figures or, under `validation`, the
    figures of one validation.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """step: steps that are finished; later lines, of a run that was killed, are dropped."""
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.path = folder / METRICS
        _drop_lines_after(self.path, step)
        self._board: Any = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(_finite(dict(line))) + "\n")
        step = int(line["step"])
        for name, value in _flat(line):
            if name != "step":
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


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

    def mean(self, name: str) -> float | None:
        return self._sums[name] / self._counts[name] if self._counts.get(name) else None

    def total(self, name: str) -> float:
        return self._sums.get(name, 0.0)

    def means(self, prefix: str) -> dict[str, float]:
        """Means of all names that begin with `prefix`, without it."""
        names = sorted(name for name in self._counts if name.startswith(prefix))
        return {name[len(prefix) :]: self._sums[name] / self._counts[name] for name in names}


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a killed process may be half a line
    publish_text(path, "".join(line + "\n" for line in kept))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _flat(line: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in line.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            found.append((prefix + name, float(value)))
    return found
