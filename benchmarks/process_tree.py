"""A command line run apart: CPU seconds and peak memory of it and of all processes it starts."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 0.05


@dataclass(frozen=True)
class Usage:
    """cpu_s: user and system. peak_bytes: largest sum of resident memory seen at one time.

    Pages that several processes share are counted in each of them.
    """

    cpu_s: float
    peak_bytes: int


def run_measured(words: Sequence[str], environment: Mapping[str, str] | None = None) -> Usage:
    """Run to the end; raises CalledProcessError with what was said when it fails."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            words, env={**os.environ, **(environment or {})}, stdout=said, stderr=said
        )
        peak, ended = 0, 0
        while not ended:
            peak = max(peak, _resident(process.pid))
            time.sleep(SAMPLE_S)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            text = said.read().decode(errors="replace")[-4000:]
            raise subprocess.CalledProcessError(process.returncode, words, output=text)
    return Usage(usage.ru_utime + usage.ru_stime, peak)


def _resident(pid: int) -> int:
    """Bytes of a process and its descendants."""
    total = 0
    for member in (pid, *_descendants(pid)):
        try:
            pages = int(Path(f"/proc/{member}/statm").read_text().split()[1])
        except (OSError, IndexError):
            continue  # gone meanwhile
        total += pages * os.sysconf("SC_PAGE_SIZE")
    return total


def _descendants(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(c) for t in threads for c in (t / "children").read_text().split()]
    except OSError:
        return []
    return [found for child in children for found in (child, *_descendants(child))]
