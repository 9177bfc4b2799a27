"""Notes of failed cases: what a folder says about them when the program that tried has ended.

A note is `<case>.json` with the parts of the error. It goes when the case is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iris_cli.errors import IrisError
from iris_cli.execution.outcomes import RunSummary
from iris_cli.files.publish import publish_json
from iris_cli.files.schema import read_json

FAILURES = "failed"


def note_failures(folder: Path, summary: RunSummary) -> None:
    """Write a note for each failed case of a job and remove those of its other cases."""
    for outcome in summary.outcomes:
        path = folder / f"{outcome.name}.json"
        if outcome.status == "failed":
            error = outcome.error or {}
            publish_json(path, {key: error[key] for key in error if key != "debug"})
        else:
            path.unlink(missing_ok=True)


def read_failures(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Case -> parts of its error."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            error = read_json(path)
        except IrisError:  # removed this moment: done
            continue
        if isinstance(error, dict):
            found[path.stem] = error
    return found
