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
from pathlib import Path

import torch

from benchmarks.results_table import publish
from iris_cli.planning.estimate import estimate_step
from iris_cli.planning.presets import PRESETS
from iris_cli.planning.step_shape import Device, StepShape
from iris_cli.training.distributed import ALONE
from iris_cli.training.episodes import Episode
from iris_cli.training.log import Tally
from iris_cli.training.settings import OptimiserSettings, TrainingSettings
from iris_cli.training.state import Run
from iris_cli.training.step import EpisodeNetwork, Stepper

CPU_SHAPES = ("tiny:64:2:2:3", "small:64:1:3:8", "small:64:4:2:4", "base:64:1:2:3:recompute")
CUDA_SHAPES = ("small:64:4:3:8", "base:128:1:3:8", "base:128:4:3:8:recompute")
STEPS = 3


def parse_shape(text: str, device: Device) -> StepShape:
    """From `NETWORK:PATCH:EPISODES:REFERENCES:CLASSES[:recompute]`; bfloat16 on CUDA."""
    network, *numbers = text.removesuffix(":recompute").split(":")
    patch, episodes, references, classes = map(int, numbers)
    return StepShape(
        network=PRESETS[network].network,
        patch=patch,
        episodes=episodes,
        references=references,
        classes=classes,
        recompute=text.endswith(":recompute"),
        device=device,
        precision="bfloat16" if device == "cuda" else "float32",
    )


def make_episode(step: StepShape, index: int) -> Episode:
    """Noise, and one cube for every class of every image."""
    generator = torch.Generator().manual_seed(index)
    size, k, r = (step.patch,) * 3, step.classes, step.references
    masks = torch.zeros((1 + r, k, *size), dtype=torch.bool)
    inside = slice(step.patch // 4, step.patch // 2)
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


def measure(shape: StepShape) -> int:
    """Peak bytes of a few steps in this process, which has done nothing else yet."""
    settings = TrainingSettings(
        batch=shape.episodes,
        recompute=shape.recompute,
        precision=shape.precision,
        optimiser=OptimiserSettings(name="adamw"),
    )
    before = memory_now("VmRSS") if shape.device == "cpu" else 0
    run = Run(Path(), shape.network, settings, {}, torch.device(shape.device))
    network = EpisodeNetwork(run.network, recompute=settings.recompute)
    stepper = Stepper(run, ALONE, network)
    for step in range(STEPS):
        first = step * shape.episodes
        stepper.take([[make_episode(shape, first + i) for i in range(shape.episodes)]], Tally())
    if shape.device == "cuda":
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
        sys.stdout.write(json.dumps(measure(parse_shape(given.measure, given.device))) + "\n")
        return
    rows = []
    for text in given.shapes or (CUDA_SHAPES if given.device == "cuda" else CPU_SHAPES):
        predicted = estimate_step(parse_shape(text, given.device)).total_bytes
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
