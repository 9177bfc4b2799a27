"""Why a worker is gone: the kernel's count of kills for memory decides, and numbers are said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from iris_cli.execution import deaths
from iris_cli.execution.deaths import Death, Vital, died
from iris_cli.execution.memory import (
    children_peak_bytes,
    memory_limit,
    oom_kills,
    resident_bytes,
)

GB = 10**9


def system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A root folder with the files that Linux shows."""
    files = {"proc/self/cgroup": cgroup, "proc/meminfo": "MemTotal: 16000000 kB\n", **files}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_version_2_of_control_groups(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/slurm/job_7"
    files = {f"{group}/memory.events": "low 0\noom 5\noom_kill 3\n", f"{group}/memory.max": "max\n"}
    files["sys/fs/cgroup/slurm/memory.max"] = "8000000000\n"
    root = system(tmp_path, "0::/slurm/job_7\n", files)
    assert oom_kills(root) == 3
    assert memory_limit(root) == 8 * GB  # of the folder around it


def test_version_1_of_control_groups(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/docker/abc"
    files = {
        f"{group}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        f"{group}/memory.limit_in_bytes": "4000000000\n",
    }
    root = system(tmp_path, "3:cpu:/docker/abc\n4:memory:/docker/abc\n", files)
    assert (oom_kills(root), memory_limit(root)) == (2, 4 * GB)


def test_inside_a_container_the_files_lie_at_the_top(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory.events": "oom_kill 1\n"}
    assert oom_kills(system(tmp_path, "0::/of/the/host\n", files)) == 1


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/\n", {"proc/vmstat": "nr_free_pages 7\noom_kill 11\n"})
    assert (oom_kills(root), memory_limit(root)) == (11, 16_000_000 * 1024)
    assert (oom_kills(tmp_path / "none"), memory_limit(tmp_path / "none")) == (None, None)


def test_what_a_killed_child_held_is_known() -> None:
    before = children_peak_bytes()
    code = "import os; x = bytearray(400_000_000); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    after = children_peak_bytes()
    assert after is None or before is None or after >= max(before, 400_000_000)


def test_this_process_holds_memory() -> None:
    held = resident_bytes()
    assert held is None or held > 1 << 20


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """What the kernel will say: `kills` so far, and the `limit` of memory."""
    said: dict[str, int | None] = {"kills": 4, "limit": 8 * GB}
    monkeypatch.setattr(deaths, "oom_kills", lambda: said["kills"])
    monkeypatch.setattr(deaths, "memory_limit", lambda: said["limit"])
    return said


@pytest.mark.parametrize(
    ("death", "reason"),
    [
        (
            Death(-9, 3, needs_bytes=12 * GB),
            "killed (out of memory: needed about 12 GB, had 8 GB for all workers)",
        ),
        (
            Death(-9, 3, last=Vital(resident_bytes=5 * GB)),
            "killed (out of memory: needed more than 5 GB, had 8 GB for all workers)",
        ),
        (Death(-9, 4, needs_bytes=12 * GB), "killed (out of memory: needed about 12 GB, had 8 GB"),
        (Death(-9, 4, needs_bytes=2 * GB), "killed (SIGKILL, not by the kernel for memory"),
        (Death(-9, 4), "killed (SIGKILL, not by the kernel for memory"),
        (Death(-15, 3), "killed (SIGTERM)"),
        (Death(-11, 3), "killed (SIGSEGV; a crash in native code)"),
        (Death(-99, 3), "killed (signal 99)"),
        (Death(7, 3), "the worker process ended (exit status 7)"),
    ],
)
def test_the_reason_of_a_death(kernel: dict[str, int | None], death: Death, reason: str) -> None:
    assert death.reason().startswith(reason)


def test_a_system_that_counts_nothing_is_not_accused(kernel: dict[str, int | None]) -> None:
    kernel["kills"] = None
    assert "out of memory is the usual cause" in Death(-9, None).reason()


def test_the_error_names_stage_and_remedy(kernel: dict[str, int | None]) -> None:
    error = died(Death(-9, 3, 12 * GB, Vital("resampling")))
    assert error["stage"] == "resampling"
    assert error["fix"] == "give it more memory, or fewer workers"
    assert "report the case" in died(Death(-11, 3))["fix"]
