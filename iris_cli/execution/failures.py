"""Notes of failed cases: what a folder says about them when the program that tried has ended.

A note is `<case>.json` with the parts of the error, written when the case fails, so that a program
that is killed later leaves it. It goes when the case is done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iris_cli.errors import IrisError
from iris_cli.execution.outcomes import Outcome
from iris_cli.files.publish import publish_json, published_json, remove_leftovers
from iris_cli.files.schema import read_json
from iris_cli.files.state import FileState, file_state

FAILURES = "failed"


def note_outcome(folder: Path, outcome: Outcome) -> None:
    """Write the note of a case that failed, or remove that of one that did not.

    Call it while the case is claimed, as half a note of a killed process goes, too.
    Where a note cannot be written, the outcome says what happened: a full disk is no news then.
    """
    path = note_of(folder, outcome.name)
    with contextlib.suppress(IrisError, OSError):
        remove_leftovers(path.parent, path.name)
        if outcome.status == "failed":
            error = outcome.error or {}
            publish_json(path, {key: error[key] for key in error if key != "debug"})
        else:
            path.unlink(missing_ok=True)


def note_of(folder: Path, case: str) -> Path:
    """The file of the note of a case, whose name may have folders (`<set>/<case>`)."""
    return folder / f"{case}.json"


def noted(folder: Path) -> dict[str, FileState]:
    """Case -> the state of its note, which is another one when the case has failed again."""
    states = {_case_of(folder, path): file_state(path) for path in _notes(folder)}
    return {case: state for case, state in states.items() if state is not None}


def read_failures(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Case -> parts of its error."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in _notes(folder):
        try:
            error = read_json(path)
        except IrisError:  # removed this moment: done
            continue
        if isinstance(error, dict):
            found[_case_of(folder, path)] = error
    return found


def _notes(folder: Path) -> list[Path]:
    return published_json(folder, deep=True)


def _case_of(folder: Path, note: Path) -> str:
    return note.relative_to(folder).as_posix().removesuffix(".json")
