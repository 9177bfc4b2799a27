from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from iris_cli.errors import EnvironmentProblem, Stopped
from iris_cli.execution.claims import Claims, Holder
from iris_cli.training.claim import CLAIMS, claimed


def left_by(folder: Path, **changes: object) -> Path:
    """A claim file of a process that is somewhere else."""
    holder = replace(Holder.this_process(), **changes)  # type: ignore[arg-type]
    path = folder / CLAIMS / "run.claim"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(holder.__dict__))
    return path


def never() -> bool:
    return False


def test_the_claim_of_a_process_that_is_gone_is_taken_over(tmp_path: Path) -> None:
    left_by(tmp_path, started="long ago")
    with claimed(tmp_path, never):
        assert (tmp_path / CLAIMS / "run.claim").exists()
    assert not (tmp_path / CLAIMS).exists()


def test_a_silent_claim_of_another_host_is_taken_over(tmp_path: Path) -> None:
    left_by(tmp_path, host="elsewhere")
    with claimed(tmp_path, never, claims=Claims(tmp_path / CLAIMS, beat_s=0.02, stale_s=0.1)):
        assert "elsewhere" not in (tmp_path / CLAIMS / "run.claim").read_text()


def test_a_beating_claim_of_another_host_is_left_alone(tmp_path: Path) -> None:
    path = left_by(tmp_path, host="elsewhere")
    beat = threading.Timer(0.1, lambda: os.utime(path, (2, 2)))
    beat.start()
    began = time.monotonic()
    with (
        pytest.raises(EnvironmentProblem, match="another process") as refused,
        claimed(tmp_path, never, claims=Claims(tmp_path / CLAIMS, beat_s=0.02, stale_s=30)),
    ):
        pass
    assert "elsewhere" in str(refused.value.found)
    assert time.monotonic() - began < 20
    assert path.exists()


def test_a_stop_ends_the_watch(tmp_path: Path) -> None:
    left_by(tmp_path, host="elsewhere")
    with pytest.raises(Stopped), claimed(tmp_path, lambda: True):
        pass
