"""A scheduler's signal often reaches every process of a job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKERS = """
import os, signal, torch
from iris_cli.training.batches import iterate_any

class Sampler:
    def episode(self, index):
        return torch.full((4,), index)

if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    stream = iterate_any(Sampler(), range(30), device=torch.device("cpu"), workers=1)
    first = next(stream)
    os.killpg(0, signal.SIGUSR1)
    print([int(first[0]), *(int(episode[0]) for episode in stream)] == list(range(30)))
"""

RANKS = """
import multiprocessing, os, signal, threading, time
from iris_cli.execution.signals import StopRequest
from iris_cli.training.launch import launch

def work(device, stop):
    while not stop.requested:
        time.sleep(0.01)
    return stop.reason == "SIGTERM"

def stop_the_job():
    while not multiprocessing.active_children():
        time.sleep(0.01)
    os.killpg(0, signal.SIGTERM)

if __name__ == "__main__":
    with StopRequest() as stop:
        threading.Thread(target=stop_the_job).start()
        print(launch(work, ["cpu"], stop, threads=1))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("program", [WORKERS, RANKS], ids=["workers", "ranks that start"])
def test_a_signal_to_the_whole_job_ends_no_process_of_it(tmp_path: Path, program: str) -> None:
    """Not workers, the tracker of their memory, nor ranks that still import torch."""
    path = tmp_path / "program.py"
    path.write_text(program)
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "True"), ran.stderr
    assert ran.stderr == ""
