"""A whole 256^3 query on a CPU, ours against the released loops: python -m benchmarks.whole_query

What is timed is one window with the full-size network, literal and ours in turns, in CPU seconds of
one thread; a query is that times its windows: 27 for ours and for the released inference path, 64
for the released evaluation loop, which visits the last position of every axis twice. Blending comes
on top, timed on a window of real logits: ours in slabs, theirs into whole volumes.

Memory is told from shapes and one measured window: theirs holds the sums of all classes over the
whole volume, and once more where they are divided; ours holds what `inference.memory` says.

    --network {full,shipped,tiny}
                 full: widths 32-64-128-256-512. shipped: the model that ships, for which a whole
                 query of 128^3 voxels on the working grid is run. tiny: everything is run in full,
                 half as large (128^3 by windows of 64^3, as many of them), the released loops as
                 well, each run in a process of its own, with its memory
    --edge 64    of the timed window; 128 is the real one and takes 20 minutes
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.literal_network import LiteralNetwork
from benchmarks.prediction_memory import memory_now
from benchmarks.released_loops import evaluation_loop, inference_path
from benchmarks.results_table import publish, spread
from iris_cli.inference.memory import Means, Sizes
from iris_cli.inference.sliding import Decoding, Query
from iris_cli.inference.streaming import How, Wanted, segment
from iris_cli.inference.windows import Layout
from iris_cli.model.model import load_model
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.volume.grid import Grid

VOLUME = (256, 256, 256)
PATCH = 128
WINDOWS, EVALUATION_WINDOWS = 27, 64
CLASSES = (1, 15, 104)
ROUNDS = 3
SHIPPED_EDGE = 128
TINY_VOLUME, TINY_PATCH = (128, 128, 128), (64, 64, 64)
RELEASED = {"inference": inference_path, "evaluation": evaluation_loop}
OURS = "ours"


def random_tokens(config: NetworkConfig, classes: int) -> list[Tensor]:
    """(K, M, C) per stage."""
    torch.manual_seed(1)
    return [
        torch.randn(classes, config.tokens, config.stage_channels(stage))
        for stage in range(config.stages)
    ]


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of one thread."""
    started = time.process_time()
    work()
    return time.process_time() - started


def time_windows(edge: int, classes: int) -> tuple[list[float], list[float]]:
    """Literal and ours, one window to its blended sums, in turns."""
    config = NetworkConfig.released(bank_size=None)
    torch.manual_seed(0)
    ours = IrisNetwork(config).eval()
    literal = LiteralNetwork(config).eval()
    literal.load_state_dict(ours.state_dict())
    tokens = random_tokens(config, classes)
    image = torch.randn(edge, edge, edge)
    decode = Decoding(ours, tokens, [range(classes)], "cpu", "fp32")
    weight = torch.rand(edge, edge, edge)
    sums = torch.zeros(classes, edge, edge, edge)

    def released() -> None:
        with torch.inference_mode():
            found = literal.decode(literal.encoder(image[None, None]), [t[None] for t in tokens])
            sums.add_(torch.sigmoid(found[0]) * weight)

    def streamed() -> None:
        (found,) = decode(image[None].numpy())[0]
        rows = edge // 8
        for low in range(0, edge, rows):
            box = (slice(low, low + rows), slice(0, edge), slice(0, edge))
            part = found.logits_in(box)[0]
            sums[:, low : low + rows].addcmul_(part, weight[low : low + rows])

    streamed()  # kernels are prepared in the first call
    rounds = [(cpu_seconds(released), cpu_seconds(streamed)) for _ in range(ROUNDS)]
    return [a for a, _ in rounds], [b for _, b in rounds]


def memory_share(classes: int) -> float:
    """What waits to be finished, ours over theirs: both without the network's own activations."""
    config = NetworkConfig.released(bank_size=None)
    layout = Layout(VOLUME, (PATCH, PATCH, PATCH))
    ours = Sizes.of(config, layout, classes, 1, "fp32").blend
    # Sums, their quotient, and three tensors of a window: logits, probabilities, weighted ones.
    theirs = 4 * classes * (2 * math.prod(VOLUME) + 3 * PATCH**3)
    return ours / theirs


def full_rows(edge: int) -> list[list[str]]:
    """One row per number of classes."""
    rows = []
    for classes in CLASSES:
        literal, ours = time_windows(edge, classes)
        ratios = [a / b for a, b in zip(literal, ours, strict=True)]
        again = [r * EVALUATION_WINDOWS / WINDOWS for r in ratios]
        rows.append(
            [
                f"{classes}",
                spread(literal, 1),
                spread(ours, 1),
                f"{spread(ratios)}; 1.9 {_met(ratios, 1.9)}",
                f"{spread(again)}; 4.5 {_met(again, 4.5)}",
                f"{memory_share(classes):.2f}",
            ]
        )
    return rows


def _met(values: Sequence[float], target: float) -> str:
    return "reached" if float(np.median(values)) >= target else "missed"


def shipped_row() -> list[str]:
    """A query of 128^3 working voxels with the model that ships, from image to labels."""
    model = load_model()
    tokens = random_tokens(model.network.config, 15)
    wanted = Wanted(tokens, [range(15)], range(15), range(1, 16))
    image = np.random.default_rng(0).normal(size=(SHIPPED_EDGE,) * 3).astype(np.float32)
    spacing = (model.card.s0,) * 3
    grid = Grid.from_spacing(image.shape, spacing)
    patch = (model.card.patch,) * 3
    how = How(means=Means())
    seconds = [
        cpu_seconds(
            lambda: segment(model.network, wanted, Query(image, -3.0), grid, grid, patch, how)
        )
        for _ in range(ROUNDS)
    ]
    return [model.card.name, "15", spread(seconds, 1), f"20 {_met([-s for s in seconds], -20)}"]


def run_whole(who: str, classes: int) -> dict[str, float]:
    """A whole query in this process, which has done nothing else yet: CPU seconds, and bytes over
    those it held before."""
    config = NetworkConfig.tiny()
    torch.manual_seed(0)
    ours = IrisNetwork(config).eval()
    literal = LiteralNetwork(config).eval()
    literal.load_state_dict(ours.state_dict())
    tokens = random_tokens(config, classes)
    image = torch.randn(TINY_VOLUME)
    grid = Grid.from_spacing(TINY_VOLUME, (1.0, 1.0, 1.0))
    wanted = Wanted(tokens, [range(classes)], range(classes), range(1, classes + 1))

    def work() -> object:
        if who == OURS:
            query = Query(image.numpy(), float(image.min()))
            return segment(ours, wanted, query, grid, grid, TINY_PATCH, How())
        return RELEASED[who](literal, tokens, image, TINY_PATCH)

    before = memory_now("VmRSS")
    return {"seconds": cpu_seconds(work), "bytes": memory_now("VmHWM") - before}


def run_apart(who: str, classes: int) -> dict[str, float]:
    """`run_whole` in a process of its own."""
    line = [sys.executable, "-m", "benchmarks.whole_query", "--run", who, str(classes)]
    found = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(found.stdout))


def tiny_rows(rounds: int) -> list[list[str]]:
    """One row per number of classes; the three of a round run one after the other."""
    rows = []
    for classes in CLASSES:
        runs = [{who: run_apart(who, classes) for who in (OURS, *RELEASED)} for _ in range(rounds)]
        seconds = {who: [run[who]["seconds"] for run in runs] for who in runs[0]}
        memory = {who: float(np.median([run[who]["bytes"] for run in runs])) for who in runs[0]}
        ratios = {
            who: [a / b for a, b in zip(seconds[who], seconds[OURS], strict=True)]
            for who in RELEASED
        }
        shares = {who: memory[OURS] / memory[who] for who in RELEASED}
        rows.append(
            [
                f"{classes}",
                *(spread(seconds[who], 1) for who in seconds),
                *(spread(ratios[who]) for who in RELEASED),
                " / ".join(f"{memory[who] / 1e6:.0f}" for who in memory),
                " / ".join(f"{share:.2f}" for share in shares.values())
                + (f"; 1/3 {_met([-max(shares.values())], -1 / 3)}" if classes == 104 else ""),
            ]
        )
    return rows


def main() -> None:
    """Print the table and append it to the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=("full", "shipped", "tiny"), default="full")
    parser.add_argument("--edge", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the tiny network")
    parser.add_argument("--run", nargs=2, metavar=("WHO", "K"), help="one run here, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.run:
        sys.stdout.write(json.dumps(run_whole(given.run[0], int(given.run[1]))) + "\n")
        return
    if given.network == "tiny":
        publish(
            "whole_query",
            f"a whole query of {TINY_VOLUME[0]}^3 by windows of {TINY_PATCH[0]}^3, tiny network",
            [
                f"one thread, fp32, rounds: {given.rounds}",
                "released inference path: 27 windows, evaluation loop: 64 passes with all classes "
                "in each (the released one takes 8 at a time)",
                "memory is the highest resident size over that before the run",
            ],
            ("K", "ours, CPU s", "inference path, CPU s", "evaluation loop, CPU s",
             "inference path / ours", "evaluation loop / ours",
             "peak MB, ours / inference / evaluation", "memory, ours over theirs"),
            tiny_rows(given.rounds),
        )  # fmt: skip
        return
    if given.network == "shipped":
        publish(
            "whole_query",
            f"a query of {SHIPPED_EDGE}^3 voxels, shipped model",
            ["one thread, fp32"],
            ("model", "K", "query, CPU s", "at most"),
            [shipped_row()],
        )
        return
    head = ("K", "literal, CPU s", "ours, CPU s", "whole query over 27 passes", "over 64 passes",
            "memory that waits")  # fmt: skip
    title = f"a query of 256^3 by windows of {given.edge}^3, full-size network"
    publish("whole_query", title, ["one thread, fp32"], head, full_rows(given.edge))


if __name__ == "__main__":
    main()
