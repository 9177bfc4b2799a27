"""What earlier runs left for a case: only what iris itself wrote is ever removed.

That is what a receipt of the case names, or the note of an attempt that was killed before its
receipt. A note (OUT/.iris/<case>.new) holds the paths a case is about to get, relative to OUT; it
stands there from before the first of them until the receipt.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from iris_cli.errors import EnvironmentProblem
from iris_cli.execution.receipts import read_receipt
from iris_cli.files.publish import publish_json, remove_leftovers
from iris_cli.inference.products import files_of

NOTE_ENDING = ".new"


def make_way(
    receipt: Path, case: str, output: Path, planned: Collection[Path], spared: Collection[Path]
) -> None:
    """Remove what earlier runs left for a case, once what takes its place is known.

    planned: files it is about to get. spared: never removed.
    raises EnvironmentProblem where a file cannot be removed.
    """
    note, folder = _note(receipt), output.parent
    said = read_receipt(receipt)
    earlier = {*_noted(note, folder)}
    if said is not None and said.case == case:
        earlier |= {*files_of(said, output)}
    kept = {path.resolve() for path in spared}
    # With the earlier ones, as their receipt goes first of all that could name them.
    names = sorted(path.relative_to(folder).as_posix() for path in {*planned, *earlier})
    publish_json(note, names)
    for path in planned:
        remove_leftovers(path.parent, path.name)
    for path in sorted(earlier):
        if path.resolve() not in kept:
            _remove(path)
    _remove(receipt)


def remove_half_notes(receipt: Path) -> None:
    """Remove what a killed process left of a note that it was writing."""
    remove_leftovers(receipt.parent, _note(receipt).name)


def forget_note(receipt: Path) -> None:
    """The receipt is there: it names the files from now on."""
    _remove(_note(receipt))


def _note(receipt: Path) -> Path:
    return receipt.with_suffix(NOTE_ENDING)


def _noted(note: Path, folder: Path) -> Iterator[Path]:
    """Paths in the note of an attempt that was killed; a note that cannot be read names none."""
    try:
        names = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for name in names if isinstance(names, list) else ():
        inside = PurePosixPath(str(name))
        if not inside.is_absolute() and ".." not in inside.parts:
            yield folder / inside


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            "what an earlier run left cannot be removed",
            file=path,
            found=error.strerror,
            fix="choose another output folder",
        ) from error
