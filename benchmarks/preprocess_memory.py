"""R5, memory of preprocessing against its prediction: python -m benchmarks.preprocess_memory

Generated volumes, `iris preprocess` with no worker, one and two, each in a process tree of its own:
measured is the largest sum of resident memory (`process_tree`), predicted what
`planning.crew.choose_crew` says before it starts. Bar: measured <= predicted + 15 %.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.generated_volumes import Shape, write_set
from benchmarks.process_tree import run_measured
from benchmarks.results_table import publish
from iris_cli.execution.threads import settings as thread_settings

MARGIN = 1.15
HEAD = ("volume", "modality", "to mm", "workers", "measured MB", "predicted MB", "ratio", "bar")


@dataclass(frozen=True)
class Row:
    """A set of two equal cases and how it is preprocessed."""

    shape: Shape
    spacing_zyx: tuple[float, float, float]
    modality: str
    spacing_mm: float
    workers: int


LARGE = ((300, 512, 512), (1.5, 0.8, 0.8))
ROWS = (
    Row(*LARGE, "CT", 1.5, 0),
    Row(*LARGE, "CT", 1.5, 1),
    Row(*LARGE, "CT", 1.5, 2),
    Row(*LARGE, "CT", 3.0, 2),
    Row(*LARGE, "MR", 1.5, 2),
    Row((1000, 512, 512), (1.0, 0.8, 0.8), "CT", 1.5, 1),
)


def main() -> None:
    """Measure all rows and append the table."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [_measure(row, Path(folder) / str(number)) for number, row in enumerate(ROWS)]
    publish(
        "preprocess_memory",
        "peak memory of preprocessing against its prediction (R5)",
        ("two cases of 20 classes, one of them where the volume is of 1000 slices",),
        HEAD,
        rows,
        words=2,
    )


def _measure(row: Row, base: Path) -> list[str]:
    cases = 1 if row.shape[0] >= 1000 else 2
    raw = base / "raw" / "volumes"
    write_set(raw, row.shape, row.spacing_zyx, cases=cases, classes=20, modality=row.modality)
    command = [sys.executable, "-m", "iris_cli"]
    workspace = ["-w", str(base)]
    environment = thread_settings(1)
    spacing = ["--set", f"sets.volumes.spacing_mm={row.spacing_mm}"]
    run_measured([*command, "plan", *workspace, *spacing], environment)
    result = base / "result.json"
    words = [*command, "preprocess", *workspace, "-j", str(row.workers), "--json"]
    shell = ["sh", "-c", 'exec "$@" > "$0"', str(result), *words]
    measured = run_measured(shell, environment).peak_bytes
    predicted = json.loads(result.read_text())["memory_bytes"]
    ratio = measured / predicted
    sys.stderr.write(f"{row}: {measured / 1e6:.0f} of {predicted / 1e6:.0f} MB\n")
    return [
        " x ".join(map(str, row.shape)), row.modality, f"{row.spacing_mm:g}", str(row.workers),
        f"{measured / 1e6:.0f}", f"{predicted / 1e6:.0f}", f"{ratio:.2f}",
        "reached" if ratio <= MARGIN else "missed",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
