"""A scheduler's signal often reaches every process of a job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
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


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_signal_to_the_whole_job_ends_neither_workers_nor_the_tracker_of_their_memory(
    tmp_path: Path,
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "True")
    assert ran.stderr == ""
