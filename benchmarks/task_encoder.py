"""B1, time and memory of the task encoder against its definition: python -m benchmarks.task_encoder

The network of the released weights at full width with random weights, fp32, one thread; both forms
hold the same weights and get the same features of a reference and the same masks. Masks are balls
of 3 voxels up to a third of the crop in radius, which is how organs lie in it; `scattered` masks
are every 20th voxel of the whole crop, so that no bounding box helps.
Time is CPU seconds of this process, the two forms one after the other in every round. Memory is
what the resident set grows by at most during a call, in a process of its own per form that has run
the form once on a small crop. Both forms run under the allocator settings of the caller.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.literal_network import LiteralNetwork
from benchmarks.results_table import publish, spread
from benchmarks.training_memory import memory_now
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork

CASES = ("96:1", "96:15", "128:1", "128:15", "96:15:scattered", "96:5", "128:5")
CONFIG = NetworkConfig.released(bank_size=None)
FORMS = ("literal", "iris")
WARM_UP = "32:1"
ROUNDS, SLOW_ROUNDS = 5, 3
ALLOCATOR = ("THP_MEM_ALLOC_ENABLE", "MALLOC_ARENA_MAX", "LD_PRELOAD", "GLIBC_TUNABLES")


def build(form: str) -> LiteralNetwork | IrisNetwork:
    """One of the two forms; both have the same weights."""
    torch.manual_seed(0)
    network = IrisNetwork(CONFIG).eval()
    if form == "iris":
        return network
    literal = LiteralNetwork(CONFIG).eval()
    literal.load_state_dict(network.state_dict())
    return literal


def make_inputs(case: str) -> tuple[list[Tensor], Tensor]:
    """`EDGE:CLASSES[:scattered]` -> features of every stage, masks (1, K, Z, Y, X) bool."""
    edge, classes = map(int, case.split(":")[:2])
    generator = torch.Generator().manual_seed(1)
    features = []
    for stage in range(CONFIG.stages):
        size = edge // CONFIG.stage_stride(stage)
        shape = (1, CONFIG.stage_channels(stage), size, size, size)
        features.append(torch.randn(shape, generator=generator))
    if case.endswith("scattered"):
        return features, torch.rand((1, classes, *[edge] * 3), generator=generator) < 1 / 20
    return features, _balls(edge, classes, generator)


def _balls(edge: int, classes: int, generator: torch.Generator) -> Tensor:
    axis = torch.arange(edge)
    masks = torch.empty((1, classes, edge, edge, edge), dtype=torch.bool)
    for k in range(classes):
        radius = float(3 + (edge / 3 - 3) * torch.rand((), generator=generator) ** 2)
        z, y, x = torch.randint(edge // 4, edge * 3 // 4, (3,), generator=generator).tolist()
        distance = (axis - z)[:, None, None] ** 2 + (axis - y)[:, None] ** 2 + (axis - x) ** 2
        masks[0, k] = distance <= radius**2
    return masks


def compare(case: str, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every round per form, and the largest error of the tokens over their range."""
    networks = {form: build(form) for form in FORMS}
    features, masks = make_inputs(case)
    found: dict[str, list[float]] = {form: [] for form in FORMS}
    tokens = {}
    for network in networks.values():
        network.encode_task(*make_inputs(WARM_UP))
    for _ in range(rounds):
        for form, network in networks.items():
            start = time.process_time()
            tokens[form] = network.encode_task(features, masks)
            found[form].append(time.process_time() - start)
    pairs = zip(tokens["literal"], tokens["iris"], strict=True)
    found["error"] = [float((a - b).abs().max() / a.abs().max()) for a, b in pairs]
    return found


def measure_memory(case: str, form: str) -> int:
    """Bytes by which the resident set grows at most during one call (Linux)."""
    network = build(form)
    features, masks = make_inputs(case)
    network.encode_task(*make_inputs(WARM_UP))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = memory_now("VmRSS")
    network.encode_task(features, masks)
    return memory_now("VmHWM") - before


def run_apart(*arguments: str) -> dict[str, list[float]]:
    """This script in a process of its own, on one thread."""
    line = [sys.executable, "-m", "benchmarks.task_encoder", *arguments]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    found = subprocess.run(
        line, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | threads
    )
    return json.loads(found.stdout)  # type: ignore[no-any-return]


def table_row(case: str) -> tuple[str, ...]:
    """The measured figures of one case as words."""
    rounds = SLOW_ROUNDS if case.startswith("128") else ROUNDS
    timed = run_apart(case, "--time", "--rounds", str(rounds))
    memory = {form: run_apart(case, "--memory", form)["bytes"][0] / 1e6 for form in FORMS}
    ratio = median(timed["literal"]) / median(timed["iris"])
    row = (
        case,
        spread(timed["literal"]),
        spread(timed["iris"], 3),
        f"{ratio:.1f}",
        f"{memory['literal']:.0f}",
        f"{memory['iris']:.0f}",
        f"{memory['literal'] / memory['iris']:.1f}",
        f"{max(timed['error']):.1e}",
    )
    sys.stderr.write(" | ".join(row) + "\n")
    return row


def main() -> None:
    """Print the table and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="EDGE:CLASSES[:scattered]")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--time", action="store_true", help="time one case here and print JSON")
    parser.add_argument("--memory", choices=FORMS, help="measure one form here and print JSON")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    if given.memory:
        found = {"bytes": [measure_memory(given.cases[0], given.memory)]}
        sys.stdout.write(json.dumps(found))
        return
    if given.time:
        sys.stdout.write(json.dumps(compare(given.cases[0], given.rounds)))
        return
    settings = [f"{name}={os.environ[name]}" for name in ALLOCATOR if name in os.environ]
    publish(
        "network",
        "task encoder against its definition (B1)",
        (
            "one thread, fp32",
            f"CPU seconds, median (lowest-highest) of {ROUNDS} rounds, {SLOW_ROUNDS} at 128^3",
            "memory in MB",
            f"allocator: {', '.join(settings) or 'as the C library comes'}, the same for both",
        ),
        ("edge:classes", "literal s", "iris s", "ratio", "literal MB", "iris MB", "ratio", "error"),
        [table_row(case) for case in given.cases or CASES],
    )


if __name__ == "__main__":
    main()
