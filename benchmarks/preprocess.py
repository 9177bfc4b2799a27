"""B5, preprocessing against nnU-Net: python -m benchmarks.preprocess --nnunet PYTHON [DATA]

    python -m venv nnunet && nnunet/bin/pip install nnunetv2
    python -m benchmarks.preprocess --nnunet nnunet/bin/python ../shared/data/hippocampus

Two parts. *small*: 60 cases of hippocampus (DATA: a folder with images/, labels/ and info.json;
without it generated ones of that size). *large*: generated volumes of 512 x 512 x 300 with 20
classes, 0.8 x 0.8 x 1.5 mm, brought to 1.5 mm.

Both sides start as a user starts them (installed, their modules compiled to bytecode), read the
same raw folder and write their own store, at the same spacing and with the same number of workers
allowed (iris starts no more than have enough to do); planning is done before and not counted.
nnU-Net runs as it comes, with one computing thread for every process (as iris does: threads of many
small processes wait by spinning), and so with linear instead of cubic resampling of images (the
order that iris uses). It crops to the non-zero region and samples coordinates per class; iris
verifies files to their checksums, hashes voxels, writes receipts and reads back what it wrote.
Sides alternate; every figure is of the whole tree of processes.
"""

from __future__ import annotations

import argparse
import compileall
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import iris_cli
from benchmarks.generated_volumes import write_set
from benchmarks.process_tree import Usage, run_measured
from benchmarks.results_table import publish, spread
from dataset_conversion.registry import convert
from iris_cli.dataset.building import TransferMode
from iris_cli.dataset.dataset_json import write_dataset_json
from iris_cli.dataset.raw import read_raw_dataset
from iris_cli.execution.threads import settings as thread_settings

SMALL_CASES = 60
HEAD = ("set", "side", "CPU s", "ratio", "peak MB", "target")
AS_IT_COMES, ONE_THREAD = "nnU-Net", "nnU-Net, one thread"
LINEAR = "nnU-Net, one thread, image order 1"
TARGETS = {AS_IT_COMES: 5.0, LINEAR: 2.0}
ENTRY = "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import {0}; {0}()"


@dataclass(frozen=True)
class Part:
    """A raw folder, the spacing both sides work it at, and how many workers do."""

    title: str
    raw: Path
    spacing_mm: float
    workers: int


def main() -> None:
    """Measure both parts and append the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", type=Path, help="hippocampus, as info_json is read")
    parser.add_argument("--nnunet", required=True, help="a Python that has nnunetv2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=("small", "large"), action="append")
    arguments = parser.parse_args()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        installed = _install(Path(folder) / "installed")
        for name in arguments.part or ("small", "large"):
            base = Path(folder) / name
            # A round of the large part is one volume, a round of the small one all 60 cases.
            parts = (
                [_small(base, arguments.data)] * arguments.rounds
                if name == "small"
                else [_large(base, number) for number in range(1, arguments.rounds + 1)]
            )
            rows += _measure(base, parts, installed, arguments.nnunet)
    publish(
        "preprocess",
        "preprocessing against nnU-Net (B5)",
        (
            f"nnU-Net {_version(arguments.nnunet)}",
            f"{arguments.rounds} rounds, median (lowest-highest)",
            "ratio: of nnU-Net's CPU seconds to those of iris, round by round",
            "memory: all processes together",
        ),
        HEAD,
        rows,
        words=2,
    )


def _small(base: Path, data: Path | None) -> Part:
    raw = base / "raw" / "Dataset901_Small"
    if not raw.exists() and data is None:
        write_set(raw, (36, 50, 35), (1.0, 1.0, 1.0), cases=SMALL_CASES, classes=2, modality="MR")
    elif not raw.exists():
        assert data is not None
        convert("info_json", data, base / "all", mode=TransferMode.COPY)
        _take_cases(base / "all", raw)
    return Part(f"{SMALL_CASES} cases of hippocampus", raw, 1.0, 2)


def _take_cases(source: Path, raw: Path) -> None:
    """The first labelled training cases of a raw set as a raw set of their own."""
    found = read_raw_dataset(source)
    cases = [case for case in found.cases if case.role == "train" and case.label][:SMALL_CASES]
    for case in cases:
        assert case.label is not None
        for path, kind in ((case.images[0], "imagesTr"), (case.label, "labelsTr")):
            (raw / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, raw / kind / path.name)
    labels: dict[str, int | list[int]] = {label.name: label.values[0] for label in found.classes}
    write_dataset_json(
        raw,
        channel_names={"0": "MR"},
        labels=labels,
        num_training=len(cases),
        file_ending=".nii.gz",
    )


def _large(base: Path, number: int) -> Part:
    raw = base / f"volume{number}" / "raw" / f"Dataset{910 + number}_Large"
    write_set(raw, (300, 512, 512), (1.5, 0.8, 0.8), cases=1, classes=20, first=number)
    return Part("512 x 512 x 300, 20 classes", raw, 1.5, 1)


def _install(folder: Path) -> Path:
    """The package as pip leaves it, wherever this one runs from."""
    package = Path(iris_cli.__file__).parent
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(folder, quiet=1)
    return folder


def _measure(base: Path, parts: list[Part], installed: Path, nnunet: str) -> list[list[str]]:
    """Rows of one set: every side in every round, alternating."""
    used: dict[str, list[Usage]] = {}
    for number, part in enumerate(parts):
        work = base / f"round{number}"
        sides: dict[str, Callable[[], Usage]] = {
            "iris": lambda part=part, work=work: _iris(part, work, installed),
            AS_IT_COMES: lambda part=part, work=work: run_nnunet(
                part, work / "as_it_comes", nnunet, 3, threads=None
            ),
            ONE_THREAD: lambda part=part, work=work: run_nnunet(part, work / "cubic", nnunet, 3),
            LINEAR: lambda part=part, work=work: run_nnunet(part, work / "linear", nnunet, 1),
        }
        for side, run in sides.items():
            used.setdefault(side, []).append(run())
            sys.stderr.write(f"{part.title}, {side}: {used[side][-1]}\n")
        shutil.rmtree(work)
    return [_row(parts[0].title, side, runs, used["iris"]) for side, runs in used.items()]


def _row(title: str, side: str, runs: list[Usage], own: list[Usage]) -> list[str]:
    seconds, memory = [run.cpu_s for run in runs], [run.peak_bytes / 1e6 for run in runs]
    ratios = [run.cpu_s / ours.cpu_s for run, ours in zip(runs, own, strict=True)]
    target = TARGETS.get(side)
    reached = ""
    if target is not None:
        met = sorted(ratios)[len(ratios) // 2] >= target and min(memory) > max(
            run.peak_bytes / 1e6 for run in own
        )
        reached = f">= {target:g}, less memory: {'reached' if met else 'missed'}"
    return [title, side, spread(seconds, 1), spread(ratios, 1), spread(memory, 0), reached]


def _iris(part: Part, work: Path, installed: Path) -> Usage:
    command = (sys.executable, "-P", "-m", "iris_cli")
    environment = {**thread_settings(1), "PYTHONPATH": str(installed)}
    workspace = ("-w", str(work / "iris"))
    spacing = f"sets.{part.raw.name}.spacing_mm={part.spacing_mm}"
    run_measured([*command, "plan", str(part.raw), *workspace, "--set", spacing], environment)
    workers = ("-j", str(part.workers))
    return run_measured([*command, "preprocess", *workspace, *workers], environment)


def run_nnunet(part: Part, work: Path, python: str, order: int, threads: int | None = 1) -> Usage:
    """Plan with nnU-Net, then preprocess into `work`, measured; order: of image interpolation.

    threads: of each of its processes; None leaves that to it.
    """
    limits = thread_settings(threads or 1)
    environment = {
        **(dict.fromkeys(limits, "") if threads is None else limits),
        "nnUNet_raw": str(part.raw.parent),
        "nnUNet_preprocessed": str(work),
        "nnUNet_results": str(work / "results"),
    }
    number = str(int(part.raw.name[7:10]))
    plan = [python, "-c", ENTRY.format("plan_and_preprocess_entry"), "-d", number, "--no_pp"]
    run_measured([*plan, "-npfp", "1"], environment)
    file = work / part.raw.name / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration["spacing"] = [part.spacing_mm] * 3
    configuration["resampling_fn_data_kwargs"]["order"] = order
    file.write_text(json.dumps(plans))
    run = [python, "-c", ENTRY.format("preprocess_entry"), "-d", number, "-c", "3d_fullres"]
    return run_measured([*run, "-np", str(part.workers)], environment)


def _version(python: str) -> str:
    code = "import importlib.metadata as m; print(m.version('nnunetv2'))"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return asked.stdout.strip()


if __name__ == "__main__":
    main()
