"""A few steps of recipe `paper` at full width on generated phantoms: python three_steps.py

The same two episodes are learned from again and again, one after the other (accumulation), so the
loss before every update is on a fixed batch and has to fall. Only the warm-up is left out: a few
steps would be nothing else. At the defaults (32-64-128-256-512 channels, 128 voxels, recomputing)
this takes 10 to 15 minutes of one core and the memory that is printed first; on a GPU:

    python three_steps.py --device cuda --steps 50

Ends with 1 where the loss did not fall or memory is not within 15 % of what was predicted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from iris_cli.dataset.phantoms import write_phantom_dataset
from iris_cli.network.precision import autocast_type
from iris_cli.planning.estimate import TrainingEstimate, estimate_step
from iris_cli.planning.plan import Plan
from iris_cli.planning.step_shape import StepShape
from iris_cli.planning.training_sets import sets_for_training
from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.distributed import ALONE
from iris_cli.training.episodes import Episode, EpisodeSampler
from iris_cli.training.log import Tally
from iris_cli.training.state import Run
from iris_cli.training.step import EpisodeNetwork, Stepper
from iris_cli.workflows.plan import plan as make_plan
from iris_cli.workflows.preprocess import preprocess

TOLERANCE = 0.15


def main() -> int:
    """Prepare, train and compare; returns the exit code."""
    given = arguments()
    with tempfile.TemporaryDirectory() as folder:
        made = prepare(Path(folder), given)
        catalogue = read_catalogue(sets_for_training(made, Path(folder)))
        sampler = EpisodeSampler(catalogue, made.training, made.patch)
        batch = [sampler.episode(g) for g in range(made.training.batch)]
        predicted = predict_memory(made, batch, given.device)
        sys.stdout.write(f"predicted memory: {predicted.text()}\n")
        losses, measured = take_steps(made, batch, given.device, Path(folder) / "run")
    ratio = predicted.total_bytes / measured
    falls, fits = losses[-1] < losses[0], abs(ratio - 1) <= TOLERANCE
    sys.stdout.write(
        f"loss on the same {len(batch)} episodes: {losses[0]:.4f} -> {losses[-1]:.4f} "
        f"({'falls' if falls else 'DOES NOT FALL'})\n"
        f"memory: {measured / 2**30:.2f} GiB measured, {predicted.gib:.2f} GiB predicted, ratio "
        f"{ratio:.2f} ({'as predicted' if fits else 'NOT within 15 %'})\n"
    )
    return 0 if falls and fits else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2, help="episodes of a step")
    parser.add_argument("--patch", type=int, default=128, help="edge in voxels")
    parser.add_argument(
        "--channels", default="[32,64,128,256,512]", help="widths of the five levels, as JSON"
    )
    parser.add_argument("--keep", action="store_true", help="keep activations: no recomputing")
    return parser.parse_args()


def prepare(workspace: Path, given: argparse.Namespace) -> Plan:
    """Three phantoms, a plan by recipe `paper`, and their preprocessed form."""
    write_phantom_dataset(workspace / "raw" / "phantoms", (1, 2, 3), voxel_mm=3.0)
    report = make_plan(
        workspace=workspace,
        recipe_name="paper",
        overrides=[
            f"network.channels={given.channels}",
            f"patch={given.patch}",
            f"training.steps={given.steps}",
            f"training.batch={given.batch}",
            f"training.accumulation={given.batch}",
            f"training.recompute={'false' if given.keep else 'true'}",
            "training.optimiser.warmup=0",
            # The prediction was checked in float32 on CPUs, whether they have bfloat16 or not.
            f"training.precision={'auto' if given.device.startswith('cuda') else 'float32'}",
        ],
    )
    preprocess(report.path, workspace=workspace)
    return report.plan


def predict_memory(made: Plan, batch: list[Episode], device: str) -> TrainingEstimate:
    """For the episodes at hand, of which each is a part of its own."""
    kind = autocast_type(made.training.precision, torch.device(device))
    return estimate_step(
        StepShape(
            network=made.network,
            patch=made.patch,
            episodes=1,
            references=max(len(episode.references) for episode in batch),
            classes=max(len(episode.names) for episode in batch),
            recompute=made.training.recompute,
            gradients=len(batch) > 1,
            device="cuda" if device.startswith("cuda") else "cpu",
            precision="float32" if kind is None else "bfloat16",
        )
    )


def take_steps(
    made: Plan, batch: list[Episode], device: str, folder: Path
) -> tuple[list[float], int]:
    """Loss before each update, and the most bytes that the steps took."""
    before = start_measuring(device)
    run = Run(folder, made.network, made.training, {}, torch.device(device))
    network = EpisodeNetwork(run.network, recompute=made.training.recompute)
    stepper = Stepper(run, ALONE, network)
    losses = []
    for step in range(made.training.steps):
        tally, began = Tally(), time.perf_counter()
        stepper.take([[episode] for episode in batch], tally)
        losses.append(tally.mean("loss") or float("nan"))
        seconds = time.perf_counter() - began
        sys.stdout.write(f"step {step + 1}: loss {losses[-1]:.4f}, {seconds:.1f} s\n")
        sys.stdout.flush()
    return losses, peak(device) - before


def start_measuring(device: str) -> int:
    """Forget earlier peaks; returns the bytes held now."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: VmHWM := VmRSS
    return status("VmRSS")


def peak(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return status("VmHWM")


def status(what: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition(f"{what}:")[2].split()[0]) * 1024


if __name__ == "__main__":
    sys.exit(main())
