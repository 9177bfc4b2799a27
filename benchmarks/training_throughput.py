"""Does training wait for its episodes? python -m benchmarks.training_throughput

Preset small on phantoms that are made here, one computing thread on a CPU (all of a GPU with
--device cuda), no validation. Every row is a run of `iris train` of its own; figures are those of
metrics.jsonl, the first steps left out, in which workers start and their queue is still full. The
share of a step that is spent waiting for episodes is a share of wall time: on a machine that does
other work too it says little, so the load is part of the table. Target: less than 5 % with two
workers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.results_table import publish
from iris_cli.dataset.phantoms import write_phantom_dataset
from iris_cli.execution.threads import settings as thread_settings

TARGET = 0.05
# Workers fill a queue of 4 episodes each while the first steps run: until it is used up once and
# filled again nothing is seen of how fast they are.
LEFT_OUT_EPISODES = 16


@dataclass(frozen=True)
class Row:
    workers: int
    batch: int
    patch: int

    @property
    def left_out(self) -> int:
        """Steps at the beginning that are not measured."""
        return max(3, LEFT_OUT_EPISODES // self.batch)


ROWS = (
    Row(0, 4, 64),
    Row(1, 4, 64),
    Row(2, 4, 64),
    Row(2, 1, 64),
    Row(2, 8, 64),
    Row(2, 1, 128),
    Row(2, 2, 96),
)


@dataclass(frozen=True)
class Reading:
    """Median of a step, the part of all steps spent waiting, and the load after them."""

    step_s: float
    wait_share: float
    load: float


def main() -> None:
    """Measure all rows and append the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--steps", type=int, default=10, help="measured steps of a run, %(default)s"
    )
    parser.add_argument("--cases", type=int, default=4, help="phantoms, %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        write_phantom_dataset(
            workspace / "raw" / "phantoms", range(1, arguments.cases + 1), voxel_mm=3.0
        )
        for patch in sorted({row.patch for row in ROWS}):
            plan = ("plan", "phantoms", "--preset", "small", "--name", f"patch{patch}")
            _iris(*plan, "-w", folder, "--set", f"patch={patch}")
        _iris(
            "preprocess", "-w", folder, "-p", str(workspace / "plans" / "patch64.json"), "-j", "2"
        )
        read = {row: _measure(row, workspace, arguments.steps, arguments.device) for row in ROWS}
    publish(
        "training_throughput",
        "waiting for episodes, and episodes per second",
        (
            f"device {arguments.device}",
            "one computing thread" if arguments.device == "cpu" else "all threads",
            f"preset small on {arguments.cases} phantoms of 3 mm",
            f"{arguments.steps} steps, wall time",
        ),
        ("workers", "batch", "patch", "step s", "waiting", "episodes per s", "load"),
        [_cells(row, reading) for row, reading in read.items()],
    )


def _measure(row: Row, workspace: Path, steps: int, device: str) -> Reading:
    run = f"w{row.workers}-b{row.batch}-p{row.patch}"
    settings = {
        "training.steps": row.left_out + steps,
        "training.batch": row.batch,
        "training.log_every": 1,
        "training.sheet_every": 0,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    threads = ["--threads", "1"] if device == "cpu" else []
    plan = str(workspace / "plans" / f"patch{row.patch}.json")
    _iris(
        "train", run, "-w", str(workspace), "--plan", plan, "--validate-cases", "0", "-j",
        str(row.workers), "--device", device, *threads, *words,
    )  # fmt: skip
    lines = (workspace / "runs" / run / "metrics.jsonl").read_text().splitlines()
    taken = [line for line in map(json.loads, lines) if "step_s" in line][row.left_out :]
    reading = Reading(
        median(line["step_s"] for line in taken),
        sum(line["wait_share"] * line["step_s"] for line in taken)
        / sum(line["step_s"] for line in taken),
        os.getloadavg()[0],
    )
    sys.stderr.write(f"{run}: {reading}\n")
    return reading


def _cells(row: Row, reading: Reading) -> list[str]:
    waiting = f"{reading.wait_share:.1%}"
    if row.workers == 2:
        waiting += " ok" if reading.wait_share < TARGET else " missed"
    rate = row.batch / reading.step_s
    return [
        str(row.workers), str(row.batch), str(row.patch), f"{reading.step_s:.2f}", waiting,
        f"{rate:.2f}", f"{reading.load:.1f}",
    ]  # fmt: skip


def _iris(*words: str) -> None:
    environment = {**os.environ, **thread_settings(1)}
    line = [sys.executable, "-m", "iris_cli", *words, "-q"]
    subprocess.run(line, env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
