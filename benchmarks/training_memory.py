"""Memory of a training step, predicted against measured: python -m benchmarks.training_memory

Every shape is trained for a few steps in a process of its own, by the code that `iris train` runs,
on episodes in which every class is in every reference. On a CPU its peak (VmHWM) is taken from what
it holds after all imports; with --device cuda it is what torch allocated on the device at most.
Shapes are `NETWORK:PATCH:EPISODES:REFERENCES:CLASSES[:recompute]`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.results_table import publish
from iris_cli.planning.estimate import TrainingEstimate, estimate_step
from iris_cli.planning.presets import PRESETS
from iris_cli.training.distributed import ALONE
from iris_cli.training.episodes import Episode
from iris_cli.training.log import Tally
from iris_cli.training.settings import OptimiserSettings, TrainingSettings
from iris_cli.training.state import Run
from iris_cli.training.step import EpisodeNetwork, Stepper

CPU_SHAPES = ("tiny:64:2:2:3", "small:64:1:3:8", "small:64:4:2:4", "base:64:1:2:3:recompute")
CUDA_SHAPES = ("small:64:4:3:8", "base:128:1:3:8", "base:128:4:3:8:recompute")
STEPS = 3


@dataclass(frozen=True)
class Shape:
    """A network of a preset, edge of the patch, and one part of a batch."""

    network: str
    patch: int
    episodes: int
    references: int
    classes: int
    recompute: bool

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From `NETWORK:PATCH:EPISODES:REFERENCES:CLASSES[:recompute]`."""
        network, *numbers = text.removesuffix(":recompute").split(":")
        patch, episodes, references, classes = map(int, numbers)
        recompute = text.endswith(":recompute")
        return cls(network, patch, episodes, references, classes, recompute)

    def predicted(self, device: str) -> TrainingEstimate:
        """float32 on a CPU, bfloat16 on CUDA."""
        cuda = device == "cuda"
        return estimate_step(
            PRESETS[self.network].network,
            self.patch,
            episodes=self.episodes,
            references=self.references,
            classes=self.classes,
            recompute=self.recompute,
            device="cuda" if cuda else "cpu",
            precision="bfloat16" if cuda else "float32",
        )

    def episode(self, index: int) -> Episode:
        """Noise, and one cube for every class of every image."""
        generator = torch.Generator().manual_seed(index)
        size, k, r = (self.patch,) * 3, self.classes, self.references
        masks = torch.zeros((1 + r, k, *size), dtype=torch.bool)
        inside = slice(self.patch // 4, self.patch // 2)
        masks[:, :, inside, inside, inside] = True
        return Episode(
            index=index,
            kind="real",
            source="noise",
            names=tuple(f"class_{i}" for i in range(k)),
            keys=tuple(f"noise/class_{i}" for i in range(k)),
            query=torch.randn(size, generator=generator),
            references=torch.randn((r, *size), generator=generator),
            query_masks=masks[0],
            reference_masks=masks[1:],
            query_valid=torch.ones(k, dtype=torch.bool),
            reference_valid=torch.ones((r, k), dtype=torch.bool),
            counted=torch.ones(size, dtype=torch.bool),
        )


def measure(shape: Shape, device: str) -> int:
    """Peak bytes of a few steps in this process, which has done nothing else yet."""
    settings = TrainingSettings(
        batch=shape.episodes,
        recompute=shape.recompute,
        precision="bfloat16" if device == "cuda" else "float32",
        optimiser=OptimiserSettings(name="adamw"),
    )
    before = memory_now("VmRSS") if device == "cpu" else 0
    run = Run(Path(), PRESETS[shape.network].network, settings, {}, torch.device(device))
    network = EpisodeNetwork(run.network, recompute=settings.recompute)
    stepper = Stepper(run, ALONE, network)
    for step in range(STEPS):
        first = step * shape.episodes
        stepper.take([[shape.episode(first + i) for i in range(shape.episodes)]], Tally())
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return memory_now("VmHWM") - before


def memory_now(what: str) -> int:
    """Bytes of this process: VmRSS is what it holds, VmHWM the most it ever held (Linux)."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition(f"{what}:")[2].split()[0]) * 1024


def measure_apart(text: str, device: str) -> int:
    """`measure` in a process of its own."""
    line = [sys.executable, "-m", "benchmarks.training_memory", "--measure", text]
    found = subprocess.run(
        [*line, "--device", device], check=True, stdout=subprocess.PIPE, text=True
    )
    return int(json.loads(found.stdout))


def main() -> None:
    """Print the table and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--measure", metavar="SHAPE", help="measure this one here and print bytes")
    given = parser.parse_args()
    if given.measure:
        if given.device == "cpu":
            torch.set_num_threads(1)
        sys.stdout.write(json.dumps(measure(Shape.parse(given.measure), given.device)) + "\n")
        return
    rows = []
    for text in given.shapes or (CUDA_SHAPES if given.device == "cuda" else CPU_SHAPES):
        predicted = Shape.parse(text).predicted(given.device).total_bytes
        measured = measure_apart(text, given.device)
        figures = f"{predicted / 1e6:.0f}", f"{measured / 1e6:.0f}", f"{predicted / measured:.2f}"
        rows.append((text, *figures))
    publish(
        "training_memory",
        f"memory of a training step, {given.device}",
        ("one thread", f"{STEPS} steps", "MB", "shape: network:patch:episodes:references:classes"),
        ("shape", "predicted", "measured", "ratio"),
        rows,
    )


if __name__ == "__main__":
    main()
