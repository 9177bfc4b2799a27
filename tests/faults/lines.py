"""Command lines of iris as processes that can be killed, and what they leave in a folder."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iris_cli.execution.claims import read_claim
from iris_cli.files.hashing import hash_bytes
from iris_cli.model.model import ModelCard, save_model
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import is_volume, read_image, read_labels
from iris_cli.volume.writing import write_image, write_labels

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "PYTHONPATH": str(ROOT),
}
LOOK_S = 0.02
# With as many workers as are asked for, however little there is to do.
STARTED = (
    "from iris_cli.planning import crew; crew.START_S = 1e-6; "
    "from iris_cli.commands.app import main; main()"
)


def command(words: Sequence[str]) -> list[str]:
    """The words that start `iris` with `words`."""
    return [sys.executable, "-c", STARTED, *words]


def run_line(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A line to its end, whatever that is."""
    return subprocess.run(command(words), env=ENVIRONMENT, capture_output=True, text=True)


def finish(words: Sequence[str]) -> float:
    """A line to its end, which has to be a good one; returns seconds."""
    began = time.monotonic()
    ran = run_line(words)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return time.monotonic() - began


def write_model(folder: Path, *, s0: float, patch: int = 32, queries: int = 10) -> Path:
    """A network of random weights."""
    torch.manual_seed(0)
    config = NetworkConfig.tiny().model_copy(update={"queries": queries})
    network = IrisNetwork(config).eval()
    card = ModelCard.of(network, name="tiny", s0=s0, patch=patch)
    return save_model(folder / "tiny", network, card)


def write_scenes(
    images: Path, labels: Path, names: Sequence[str], *, edge: int, spacing_mm: float
) -> None:
    """Cases of `edge` voxels in every direction: two bright boxes in noise, no two cases alike."""
    grid = Grid.from_spacing((edge,) * 3, (spacing_mm,) * 3, (3.0, -2.0, 7.0))
    for name in names:
        generator = np.random.default_rng(list(name.encode()))
        found = np.zeros((edge,) * 3, np.uint8)
        for value in (1, 2):
            low = generator.integers(0, edge // 2, 3)
            high = low + generator.integers(edge // 4, edge // 2, 3)
            found[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
        image = generator.normal(0, 5, found.shape) + 60.0 * found
        write_image(images / f"{name}.nii.gz", image.astype(np.float32), grid)
        write_labels(labels / f"{name}.nii.gz", found, grid)


def receipts(folder: Path) -> dict[str, Any]:
    """What is matched of the receipts in a folder."""
    return {
        path.name: json.loads(path.read_text())["content"]
        for path in sorted(folder.glob("*.json"))
        if not path.name.startswith(".")
    }


def predicted_content(out: Path) -> dict[str, Any]:
    """Everything with a final name in a folder of predictions; reading verifies it is whole."""
    found = receipts(out / ".iris")
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(out).parts):
            continue
        if not is_volume(path):
            found[name] = hash_bytes(path.read_bytes())
        elif name.startswith("probabilities/"):
            found[name] = read_image(path).content_hash()
        else:
            found[name] = read_labels(path).content_hash()
    return found


def strays(folder: Path) -> list[str]:
    """What a finished line must not leave: temporary files, notes and claims."""
    endings = (".new", ".claim", ".takeover")
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if ".partial" in path.name or path.name.endswith(endings)
    )


def workers_of(process: subprocess.Popen[Any]) -> list[int]:
    """Worker processes that a process has started."""
    try:
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(pid) for pid in listed if _is_worker(int(pid))]
    except OSError:  # it has ended
        return []


def _is_worker(pid: int) -> bool:
    # The resource tracker of multiprocessing is a child, too.
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


@dataclass
class Crowd:
    """Processes of one line on one folder, which are killed at work and started again.

    words: of the line. count: of processes. done: how much of the work is done. claims: the folder
    that shows who is at work. kills: how many, and how many of them in the middle of a case.
    """

    words: Sequence[str]
    count: int
    done: Callable[[], int]
    claims: Path
    kills: Counter[str] = field(default_factory=Counter)
    exit_codes: list[int] = field(default_factory=list)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, total: int, kills: int, seed: int, *, victims: str = "process") -> None:
        """Until all processes have ended by themselves with the work done.

        Kills come when seeded shares of the work are done, a moment later. victims: process,
        worker, or both.
        """
        generator = random.Random(seed)
        at = sorted(generator.randrange(total) for _ in range(kills))
        try:
            self._processes = [self._start() for _ in range(self.count)]
            for share in at:
                while self.done() < share and self._alive():
                    time.sleep(LOOK_S)
                time.sleep(generator.uniform(0.0, 0.5))
                kind = generator.choice(("process", "worker")) if victims == "both" else victims
                self._kill(generator, kind)
            self._wait()
        finally:
            for process in self._processes:
                process.kill()
                process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command(self.words),
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _alive(self) -> list[int]:
        return [n for n, process in enumerate(self._processes) if process.poll() is None]

    def _kill(self, generator: random.Random, kind: str) -> None:
        alive = self._alive()
        if not alive:
            return
        victim = generator.choice(alive)
        process = self._processes[victim]
        workers = workers_of(process)
        at_work = self._holds_claim(process.pid)
        if kind == "worker" and workers:
            os.kill(generator.choice(workers), signal.SIGKILL)
        elif kind == "process":
            process.kill()
            process.wait()
            self._processes[victim] = self._start()
        else:
            return
        self.kills[kind] += 1
        self.kills["at work"] += at_work

    def _holds_claim(self, pid: int) -> bool:
        """Whether a process, or a worker of it, is in the middle of a case."""
        holders = [read_claim(path)[0] for path in self.claims.glob("*.claim")]
        return any(holder is not None and holder.pid == pid for holder in holders)

    def _wait(self) -> None:
        """A line that ends with failed cases is started again, as its user would."""
        for _ in range(3):
            codes = [process.wait() for process in self._processes]
            self.exit_codes += codes
            if not any(codes):
                return
            self._processes = [self._start() for code in codes if code]
        raise AssertionError(f"the lines do not come to an end: {self.exit_codes}")
