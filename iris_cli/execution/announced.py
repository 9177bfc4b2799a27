"""What the lines of a folder were asked to do, so that what waits can be told from outside.

A list is `<hash of what it says>.json`, the same for every process of the same line. It stays while
a case of it is left, and goes when a line ends that finds none: a list that is there after all
processes have ended speaks of work that was stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iris_cli.errors import DataRefused, IrisError
from iris_cli.files.hashing import hash_json
from iris_cli.files.publish import publish_json, published_json, remove_leftovers
from iris_cli.files.schema import Record, read_record

ANNOUNCED = "cases"


class Announced(Record):
    """What a line has to do.

    inputs: what decides whether a receipt is of this line. cases: name -> the file it is made of.
    """

    inputs: dict[str, Any]
    cases: dict[str, str]


def announce(folder: Path, announced: Announced) -> Path:
    """Say what is going to be done; returns the list. What killed processes left of some goes."""
    remove_leftovers(folder)
    said = announced.model_dump(mode="json")
    path = folder / f"{hash_json(said)}.json"
    if not path.exists():
        publish_json(path, said, indent=None)
    return path


def read_announced(folder: Path) -> dict[Path, Announced]:
    """Every list that is there."""
    found: dict[Path, Announced] = {}
    for path in published_json(folder):
        with contextlib.suppress(IrisError):  # withdrawn this moment, or of another version
            found[path] = read_record(path, Announced)
    return found


def withdraw_finished(folder: Path, is_left: Callable[[Announced], bool]) -> None:
    """Remove the lists of which no case is left."""
    for path in published_json(folder):
        try:
            is_finished = not is_left(read_record(path, Announced))
        except DataRefused:  # of another version
            is_finished = True
        except IrisError:
            continue
        if is_finished:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # other lists are there, or none ever was
        folder.rmdir()
