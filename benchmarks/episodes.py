"""CPU seconds of making one episode: python -m benchmarks.episodes [--note TEXT].

Phantoms are generated, planned, preprocessed and sampled; nothing is downloaded. For every kind of
episode and patch: seconds of one thread for the worker's part (reading, intensities, all random
numbers) and for rendering on the CPU (which a GPU does for the whole batch), and the megabytes that
travel to a GPU. The table is appended to benchmarks/results/episodes.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.results_table import publish
from iris_cli.dataset.phantoms import write_phantom_dataset
from iris_cli.planning.training_sets import sets_for_training
from iris_cli.training.catalogue import Catalogue, read_catalogue
from iris_cli.training.episodes import EpisodeSampler
from iris_cli.training.settings import Mixing, TrainingSettings
from iris_cli.workflows.plan import plan
from iris_cli.workflows.preprocess import preprocess

KINDS = ("real", "pseudo", "synthetic")
SEEDS = range(1, 7)
HEAD = ("patch, kind", "images", "worker s", "CPU rendering s", "sum s", "MB to a GPU")


@dataclass(frozen=True)
class Size:
    """A patch, the spacing it works at, and how many episodes are made of each kind."""

    patch: int
    preset: str
    spacing_mm: float
    episodes: int


SIZES = (Size(64, "small", 3.0, 24), Size(128, "base", 1.5, 6))


@dataclass(frozen=True)
class Cost:
    """Means over episodes."""

    images: float
    worker_s: float
    render_s: float
    megabytes: float


def phantom_catalogue(workspace: Path, size: Size) -> Catalogue:
    """Generated phantoms in the store of a workspace."""
    raw = workspace / "raw" / "phantoms"
    if not raw.exists():
        write_phantom_dataset(raw, SEEDS)
    spacing = f"sets.phantoms.spacing_mm={size.spacing_mm}"
    made = plan([raw], workspace=workspace, preset_name=size.preset, overrides=[spacing]).plan
    preprocess(made, workspace=workspace)
    return read_catalogue(sets_for_training(made, workspace))


def measure(catalogue: Catalogue, kind: str, size: Size) -> Cost:
    """CPU seconds of this process, which works with one thread."""
    mixing = Mixing(**{name: float(name == kind) for name in KINDS})
    sampler = EpisodeSampler(catalogue, TrainingSettings(mixing=mixing), size.patch)
    device = torch.device("cpu")
    sampler.episode(size.episodes)
    worker = render = images = moved = 0.0
    for g in range(size.episodes):
        began = time.process_time()
        raw = sampler.raw_episode(g)
        between = time.process_time()
        raw.render(device)
        worker += between - began
        render += time.process_time() - between
        images += len(raw.looks)
        moved += sum(look.image.nbytes + look.labels.nbytes for look in raw.looks)
    n = size.episodes
    return Cost(images / n, worker / n, render / n, moved / n / 1e6)


def rows() -> list[list[str]]:
    """One row per patch and kind."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            catalogue = phantom_catalogue(Path(folder), size)
            for kind in KINDS:
                cost = measure(catalogue, kind, size)
                seconds = (cost.worker_s, cost.render_s, cost.worker_s + cost.render_s)
                found.append(
                    [
                        f"{size.patch}, {kind}",
                        f"{cost.images:.1f}",
                        *(f"{s:.3f}" for s in seconds),
                        f"{cost.megabytes:.1f}",
                    ]
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--note", default="means over episodes", help="a sentence for the title")
    note = parser.parse_args().note
    torch.set_num_threads(1)
    publish("episodes", "CPU seconds of one episode, one thread", (note,), HEAD, rows())


if __name__ == "__main__":
    main()
