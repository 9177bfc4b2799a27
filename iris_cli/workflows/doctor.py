"""What this machine offers iris, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from iris_cli import __version__

_REQUIRED = (
    "torch", "numpy", "scipy", "nibabel", "SimpleITK", "blosc2", "batchgenerators", "acvl-utils",
    "pydantic", "safetensors", "pytorch-optimizer", "typer", "rich", "matplotlib", "tensorboard",
)  # fmt: skip
_OPTIONAL = {
    "isal": "faster reading and writing of .nii.gz",
    "nnunetv2": "comparisons with nnU-Net (best in an environment of its own)",
}
_LOW_MEMORY_GIB = 6.0
_LOW_DISK_GIB = 5.0


class State(Enum):
    """Verdict of one check."""

    GOOD = "ok"
    NOTE = "note"
    BAD = "missing"


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, what was found, what to do about it."""

    topic: str
    found: str
    state: State = State.GOOD
    fix: str | None = None


def examine(folder: Path) -> list[Check]:
    """Look at the machine; `folder` is where outputs would go (its disk is measured)."""
    return [
        Check("iris", __version__),
        Check("Python", f"{platform.python_version()} on {platform.platform()}"),
        *_packages(),
        *_compute(),
        _memory(),
        _disk(folder),
        _default_model(),
    ]


def is_healthy(checks: list[Check]) -> bool:
    """Whether nothing iris needs is missing."""
    return all(check.state is not State.BAD for check in checks)


def _packages() -> list[Check]:
    checks = []
    for name in _REQUIRED:
        version = _version(name)
        if version is None:
            checks.append(Check(name, "not installed", State.BAD, f"pip install {name}"))
        else:
            checks.append(Check(name, version))
    for name, purpose in _OPTIONAL.items():
        version = _version(name)
        if version is None:
            fix = f"pip install {name}: {purpose}"
            checks.append(Check(name, "not installed (optional)", State.NOTE, fix))
        else:
            checks.append(Check(name, version))
    return checks


def _compute() -> list[Check]:
    import torch

    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    passive = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    waiting = "passive" if passive else "active: shared machines suffer"
    checks = [Check("threads", f"{threads}, waiting {waiting}")]
    flags = _cpu_flags()
    bf16 = sorted(flags & {"avx512_bf16", "amx_bf16"})
    checks.append(Check("CPU bfloat16", ", ".join(bf16) if bf16 else "no (fp32 is used)"))
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "this torch is a CPU build" if built is None else f"no device for CUDA {built}"
        fix = "install a CUDA build of torch if there is a GPU; everything works without one"
        checks.append(Check("GPU", f"none ({why})", State.NOTE, fix))
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        gib = properties.total_memory / 2**30
        checks.append(Check(f"GPU {index}", f"{properties.name}, {gib:.0f} GiB"))
    return checks


def _memory() -> Check:
    total, available = _memory_gib()
    if total is None or available is None:
        return Check("memory", "unknown on this system", State.NOTE)
    found = f"{available:.1f} GiB free of {total:.1f}"
    if available < _LOW_MEMORY_GIB:
        return Check("memory", found, State.NOTE, "close other programs or use -j 0")
    return Check("memory", found)


def _disk(folder: Path) -> Check:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    found = f"{free:.1f} GiB free at {folder}"
    if free < _LOW_DISK_GIB:
        return Check("disk", found, State.NOTE, "free space or use another folder")
    return Check("disk", found)


def _default_model() -> Check:
    from iris_cli.errors import IrisError
    from iris_cli.model.model import load_model

    try:
        card = load_model().card
    except IrisError as error:
        return Check("default model", str(error), State.BAD, error.fix)
    return Check("default model", f"{card.name} {card.version}, {card.licence}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def _memory_gib() -> tuple[float | None, float | None]:
    """Total and available memory; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None, None
    sizes = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines}
    return sizes.get("MemTotal"), sizes.get("MemAvailable")
