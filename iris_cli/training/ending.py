"""Why the last process that trained into a run folder ended: a note in `ended.json`.

A process that was killed leaves none, which says so too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from iris_cli.errors import EnvironmentProblem, Interrupted, IrisError
from iris_cli.execution.outcomes import is_out_of_memory
from iris_cli.files.publish import publish_json
from iris_cli.files.schema import read_json

ENDED = "ended.json"


@contextlib.contextmanager
def noted_end(folder: Path) -> Iterator[None]:
    """Note the error that ends the work within; for the process that holds the run folder."""
    path = folder / ENDED
    path.unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        parts = error.to_json() if isinstance(error, IrisError) else _parts_of(error)
        # A full disk may be the error itself: it is that one that has to be seen.
        with contextlib.suppress(IrisError, OSError):
            publish_json(path, parts)
        raise


def _parts_of(error: BaseException) -> Mapping[str, Any]:
    """Of an exception that is none of ours: what iris will leave with, and its text."""
    kind: type[IrisError] = IrisError
    if isinstance(error, KeyboardInterrupt):
        kind = Interrupted
    elif is_out_of_memory(error):
        kind = EnvironmentProblem
    return {"problem": repr(error)[:300], "exit_code": kind.exit_code}


def read_end(folder: Path) -> Mapping[str, Any]:
    """Parts of the error that ended the last process; empty where there is no note."""
    try:
        note = read_json(folder / ENDED)
    except IrisError:
        return {}
    return note if isinstance(note, dict) else {}
