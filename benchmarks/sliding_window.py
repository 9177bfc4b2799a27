"""B4, sliding window and export: python -m benchmarks.sliding_window --nnunet PYTHON

A query of 256^3 at 1 mm, worked at 4/3 mm with windows of 128^3, from the normalised image to
labels on its own grid, K = 20 and 104 classes, one thread.

- nnU-Net: its predictor's sliding window (no mirroring) and its export, with a plain U-Net of as
  many operations as our tiny network. It adds up all logits in half precision, resamples them,
  decides.
- iris: the tiny network, logits in single precision, decided on the grid of the scan. Logits of the
  random network are the worst case: every class wins somewhere in every region. `balls` are logits
  such as organs have.

Sides alternate, each run in a process of its own. Figures are CPU seconds, medians (lowest to
highest). Memory is that of the whole process at its highest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
from pathlib import Path
from statistics import median

from benchmarks.prediction_memory import Measured, Shape, measure_apart
from benchmarks.results_table import publish, spread

EDGE = 256
WORKING_MM = 4 / 3
PATCH = 128
OTHER_SIDE = Path(__file__).with_name("nnunet_sliding.py")
TARGETS = {20: 0.5, 104: 0.25}
MEMORY_TARGET = 1.2
HEAD = ("K", "side", "network", "accumulate", "export", "all", "ratio of all", "export / network",
        "peak MB")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """CPU seconds of the parts, and the most bytes of the process. accumulate: within export for
    us, who blend and decide in one sweep."""

    network: float
    accumulate: float
    export: float
    most: int

    @property
    def all(self) -> float:
        """Seconds."""
        return self.network + self.accumulate + self.export


def main() -> None:
    """Measure and append the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nnunet", required=True, help="a Python that has nnunetv2")
    parser.add_argument("--rounds", type=int, default=3, help="of K = 20")
    parser.add_argument("--many-rounds", type=int, default=1, help="of K = 104")
    given = parser.parse_args()
    rows, ours = [], {}
    one = [run_ours(1, "network") for _ in range(given.rounds)]
    for classes, rounds in ((20, given.rounds), (104, given.many_rounds)):
        theirs: list[Run] = []
        mine: dict[str, list[Run]] = {"network": [], "balls": []}
        for _ in range(rounds):
            theirs.append(run_theirs(given.nnunet, classes))
            for logits, runs in mine.items():
                runs.append(run_ours(classes, logits))
        ours[classes] = mine["network"]
        rows.append(row(classes, "nnU-Net", theirs, None))
        rows += [row(classes, f"iris, {logits}", runs, theirs) for logits, runs in mine.items()]
    rows.insert(0, row(1, "iris, network", one, None))
    grown = median(run.most for run in ours[104]) / median(run.most for run in one)
    notes = [
        f"one thread; {given.rounds} rounds of K = 1 and 20, {given.many_rounds} of K = 104",
        f"memory of K = 104 over K = 1: {grown:.2f} (target {MEMORY_TARGET})",
    ]
    publish("sliding_window", "sliding window and export", notes, HEAD, rows, words=2)


def row(classes: int, side: str, runs: list[Run], theirs: list[Run] | None) -> list[str]:
    """One line of the table."""
    ratio = "-"
    if theirs is not None:
        ratios = [a.all / b.all for a, b in zip(runs, theirs, strict=True)]
        met = "reached" if median(ratios) <= TARGETS[classes] else "missed"
        ratio = f"{spread(ratios)}; {TARGETS[classes]} {met}"
    return [
        str(classes),
        side,
        spread([run.network for run in runs], 1),
        "-" if side.startswith("iris") else spread([run.accumulate for run in runs], 1),
        spread([run.export for run in runs], 1),
        spread([run.all for run in runs], 1),
        ratio,
        spread([run.export / run.network for run in runs]),
        f"{median(run.most for run in runs) / 1e6:.0f}",
    ]


def run_ours(classes: int, logits: str) -> Run:
    """In a process of its own; preparing the query is not counted, as on the other side."""
    shape = Shape((EDGE,) * 3, (1.0, 1.0, 1.0), WORKING_MM, classes, PATCH, logits)
    found: Measured = measure_apart(shape)
    return Run(found.network, 0.0, found.export, found.before + found.bytes)


def run_theirs(python: str, classes: int) -> Run:
    """In a process of its own."""
    words = [python, str(OTHER_SIDE), *map(str, (EDGE, WORKING_MM, classes, PATCH))]
    said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(said.splitlines()[-1])
    return Run(found["network"], found["accumulate"], found["export"], found["most"])


if __name__ == "__main__":
    main()
