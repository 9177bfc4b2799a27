"""R15 and its kin: ranks that are killed or stopped, under torchrun and `iris train --devices`.

Everything goes through the command line, as a user starts it; runs are checked by the content of
their last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from iris_cli.dataset.phantoms import write_phantom_dataset
from iris_cli.training.checkpoint import LATEST, read_checkpoint
from tests.training.test_run import content

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes in /proc"),
]

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
STEPS = 12
MARK = "IRIS_TEST_MARK"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PYTHON = [sys.executable]
DEVICES = ["--devices", "cpu,cpu"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ws")
    write_phantom_dataset(folder / "raw" / "p", (1, 2, 3, 4), size=0.6, voxel_mm=9.0)
    finish([*PYTHON, "-m", "iris_cli", "plan", "-w", str(folder), "--preset", "tiny"])
    finish([*PYTHON, "-m", "iris_cli", "preprocess", "-w", str(folder)])
    return folder


@pytest.fixture(scope="module")
def whole(workspace: Path) -> str:
    """Content of the checkpoint of a run of two ranks that nothing happened to."""
    finish(line(TORCHRUN, workspace, "whole"))
    return content(workspace / "runs" / "whole")


def line(launcher: Sequence[str], workspace: Path, run: str, *more: str) -> list[str]:
    settings = {
        "steps": STEPS,
        "batch": 2,
        "log_every": 1,
        "checkpoint_every_s": 1e-9,
        "timeout_s": 120,
    }
    words = [word for k, v in settings.items() for word in ("--set", f"training.{k}={v}")]
    train = ["-m", "iris_cli", "train", run, "-w", str(workspace), "--validate-cases", "0", "-q"]
    return [*launcher, *train, "--device", "cpu", *words, *more]


class Started(subprocess.Popen[str]):
    """A command whose processes, and theirs, are known by a mark in their environment.

    torchrun gives each rank a session of its own, and an orphan has another parent.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.mark = secrets.token_hex(8)
        super().__init__(
            words,
            env={**ENVIRONMENT, MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def finish(words: Sequence[str]) -> None:
    ran = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def members(process: Started) -> list[int]:
    """The living processes of a command, whoever is their parent by now."""
    return [pid for pid, told in _environments() if told.get(MARK) == process.mark]


def rank_process(process: Started, rank: int) -> int:
    """The process that torchrun made this rank; its own children have the same environment."""
    ranks = {
        pid
        for pid, told in _environments()
        if told.get(MARK) == process.mark and told.get("RANK") == str(rank)
    }
    (found,) = (pid for pid in ranks if _parent(pid) not in ranks)
    return found


def _environments() -> Iterator[tuple[int, dict[str, str]]]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and not _is_dead(entry):
                words = (entry / "environ").read_text(errors="replace").split("\0")
                yield int(entry.name), dict(w.partition("=")[::2] for w in words)


def _is_dead(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_until(happened: Callable[[], bool], process: Started) -> None:
    limit = time.monotonic() + 600
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.05)


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except ValueError:
        return 0


def assert_no_orphans(process: Started) -> None:
    limit = time.monotonic() + 60
    while members(process) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not members(process)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_and_the_same_line_goes_on_to_the_same_content(
    workspace: Path, whole: str, rank: int
) -> None:
    """R15: kill -9 of a rank under torchrun; no orphan, the code is not 0, the rank is named."""
    run = workspace / "runs" / f"killed-{rank}"
    process = Started(line(TORCHRUN, workspace, run.name))
    wait_until(lambda: steps_done(run) >= 3, process)
    os.kill(rank_process(process, rank), signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert f"rank      : {rank}" in output
    assert "Signal 9" in output
    assert_no_orphans(process)
    assert read_checkpoint(run / LATEST)["step"] < STEPS
    finish(line(TORCHRUN, workspace, run.name))
    assert content(run) == whole


def test_torchrun_starts_a_killed_rank_again_from_the_newest_checkpoint(
    workspace: Path, whole: str
) -> None:
    run = workspace / "runs" / "restarted"
    process = Started(line([*TORCHRUN, "--max-restarts", "1"], workspace, run.name))
    wait_until(lambda: steps_done(run) >= 3, process)
    os.kill(rank_process(process, 1), signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert content(run) == whole


def test_a_signal_to_torchrun_stops_all_ranks_with_everything_saved(
    workspace: Path, whole: str
) -> None:
    """R14 for ranks: torchrun passes SIGTERM on (and ends with its own exit code)."""
    run = workspace / "runs" / "terminated"
    process = Started(line(TORCHRUN, workspace, run.name))
    wait_until(lambda: steps_done(run) >= 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "everything is saved" in output
    assert_no_orphans(process)
    finish(line(TORCHRUN, workspace, run.name))
    assert content(run) == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_iris_stops_its_ranks_with_exit_75(
    workspace: Path, whole: str, number: signal.Signals
) -> None:
    """R14 for `--devices`: every signal, and the exit code of the run."""
    run = workspace / "runs" / f"stopped-{number.name}"
    process = Started(line(PYTHON, workspace, run.name, *DEVICES))
    wait_until(lambda: steps_done(run) >= 3, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 75, output
    assert "everything is saved" in output
    assert_no_orphans(process)
    finish(line(PYTHON, workspace, run.name, *DEVICES))
    assert content(run) == whole


def test_ranks_whose_launcher_is_killed_save_and_end(workspace: Path, whole: str) -> None:
    run = workspace / "runs" / "orphaned"
    process = Started(line(PYTHON, workspace, run.name, *DEVICES))
    wait_until(lambda: steps_done(run) >= 3, process)
    process.kill()
    process.communicate(timeout=300)
    assert_no_orphans(process)
    assert read_checkpoint(run / LATEST)["step"] < STEPS
    finish(line(PYTHON, workspace, run.name, *DEVICES))
    assert content(run) == whole


def test_a_run_of_two_ranks_goes_on_with_one(workspace: Path) -> None:
    """Another number of ranks makes the same episodes; sums round in another order."""
    run = workspace / "runs" / "fewer"
    process = Started(line(TORCHRUN, workspace, run.name))
    wait_until(lambda: steps_done(run) >= 3, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    finish(line(PYTHON, workspace, run.name))
    assert read_checkpoint(run / LATEST)["step"] == STEPS
