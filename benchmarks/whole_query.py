"""A whole 256^3 query on a CPU, ours against the released loops: python -m benchmarks.whole_query

What is timed, in CPU seconds of one thread, literal and ours in turns, with the full-size network:
of theirs one window, to the weighted sums of its probabilities, which is taken 27 times for the
released inference path, and 64 times for the released evaluation loop, which visits the last
position of every axis twice; what theirs does after the last window is not counted. Of ours a whole
query of 27 windows, from the image to the labels.

Memory is told from shapes and one measured window: theirs holds the sums of all classes over the
whole volume, and once more where they are divided; ours holds what `inference.memory` says.

    --network {full,shipped,tiny}
                 full: widths 32-64-128-256-512. shipped: the model that ships, for which a whole
                 query of 128^3 voxels on the working grid is run. tiny: everything is run in full,
                 half as large (128^3 by windows of 64^3, as many of them), the released loops as
                 well, each run in a process of its own, with its memory
    --edge 64    of the windows; 128 is the real one and takes an hour
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
from iris_cli.inference.sliding import Query
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
    """Seconds of a window, literal and ours, in turns: one window of theirs to its blended sums;
    a whole query of ours, from the image to labels, by the number of its windows."""
    config = NetworkConfig.released(bank_size=None)
    torch.manual_seed(0)
    ours = IrisNetwork(config).eval()
    literal = LiteralNetwork(config).eval()
    literal.load_state_dict(ours.state_dict())
    tokens = random_tokens(config, classes)
    image = torch.randn(3 * [2 * edge])
    first = image[:edge, :edge, :edge]
    weight = torch.rand(first.shape)
    sums = torch.zeros(classes, *first.shape)

    def released() -> None:
        with torch.inference_mode():
            found = literal.decode(literal.encoder(first[None, None]), [t[None] for t in tokens])
            sums.add_(torch.sigmoid(found[0]) * weight)

    def streamed(part: Tensor) -> None:
        segment_all(ours, tokens, part, (edge, edge, edge))

    streamed(first)  # kernels are prepared in the first call
    rounds = [(cpu_seconds(released), cpu_seconds(lambda: streamed(image))) for _ in range(ROUNDS)]
    return [a for a, _ in rounds], [b / WINDOWS for _, b in rounds]


def segment_all(
    network: IrisNetwork, tokens: list[Tensor], image: Tensor, patch: tuple[int, int, int]
) -> object:
    """Labels of all classes on the grid of the image."""
    classes = range(len(tokens[0]))
    wanted = Wanted(tokens, [classes], classes, [k + 1 for k in classes])
    grid = Grid.from_spacing(tuple(image.shape), (1.0, 1.0, 1.0))
    query = Query(image.numpy(), float(image.min()))
    return segment(network, wanted, query, grid, grid, patch, How())


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

    def work() -> object:
        if who == OURS:
            return segment_all(ours, tokens, image, TINY_PATCH)
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
    head = ("K", "literal, CPU s a window", "ours, CPU s a window", "whole query over 27 passes",
            "over 64 passes", "memory that waits")  # fmt: skip
    title = f"a query of {2 * given.edge}^3 by windows of {given.edge}^3, full-size network"
    notes = ["one thread, fp32", "ours: a whole query over its 27 windows"]
    publish("whole_query", title, notes, head, full_rows(given.edge))


if __name__ == "__main__":
    main()
