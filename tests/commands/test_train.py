"""`iris train` with several ranks: what the command line refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.conftest import Iris

TOLD = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
    "TORCHELASTIC_MAX_RESTARTS": "3",
}


@pytest.fixture
def under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("under_torchrun")
def test_torchrun_and_devices_do_not_go_together(iris: Iris, tmp_path: Path) -> None:
    ran = iris("train", "run", "-w", tmp_path, "--devices", "cpu,cpu")
    assert ran.code == 2
    assert "started the ranks already" in ran.err


@pytest.mark.usefixtures("under_torchrun")
def test_a_run_that_torchrun_starts_again_has_no_time_limit(iris: Iris, tmp_path: Path) -> None:
    ran = iris("train", "run", "-w", tmp_path, "--stop-after", "1h")
    assert ran.code == 2
    assert "again and again" in ran.err


def test_other_words_for_devices_are_wrong_use(iris: Iris, tmp_path: Path) -> None:
    ran = iris("train", "run", "-w", tmp_path, "--devices", "cpu,gpu")
    assert ran.code == 2
    assert "no such device" in ran.err
