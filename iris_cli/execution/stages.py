"""Which step of a case is in work: what an error, a killed or a hung worker is reported with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class _Now:
    """Of this process: the heartbeat reads it from a thread of its own."""

    stage: str | None = None


_now = _Now()


@contextmanager
def stage(name: str, file: Path | None = None) -> Iterator[None]:
    """A step of a case, in a few words ("resampling the label map"), and the file it works on.

    An exception that leaves it carries both as `stage` and `stage_file` (`outcomes.error_parts`
    puts them into the outcome of the case); of nested steps the inner one counts.
    """
    before, _now.stage = _now.stage, name
    try:
        yield
    except Exception as error:
        if not hasattr(error, "stage"):
            error.stage = name  # type: ignore[attr-defined]
            error.stage_file = file  # type: ignore[attr-defined]
        raise
    finally:
        _now.stage = before


def current_stage() -> str | None:
    """The step that this process is in; None between cases."""
    return _now.stage
