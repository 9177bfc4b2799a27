"""A whole 256^3 query on a CPU, ours against the released loops: python -m benchmarks.whole_query

What is timed is one window with the full-size network, literal and ours in turns, in CPU seconds of
one thread; a query is that times its windows: 27 for ours and for the released inference path, 64
for the released evaluation loop, which visits the last position of every axis twice. Blending comes
on top, timed on a window of real logits: ours in slabs, theirs into whole volumes.

Memory is told from shapes and one measured window: theirs holds the sums of all classes over the
whole volume, and once more where they are divided; ours holds what `inference.memory` says.

    --network {full,shipped}   widths 32-64-128-256-512, or the model that ships, for which a
                               whole query of 128^3 voxels on the working grid is run
    --edge 64                  of the timed window; 128 is the real one and takes 20 minutes
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.literal_network import LiteralNetwork
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
            part = found.logits_of(range(classes), 0, low, low + rows)[0]
            sums[:, low : low + rows].addcmul_(part, weight[low : low + rows])

    streamed()  # kernels are prepared in the first call
    rounds = [(cpu_seconds(released), cpu_seconds(streamed)) for _ in range(ROUNDS)]
    return [a for a, _ in rounds], [b for _, b in rounds]


def memory_share(classes: int) -> float:
    """What waits to be finished, ours over theirs: both without the network's own activations."""
    config = NetworkConfig.released(bank_size=None)
    layout = Layout.along_longest(VOLUME, (PATCH, PATCH, PATCH))
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


def main() -> None:
    """Print the table and append it to the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=("full", "shipped"), default="full")
    parser.add_argument("--edge", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
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
