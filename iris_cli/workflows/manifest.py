"""`manifest.json` of a run: what it was begun with, and every process that trained into it since.

No result depends on it and nothing is compared with it but the settings of validation; it tells
people where a model comes from.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from iris_cli import __version__
from iris_cli.files.publish import publish_json
from iris_cli.files.schema import read_json
from iris_cli.planning.estimate import estimate_training
from iris_cli.planning.plan import Plan
from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.distributed import Ranks
from iris_cli.training.observers import Observer
from iris_cli.training.run import plan_fingerprint
from iris_cli.training.settings import SetForTraining
from iris_cli.workflows.run_folder import MANIFEST
from iris_cli.workflows.validation import InContextValidation

PACKAGES = ("torch", "numpy", "batchgenerators", "pytorch-optimizer", "blosc2")
CPU_NAMES = Path("/proc/cpuinfo")


class Sessions(Observer):
    """Adds every process that trains into a run to the `sessions` of its manifest."""

    def __init__(self, folder: Path, session: dict[str, Any]) -> None:
        """session: `session_of` this process."""
        self._path, self._session = folder / MANIFEST, session

    def begin(self, step: int) -> None:
        manifest: dict[str, Any] = read_json(self._path)
        # Runs that were begun by an earlier version have none.
        sessions = [*manifest.get("sessions", ()), {**self._session, "begun_step": step}]
        publish_json(self._path, {**manifest, "sessions": sessions})


def session_of(device: str, ranks: Ranks) -> dict[str, Any]:
    """What trains in this process: versions, command line, and the kind of machine it runs on."""
    return {
        "iris": __version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "device": device,
        "device_name": _device_name(torch.device(device)),
        "cpu": _cpu_name(),
        "ranks": ranks.world,
        "backend": ranks.backend,
        "threads": torch.get_num_threads(),
    }


def new_manifest(
    plan: Plan,
    sets: Sequence[SetForTraining],
    device: str,
    ranks: Ranks,
    validation: InContextValidation,
) -> dict[str, Any]:
    """What a run is begun with; raises DataRefused where there is nothing to train on."""
    return {
        "seed": plan.training.seed,
        "plan_fingerprint": plan_fingerprint(plan.network, plan.training, sets, plan.patch),
        "data_fingerprint": read_catalogue(sets).fingerprint(),
        "sets": {name: plan.key(name) for name in plan.sets},
        "validation": validation.to_json(),
        "memory": _memory(plan, device, ranks),
        "sessions": [],
    }


def frozen_validation(manifest: dict[str, Any]) -> InContextValidation | None:
    """What the run was begun with; None in manifests that do not say."""
    found = manifest.get("validation")
    return None if found is None else InContextValidation.from_json(found)


def predicted_memory(folder: Path) -> str | None:
    """What the largest step of a begun run takes, in words; None in manifests that do not say."""
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    text = (manifest.get("memory") or {}).get("text")
    return None if text is None else str(text)


def command_of(folder: Path) -> list[str] | None:
    """The words of the command line a run was begun with; None in manifests that do not say."""
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    # In runs of an earlier version they stand at the top.
    first = next(iter(manifest.get("sessions", ())), manifest)
    words = first.get("command")
    return None if words is None else [str(word) for word in words]


def _memory(plan: Plan, device: str, ranks: Ranks) -> dict[str, Any] | None:
    """The estimate is for people: a run begins without it where it cannot be made."""
    kind = torch.device(device).type
    try:
        return estimate_training(
            plan, "cuda" if kind == "cuda" else "cpu", ranks=ranks.world
        ).to_json()
    except Exception:  # a step acted out can fail in as many ways as a step
        return None


def _device_name(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def _cpu_name() -> str:
    """As the system calls it; elsewhere than on Linux its architecture."""
    try:
        lines = CPU_NAMES.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
