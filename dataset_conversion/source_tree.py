"""The files of a source folder, listed once; what is no data is set aside and said.

Patterns are regular expressions that are matched with whole path components from the right, the
folders above the source included, so that it does not matter to which folder of the archive a user
points: `img/img(\\d+)\\.nii\\.gz` finds `Abdomen/RawData/Training/img/img0001.nii.gz`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from iris_cli.errors import EnvironmentProblem, UsageError
from iris_cli.volume.reading import is_volume

# Companions of archives packed on a Mac, folders of file managers, downloads that did not end.
_STRANGE_FOLDERS = ("__MACOSX",)
_STRANGE_NAMES = ("thumbs.db", "desktop.ini")
_UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp", ".filepart")


class SourceTree:
    """All files below a folder.

    files: paths relative to `root`, in natural order (2 before 10).
    skipped: what is no data, with the reason.
    """

    def __init__(self, root: Path) -> None:
        """raises UsageError where there is no folder, EnvironmentProblem where it is unreadable."""
        if not root.is_dir():
            raise UsageError(
                "the source is no folder",
                file=root,
                found="a file" if root.exists() else "nothing",
                fix="extract the archive and give its folder" if root.exists() else "check it",
            )
        self.root = root
        self.files: list[str] = []
        self.skipped: dict[str, str] = {}
        self._matched: set[str] = set()
        self._above = f"{root.absolute().as_posix()}/"
        entered: set[tuple[int, int]] = set()
        for folder, folders, names in os.walk(root, onerror=_unreadable, followlinks=True):
            folders[:] = sorted(name for name in folders if not _is_hidden_folder(name))
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:  # a link to a folder above it
                folders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            for name in names:
                self._add(Path(folder) / name)
        self.files.sort(key=natural_key)

    def match(self, pattern: str) -> list[tuple[Path, re.Match[str]]]:
        """The files whose last components are `pattern`, in natural order, with the match."""
        # As little as possible is passed over, so that optional first components are seen.
        whole = re.compile(rf".*?/{pattern}$")
        found = [(name, match) for name in self.files if (match := whole.match(self._above + name))]
        self._matched.update(name for name, _ in found)
        return [(self.root / name, match) for name, match in found]

    def by_key(self, pattern: str, *groups: str) -> dict[str, Path]:
        """Files by the text of the named groups (`key` by default), joined by `_`.

        A key that two files have keeps the first one; the other is skipped and said.
        """
        found: dict[str, Path] = {}
        for path, match in self.match(pattern):
            key = "_".join(match[group] for group in groups or ("key",))
            if found.setdefault(key, path) is not path:
                self.skipped[self.relative(path)] = f"a second file of {key}"
        return found

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def unmatched(self) -> list[str]:
        """Volumes that no pattern matched: of no known role."""
        return [name for name in self.files if name not in self._matched and is_volume(name)]

    def _add(self, path: Path) -> None:
        name, relative = path.name, path.relative_to(self.root).as_posix()
        if name.startswith(".") or name.lower() in _STRANGE_NAMES:
            self.skipped[relative] = "a companion file of an archive or a file manager"
        elif name.lower().endswith(_UNFINISHED):
            self.skipped[relative] = "an unfinished download"
        elif _size(path) == 0:
            self.skipped[relative] = "an empty file"
        else:
            self.files.append(relative)


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sorts numbers in names as numbers: `2` before `10`."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def _is_hidden_folder(name: str) -> bool:
    return name.startswith(".") or name in _STRANGE_FOLDERS


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        # A link to nothing is a file that is not there; anything else is the disk's word.
        if isinstance(error, FileNotFoundError):
            return 0
        _unreadable(error)
        raise


def _unreadable(error: OSError) -> None:
    raise EnvironmentProblem(
        "the source cannot be read",
        file=error.filename,
        found=error.strerror,
        fix="make it readable, or bring the disk back, then run the same line again",
    ) from error
