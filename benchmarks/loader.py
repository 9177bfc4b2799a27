"""B6, training patches per second of one core: python -m benchmarks.loader --nnunet PYTHON

Both sides read generated volumes (160 x 192 x 192 at 1.5 mm, 20 classes) from their own store and
hand over augmented patches of the same edge with their labels, on one thread.

- nnU-Net: its loader and training transforms as its trainer makes them, without worker processes:
  a larger patch is read, then turned and scaled (a fifth of the patches each), noise, blur,
  brightness, contrast, low resolution, gamma, mirroring, deep supervision targets.
- iris: images of real episodes of the recipe `robust` (reference or query, with the masks of all
  classes of the episode): crops chosen by class, all but a few turned, sheared and scaled, some of
  them bent, noise, blur, brightness, contrast, low resolution, gamma, remapping. Geometry is
  rendered on the device that trains; here on the CPU, and counted (the column *on the device*).

Rounds alternate; figures are patches per CPU second of reading and of all, medians.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.generated_volumes import write_set
from benchmarks.preprocess import Part, run_nnunet
from benchmarks.results_table import publish, spread
from iris_cli.planning.training_sets import sets_for_training
from iris_cli.training.catalogue import Catalogue, read_catalogue
from iris_cli.training.episodes import EpisodeSampler
from iris_cli.training.settings import Mixing, TrainingSettings
from iris_cli.workflows.plan import plan
from iris_cli.workflows.preprocess import preprocess

TARGET = 2.0
PATCHES = {64: 120, 128: 32}
SPACING_MM = 1.5
HEAD = ("patch", "nnU-Net /s", "iris /s", "on the device", "ratio", "target")


def main() -> None:
    """Measure both patches and append the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nnunet", required=True, help="a Python that has nnunetv2")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        raw = base / "raw" / "Dataset920_Loader"
        write_set(raw, (160, 192, 192), (SPACING_MM,) * 3, cases=4, classes=20)
        run_nnunet(Part("", raw, SPACING_MM, 1), base / "nnunet", arguments.nnunet, 3)
        store = base / "nnunet" / raw.name
        for patch in PATCHES:
            catalogue = _catalogue(raw, base / f"iris{patch}", patch)
            measured = [
                (_nnunet(arguments.nnunet, store, patch), *_iris(catalogue, patch, number))
                for number in range(arguments.rounds)
            ]
            rows.append(_row(patch, measured))
    publish(
        "loader",
        "training patches per CPU second, one thread, against nnU-Net (B6)",
        (f"{arguments.rounds} rounds, median (lowest-highest)",),
        HEAD,
        rows,
    )


def _row(patch: int, measured: list[tuple[float, float, float]]) -> list[str]:
    """measured: seconds of a patch of nnU-Net, of iris' reading, of iris' rendering."""
    theirs = [1 / seconds for seconds, _, _ in measured]
    ours = [1 / (reading + rendering) for _, reading, rendering in measured]
    share = median(rendering / (reading + rendering) for _, reading, rendering in measured)
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    reached = "reached" if median(ratios) >= TARGET else "missed"
    return [
        str(patch), spread(theirs, 1), spread(ours, 1), f"{share:.0%}", spread(ratios, 1),
        f">= {TARGET:g}: {reached}",
    ]  # fmt: skip


def _catalogue(raw: Path, workspace: Path, patch: int) -> Catalogue:
    overrides = [f"sets.{raw.name}.spacing_mm={SPACING_MM}", f"patch={patch}"]
    made = plan([raw], workspace=workspace, preset_name="base", overrides=overrides).plan
    preprocess(made, workspace=workspace)
    return read_catalogue(sets_for_training(made, workspace))


def _iris(catalogue: Catalogue, patch: int, number: int) -> tuple[float, float]:
    """CPU seconds of a patch: what a worker does, and what the training device does."""
    settings = TrainingSettings(mixing=Mixing(real=1.0, pseudo=0.0, synthetic=0.0))
    sampler = EpisodeSampler(catalogue, settings, patch)
    device = torch.device("cpu")
    episode = 1000 * number
    sampler.episode(episode)
    reading = rendering = 0.0
    patches = 0
    while patches < PATCHES[patch]:
        episode += 1
        began = time.process_time()
        raw = sampler.raw_episode(episode)
        between = time.process_time()
        raw.render(device)
        reading += between - began
        rendering += time.process_time() - between
        patches += len(raw.looks)
    return reading / patches, rendering / patches


def _nnunet(python: str, store: Path, patch: int) -> float:
    script = Path(__file__).with_name("nnunet_loader.py")
    environment = {
        "OMP_NUM_THREADS": "1",
        "nnUNet_n_proc_DA": "0",  # everything in one process
        "OMP_WAIT_POLICY": "PASSIVE",
        "nnUNet_raw": str(store.parent),
        "nnUNet_preprocessed": str(store.parent),
        "nnUNet_results": str(store.parent / "results"),
        "PATH": "/usr/bin:/bin",
    }
    words = [python, str(script), str(store), str(patch), str(PATCHES[patch])]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.stderr.write(ran.stderr[-2000:])
        raise SystemExit(1)
    return float(ran.stdout.split()[-1])


if __name__ == "__main__":
    main()
