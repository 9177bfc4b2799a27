"""A table of a benchmark: printed, and appended to `benchmarks/results/<name>.md`."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

RESULTS = Path(__file__).parent / "results"


def publish(
    name: str,
    title: str,
    notes: Sequence[str],
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: int = 1,
) -> None:
    """Print the table with date, hardware and versions, and append it to the results.

    notes: sentences under the title. words: columns of words, which come before those of numbers.
    """
    today = datetime.datetime.now(tz=datetime.UTC).date()
    lines = [
        f"\n## {today}, {title}",
        "",
        "; ".join((machine(), *notes)) + ".",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * words + "|--:" * (len(head) - words) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]
    text = "\n".join(lines)
    sys.stdout.write(text)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.md").open("a", encoding="utf-8") as stream:
        stream.write(text)


def machine() -> str:
    """Processor, cores, load of the last minute, versions."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return (
        f"{_processor()}, {os.cpu_count()} cores, load {load:.1f}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median (lowest-highest)."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    kinds = [kind for kind in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {kind}" in text]
    return f"{named[0] if named else platform.machine()} ({', '.join(kinds)})"
