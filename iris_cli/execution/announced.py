"""What the jobs of a folder were asked to do, so that what waits can be told from outside.

A list is `<hash of the names>.json`, the same for every process of the same line. It stays while a
case of it has no result, and goes with the last one: a list that is there after all processes have
ended speaks of work that was stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from iris_cli.errors import IrisError
from iris_cli.files.hashing import hash_json
from iris_cli.files.publish import publish_json
from iris_cli.files.schema import read_json

ANNOUNCED = "cases"


def announce(folder: Path, cases: Sequence[str]) -> Path:
    """Say what is going to be done; returns the list, for `withdraw`."""
    names = sorted(cases)
    path = folder / f"{hash_json(names)}.json"
    if not path.exists():
        publish_json(path, names, indent=None)
    return path


def withdraw(announced: Path) -> None:
    """Every case of this list has a result."""
    announced.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # other lists are there
        announced.parent.rmdir()


def read_announced(folder: Path) -> set[str]:
    """The cases of all lists."""
    return {case for path in folder.glob("*.json") for case in _names(path)}


def _names(path: Path) -> Iterator[str]:
    try:
        names = read_json(path)
    except IrisError:  # withdrawn this moment
        return
    yield from (name for name in names if isinstance(name, str)) if isinstance(names, list) else ()
