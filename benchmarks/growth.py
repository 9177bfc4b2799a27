"""B10, how time and memory grow: python -m benchmarks.growth

Every reading is the command line as a user types it, in a process of its own, with an untrained
tiny network (patch 32), on generated CTs at 1.5 mm, one thread: CPU seconds (user and system, of
all its processes) and the largest resident memory. What a command takes for next to nothing (one
volume of 32 voxels, one class) is subtracted; of the rest the slope on log-log axes is fitted, 1
being a straight line. Memory that differs by less than FLAT_MB, and time by less than FLAT_S, is
flat. Ends with exit code 1 where a term grows faster than in a straight line.

Writes the table to benchmarks/results/growth.md and the curves to docs/images/growth-*.png.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.generated_volumes import write_set
from benchmarks.prediction_memory import Shape, make_task
from benchmarks.process_tree import Usage, run_measured
from benchmarks.results_table import publish
from iris_cli.model.model import ModelCard, load_model, save_model
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.task.task_file import write_task

SPACING_MM, PATCH = 1.5, 32
SMALLEST, PLAIN = (32, 32, 32), (96, 96, 96)
MANY = 50  # cases, where workers and parts are compared
STEEPEST = 1.15
"""A straight line, and what a shared machine adds to it."""
FLAT_S, FLAT_MB = 0.5, 40.0
DOCS_IMAGES = Path(__file__).parents[1] / "docs" / "images"

Words = list[str]


@dataclass(frozen=True)
class Term:
    """What grows. lines: count -> the command lines that are run one after the other.

    command: whose fixed part is subtracted. file: of the figure it is drawn in.
    """

    name: str
    counts: tuple[int, ...]
    lines: Callable[[int], list[Words]]
    file: str
    command: str = "predict"


@dataclass(frozen=True)
class Reading:
    """CPU seconds and MB; of several runs one after the other the sum and the largest."""

    cpu_s: float
    peak_mb: float


class Bench:
    """The files of the benchmark, made where they are first needed, and its command lines."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._outputs = folder, 0
        torch.manual_seed(0)
        network = IrisNetwork(NetworkConfig.tiny()).eval()
        card = ModelCard.of(network, name="tiny", s0=SPACING_MM, patch=PATCH)
        self._model_folder = save_model(folder / "tiny", network, card)
        self._model = load_model(self._model_folder)

    def predict(
        self, shape: tuple[int, int, int], cases: int, tasks: Sequence[Path], *more: str
    ) -> Words:
        """A line that segments so many volumes of this shape into a new folder."""
        queries = self._set(shape, cases, classes=1) / "imagesTr"
        given = [word for task in tasks for word in ("-t", str(task))]
        return [*self._words("predict"), "-i", str(queries), "-o", self._new("out"), *given, *more]

    def encode(self, shape: tuple[int, int, int], references: int, classes: int) -> Words:
        """A line that encodes so many references."""
        folder = self._set(shape, references, classes=classes)
        task = self._new("task") + ".task.pt"
        spacing = ["--spacing", str(SPACING_MM)]
        return [*self._words("encode-task"), str(folder), "-o", task, *spacing]

    def task(self, classes: int, number: int = 0) -> Path:
        """A task of random tokens."""
        path = self._folder / f"k{classes}-{number}.task.pt"
        if not path.exists():
            shape = Shape(SMALLEST, (SPACING_MM,) * 3, SPACING_MM, classes, PATCH)
            write_task(path, make_task(self._model, shape))
        return path

    def _set(self, shape: tuple[int, int, int], cases: int, *, classes: int) -> Path:
        folder = self._folder / f"set-{'-'.join(map(str, (*shape, cases, classes)))}"
        if not folder.exists():
            write_set(folder, shape, (SPACING_MM,) * 3, cases=cases, classes=classes)
        return folder

    def _words(self, command: str) -> Words:
        line = [sys.executable, "-m", "iris_cli", command, "--model", str(self._model_folder)]
        return [*line, "--device", "cpu", "--precision", "fp32", "--quiet"]

    def _new(self, kind: str) -> str:
        self._outputs += 1
        return str(self._folder / f"{kind}-{self._outputs}")


def terms_of(bench: Bench) -> list[Term]:
    """What B10 asks for."""

    def length(n: int) -> list[Words]:
        return [bench.predict((n, 96, 96), 1, [bench.task(13)])]

    def classes(n: int) -> list[Words]:
        return [bench.predict(PLAIN, 1, [bench.task(n)])]

    def references(n: int) -> list[Words]:
        return [bench.encode((64, 64, 64), n, 4)]

    def tasks(n: int) -> list[Words]:
        given = [bench.task(4, number) for number in range(n)]
        return [bench.predict(PLAIN, 1, given, "--renumber")]

    def cases(n: int) -> list[Words]:
        return [bench.predict(SMALLEST, n, [bench.task(1)])]

    def workers(n: int) -> list[Words]:
        return [bench.predict(SMALLEST, MANY, [bench.task(1)], "-j", str(n))]

    def parts(n: int) -> list[Words]:
        line, share = bench.predict(SMALLEST, MANY, [bench.task(1)]), ("--num-parts", str(n))
        return [[*line, *share, "--part-id", str(i)] for i in range(n)]

    return [
        Term("slices of 96 x 96", (64, 128, 256, 512), length, "growth-volume.png"),
        Term("classes", (1, 4, 16, 64, 104), classes, "growth-volume.png"),
        Term("references", (1, 2, 4, 8, 16), references, "growth-tasks.png", "encode-task"),
        Term("tasks of 4 classes", (1, 2, 4, 8), tasks, "growth-tasks.png"),
        Term("cases", (1, 10, 100, 1000), cases, "growth-cases.png"),
        Term(f"workers for {MANY} cases", (1, 2), workers, "growth-cases.png"),
        Term(f"parts of {MANY} cases", (1, 2, 4), parts, "growth-cases.png"),
    ]


def measure(lines: Callable[[], list[Words]], rounds: int) -> Reading:
    """Medians over the rounds."""
    readings = [[_run(line) for line in lines()] for _ in range(rounds)]
    return Reading(
        median(sum(one.cpu_s for one in runs) for runs in readings),
        median(max(one.peak_bytes for one in runs) for runs in readings) / 1e6,
    )


def _run(line: Words) -> Usage:
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return run_measured(line, {**os.environ, **environment})


def slope(counts: Sequence[int], values: Sequence[float], flat: float) -> float:
    """Of log(value) over log(count); values that are noise are left out, 0 where all of them are.

    values: over the fixed part. flat: differences up to here are noise.
    """
    points = [(n, value) for n, value in zip(counts, values, strict=True) if value > flat]
    if len(points) < 2 or max(values) - min(values) < flat:
        return 0.0
    return float(np.polyfit(*np.log(np.array(points)).T, 1)[0])


@dataclass(frozen=True)
class Curve:
    """The readings of a term. fixed: of its command on next to nothing."""

    term: Term
    readings: tuple[Reading, ...]
    fixed: Reading

    @property
    def time_slope(self) -> float:
        over = [one.cpu_s - self.fixed.cpu_s for one in self.readings]
        return slope(self.term.counts, over, FLAT_S)

    @property
    def memory_slope(self) -> float:
        over = [one.peak_mb - self.fixed.peak_mb for one in self.readings]
        return slope(self.term.counts, over, FLAT_MB)

    @property
    def is_steep(self) -> bool:
        return max(self.time_slope, self.memory_slope) > STEEPEST

    def rows(self) -> Iterator[list[str]]:
        for count, one in zip(self.term.counts, self.readings, strict=True):
            slopes = ["", ""]
            if count == self.term.counts[-1]:
                slopes = [_said(self.time_slope), _said(self.memory_slope)]
            yield [self.term.name, str(count), f"{one.cpu_s:.1f}", f"{one.peak_mb:.0f}", *slopes]


def _said(value: float) -> str:
    return f"{value:.2f}" if value else "flat"


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Time above, memory below, a column for each term; dotted: the fixed part."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(curves), 5.0), layout="constrained")
    axes = figure.subplots(2, len(curves), squeeze=False)
    for column, curve in enumerate(curves):
        times = [one.cpu_s for one in curve.readings]
        memory = [one.peak_mb for one in curve.readings]
        for axis, values, fixed in (
            (axes[0, column], times, curve.fixed.cpu_s),
            (axes[1, column], memory, curve.fixed.peak_mb),
        ):
            axis.plot(curve.term.counts, values, "o-", color="tab:blue")
            axis.axhline(fixed, color="grey", linestyle=":")
            axis.set_xlim(left=0)
            axis.set_ylim(bottom=0, top=1.15 * max(*values, fixed))
        axes[1, column].set_xlabel(curve.term.name)
    axes[0, 0].set_ylabel("CPU seconds")
    axes[1, 0].set_ylabel("memory, MB")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> int:
    """Print the table, append it to the results, draw the curves; 1 where one is too steep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--terms", nargs="*", default=[], metavar="WORD", help="default: all")
    parser.add_argument("--images", type=Path, default=DOCS_IMAGES)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="iris-growth-"))
    try:
        bench = Bench(folder)
        wanted = [
            term
            for term in terms_of(bench)
            if not given.terms or any(word in term.name for word in given.terms)
        ]
        nothing = {
            "predict": lambda: [bench.predict(SMALLEST, 1, [bench.task(1)])],
            "encode-task": lambda: [bench.encode(SMALLEST, 1, 1)],
        }
        fixed = {
            command: measure(nothing[command], max(3, given.rounds))
            for command in dict.fromkeys(term.command for term in wanted)
        }
        curves = [_curve(term, fixed[term.command], given.rounds) for term in wanted]
    finally:
        shutil.rmtree(folder)
    head = ("what grows", "count", "CPU s", "memory, MB", "slope of time", "slope of memory")
    notes = [
        f"one thread, rounds: {given.rounds}",
        *(f"{c} of next to nothing: {r.cpu_s:.1f} s, {r.peak_mb:.0f} MB" for c, r in fixed.items()),
    ]
    publish("growth", "growth", notes, head, [row for curve in curves for row in curve.rows()])
    for file in dict.fromkeys(term.file for term in wanted):
        draw([curve for curve in curves if curve.term.file == file], given.images / file)
    steep = [curve.term.name for curve in curves if curve.is_steep]
    sys.stdout.write(f"worse than linear: {', '.join(steep) or 'nothing'}\n")
    return 1 if steep else 0


def _curve(term: Term, fixed: Reading, rounds: int) -> Curve:
    readings = []
    for count in term.counts:
        readings.append(measure(lambda count=count: term.lines(count), rounds))  # type: ignore[misc]
        sys.stderr.write(f"{term.name} {count}: {readings[-1]}\n")
    return Curve(term, tuple(readings), fixed)


if __name__ == "__main__":
    sys.exit(main())
