"""How much memory there is, how much a process takes, and whether the kernel killed for it.

Linux tells all of it in files; elsewhere the answers are None, and nothing here guesses. Control
groups (containers, Slurm, Kubernetes) limit a job below what the machine has, in version 1 or 2.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
# Version 1 writes a number near 2**63 where there is no limit.
_NO_LIMIT = 1 << 60


def oom_kills(root: Path = ROOT) -> int | None:
    """How many processes the kernel has killed for memory: of this control group, else of all.

    root: stands for `/`. A count that grows while a worker is killed says why it was.
    """
    for folder, is_v2 in _groups(root):
        name = "memory.events" if is_v2 else "memory.oom_control"
        if (count := _number(folder / name, r"^oom_kill (\d+)")) is not None:
            return count
    return _number(root / "proc/vmstat", r"^oom_kill (\d+)")


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes this process and its workers may take together: the control group's, or all there is.

    root: stands for `/`.
    """
    kilobytes = _number(root / "proc/meminfo", r"^MemTotal:\s+(\d+) kB")
    limits = [] if kilobytes is None else [kilobytes * 1024]
    for folder, is_v2 in _groups(root):
        name = "memory.max" if is_v2 else "memory.limit_in_bytes"
        if (limit := _number(folder / name, r"^(\d+)$")) is not None and limit < _NO_LIMIT:
            limits.append(limit)
    return min(limits) if limits else None


def resident_bytes() -> int | None:
    """Bytes of memory this process holds now."""
    kilobytes = _number(ROOT / "proc/self/status", r"^VmRSS:\s+(\d+) kB")
    return None if kilobytes is None else kilobytes * 1024


def children_peak_bytes() -> int | None:
    """Largest resident memory that any child which has ended ever held.

    Where it grew while one child ended, that child held so much: killed ones are counted, too.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def gigabytes(size: int) -> str:
    """As people say it: 11.2 GB."""
    return f"{size / 1e9:.3g} GB"


def _groups(root: Path) -> Iterator[tuple[Path, bool]]:
    """Folders of this process's memory control group, outwards, and whether of version 2.

    In a container the path in /proc is that of the host, and the files lie at the top.
    """
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = top / "memory" if controllers else top
        folder = base / path.strip("/")
        for place in (folder, *folder.parents):
            if place.is_dir():
                yield place, not controllers
            if place == base:
                break


def _number(path: Path, pattern: str) -> int | None:
    try:
        found = re.search(pattern, path.read_text(), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return None
    return int(found[1]) if found else None
