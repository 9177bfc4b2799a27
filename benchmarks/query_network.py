"""B2 and B3, one query window against its definition: python -m benchmarks.query_network

Image encoder, decoder and head of the network of the released weights at full width, with random
weights; all sides hold the same weights and get the same image and task tokens. On a CPU: the
definition (benchmarks/literal_network.py) in eager fp32, ours in fp32, and ours in bfloat16 where
the processor computes in it; one thread, CPU seconds, sides in turn in every round. Memory is what
the resident set grows by at most during a call, in a process of its own per side that has run the
side once on a small window, weights prepared. With `--device cuda` (B3): the definition in eager
fp32 (TF32 off) and eager bfloat16, ours in bfloat16; milliseconds between two synchronisations and
the peak of allocated memory.

Errors are the largest over the window, beside the range of the logits. Random weights make the
network chaotic, so bfloat16 is judged by Dice on real queries instead.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.literal_network import LiteralNetwork
from benchmarks.results_table import publish, spread
from benchmarks.training_memory import memory_now
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.network.precision import has_bfloat16

CONFIG = NetworkConfig.released(bank_size=None)
CASES = ("64:1", "64:15", "64:104", "96:1", "96:15", "96:104", "128:1", "128:15", "128:104")
CUDA_CASES = ("128:1", "128:15", "128:104")
# As deep as it takes for every level to get the filters it has at 96^3 and 128^3.
WARM_UP = "96x32x32:1"
ROUNDS, SLOW_ROUNDS = 5, 3
HEAD = ("edge:classes", "side", "seconds", "gain", "MB", "of literal", "error", "labels equal")


class Side:
    """One of the two networks in one precision."""

    def __init__(self, name: str, device: torch.device) -> None:
        kind, precision = name.split()
        torch.manual_seed(0)
        network: IrisNetwork | LiteralNetwork = IrisNetwork(CONFIG)
        if kind == "literal":
            weights = network.state_dict()
            network = LiteralNetwork(CONFIG)
            network.load_state_dict(weights)
        self.network, self.device = network.to(device).eval(), device
        self.half = precision == "bf16"

    def __call__(self, image: Tensor, tokens: list[Tensor]) -> Tensor:
        """image: (1, 1, Z, Y, X), tokens: per stage (1, K, M, C_i) -> logits (1, K, Z, Y, X)."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            if isinstance(self.network, IrisNetwork):
                features = self.network.encode_image(image)
                return self.network.decode(features, tokens, overwrite=True)
            return self.network.decode(self.network.encoder(image), tokens)


def sides_of(device: torch.device) -> tuple[str, ...]:
    """The first one is what the others are compared with."""
    if device.type == "cuda":
        return ("literal fp32", "literal bf16", "iris fp32", "iris bf16")
    plain = ("literal fp32", "iris fp32")
    return (*plain, "iris bf16") if has_bfloat16(device) else plain


def make_inputs(case: str, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """`EDGE:CLASSES` or `ZxYxX:CLASSES` -> image and tokens."""
    size, classes = case.split(":")
    edges = [int(edge) for edge in size.split("x")]
    generator = torch.Generator().manual_seed(1)
    image = torch.randn((1, 1, *(edges if len(edges) == 3 else 3 * edges)), generator=generator)
    tokens = [
        torch.randn((1, int(classes), CONFIG.tokens, CONFIG.stage_channels(i)), generator=generator)
        for i in range(CONFIG.stages)
    ]
    return image.to(device), [t.to(device) for t in tokens]


@contextmanager
def clock(device: torch.device, seconds: list[float]) -> Iterator[None]:
    """Append the CPU seconds of this process, or the seconds of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        yield
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        return
    start = time.process_time()
    yield
    seconds.append(time.process_time() - start)


def compare(
    case: str, rounds: int, names: Sequence[str], device: torch.device
) -> dict[str, dict[str, list[float]]]:
    """Per side: seconds of every round, largest error, range, and share of equal labels."""
    sides = {name: Side(name, device) for name in names}
    inputs = make_inputs(case, device)
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": []} for name in sides}
    for side in sides.values():
        side(*(inputs if device.type == "cuda" else make_inputs(WARM_UP, device)))
    for number in range(rounds + 1):
        expected: Tensor | None = None
        for name, side in sides.items():
            seconds: list[float] = []
            with clock(device, seconds):
                logits = side(*inputs)
            if number == 0:  # the first full window prepares weights and is not timed
                expected = logits if expected is None else expected
                found[name]["error"] = _error(logits, expected)
            else:
                found[name]["seconds"] += seconds
            del logits
    return found


def _error(logits: Tensor, expected: Tensor) -> list[float]:
    labels, right = (torch.where(y.amax(1) > 0, y.argmax(1) + 1, 0) for y in (logits, expected))
    same = float((labels == right).double().mean())
    return [float((logits - expected).abs().max()), float(expected.abs().max()), same]


def measure_memory(case: str, name: str, device: torch.device) -> float:
    """Megabytes by which memory grows at most during one call, beyond inputs and weights."""
    side, inputs = Side(name, device), make_inputs(case, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        side(*inputs)
        return torch.cuda.max_memory_allocated() / 1e6
    side(*make_inputs(WARM_UP, device))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = memory_now("VmRSS")
    side(*inputs)
    return (memory_now("VmHWM") - before) / 1e6


def run_apart(*arguments: str) -> object:
    """This script in a process of its own, on one thread."""
    line = [sys.executable, "-m", "benchmarks.query_network", *arguments]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    found = subprocess.run(
        line, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | threads
    )
    return json.loads(found.stdout)


def table_rows(
    case: str, rounds: int, names: Sequence[str], device: torch.device
) -> list[tuple[str, ...]]:
    """The measured figures of one case as words, a row per side."""
    where = ("--device", str(device))
    timed = run_apart(case, "--time", "--rounds", str(rounds), "--sides", *names, *where)
    assert isinstance(timed, dict)
    first = names[0]
    memory = {name: run_apart(case, "--memory", name, *where) for name in timed}
    rows: list[tuple[str, ...]] = []
    for name, found in timed.items():
        error, scale, same = found["error"]
        gain = median(timed[first]["seconds"]) / median(found["seconds"])
        megabytes = float(str(memory[name]))
        row = (
            case,
            name,
            spread(found["seconds"], 4 if device.type == "cuda" else 2),
            f"{gain:.2f}x",
            f"{megabytes:.0f}",
            f"{megabytes / float(str(memory[first])):.2f}",
            "-" if name == first else f"{error:.1e} of {scale:.1f}",
            "-" if name == first else f"{100 * same:.3f} %",
        )
        sys.stderr.write(" | ".join(row) + "\n")
        rows.append(row)
    return rows


def main() -> None:
    """Print the table and append it to the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="EDGE:CLASSES")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--sides", nargs="+", help="all by default; the first is compared with")
    parser.add_argument("--rounds", type=int, help="5 by default, 3 at 128^3")
    parser.add_argument("--time", action="store_true", help="time one case here and print JSON")
    parser.add_argument("--memory", help="measure one side here and print JSON")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if given.memory:
        sys.stdout.write(json.dumps(measure_memory(given.cases[0], given.memory, given.device)))
        return
    if given.time:
        found = compare(given.cases[0], given.rounds, given.sides, given.device)
        sys.stdout.write(json.dumps(found))
        return
    cuda = given.device.type == "cuda"
    rows: list[tuple[str, ...]] = []
    for case in given.cases or (CUDA_CASES if cuda else CASES):
        few = SLOW_ROUNDS if case.startswith("128") and not cuda else ROUNDS
        names = given.sides or sides_of(given.device)
        rows += table_rows(case, given.rounds or few, names, given.device)
    where = torch.cuda.get_device_name(given.device) if cuda else "one thread, CPU seconds"
    publish(
        "network",
        f"query window against its definition ({'B3' if cuda else 'B2'})",
        (where, "median (lowest-highest)", "gain and memory against the first row of a case"),
        HEAD,
        rows,
        words=2,
    )


if __name__ == "__main__":
    main()
