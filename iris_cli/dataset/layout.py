"""File names in folders of volumes: which files are one case, which of them is which channel.

nnU-Net names the files of a case `<case>_0000.nii.gz`, `<case>_0001.nii.gz`, one per channel, and
its label map `<case>.nii.gz`. Other collections name a single-channel image like its label map.
Both are read, by this rule:

- Files whose names start with a dot are nobody's (`._x.nii.gz` of archives packed on a Mac).
- With more than one channel every image must end in `_dddd`, the index of its channel.
- With one channel, either every image of a folder ends in `_0000`, which is cut off, or none
  does and the names are the case names as they are (`amos_0507.nii.gz` is case `amos_0507`).
- A folder where some images end in `_0000` and some do not is a mixture that is refused, except
  that the label maps beside it may decide: a full name that has a label map is a case name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from iris_cli.errors import DataRefused, EnvironmentProblem, UsageError
from iris_cli.files.archive import safe_relative_path
from iris_cli.volume.reading import is_volume, volume_name

_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<index>\d{4})$")


@dataclass(frozen=True)
class ImageFiles:
    """The image files of one case by channel index."""

    case: str
    by_channel: dict[int, Path]


def list_volumes(folder: Path, file_ending: str | None = None) -> list[Path]:
    """The volumes directly in a folder, sorted by name; hidden files are left out.

    file_ending: only those of this ending (`.nii.gz`).
    """
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except PermissionError as error:
        raise EnvironmentProblem("no permission to read a folder", file=folder) from error
    return [
        entry
        for entry in entries
        if not entry.name.startswith(".")
        and is_volume(entry)
        and (file_ending is None or entry.name.endswith(file_ending))
        and not entry.is_dir()
    ]


def split_channel(name: str) -> tuple[str, int] | None:
    """`case_0001` as (`case`, 1); None where the name does not end in a channel index."""
    match = _CHANNEL.match(name)
    return (match["case"], int(match["index"])) if match else None


def group_channels(
    files: Iterable[Path],
    channels: int,
    *,
    labelled: Collection[str] = (),
    odd: list[DataRefused] | None = None,
) -> list[ImageFiles]:
    """Group image files by case, by the rule of this module; sorted by case name.

    labelled: names of the label maps that belong to these images.
    odd: gets one refusal for each file that does not fit, which is left out; without it the
    first such file is raised.
    raises DataRefused where a name does not fit or two files are the same channel.
    """
    refusals: list[DataRefused] = []
    named = [(volume_name(path), path) for path in files]
    if channels == 1 and not _has_channel_suffix([name for name, _ in named], labelled):
        triples = [(name, 0, path) for name, path in named]
    else:
        triples = []
        for name, path in named:
            parts = split_channel(name)
            if parts is None or parts[1] >= channels:
                refusals.append(_no_channel(path, channels))
            else:
                triples.append((*parts, path))
    groups = _grouped(triples, refusals)
    if odd is None and refusals:
        raise refusals[0]
    if odd is not None:
        odd.extend(refusals)
    return groups


def count_channels(names: Collection[str]) -> int:
    """How many channels the names of a folder speak of: 1 unless all end in `_dddd`.

    names: without endings. Cases that share a stem and differ in a four-digit index are channels
    only if an index 0 is among them and indices are small, so `amos_0507` counts as plain.
    """
    parts = [split_channel(name) for name in names]
    indices = {part[1] for part in parts if part is not None}
    if None in parts or not indices or indices != set(range(len(indices))):
        return 1
    first = {part[0] for part in parts if part is not None and part[1] == 0}
    return len(indices) if all(part[0] in first for part in parts if part is not None) else 1


def channel_file(files: ImageFiles, channel: int) -> Path:
    """The file of one channel; raises DataRefused where the case has none."""
    if channel not in files.by_channel:
        raise DataRefused(
            f"case {files.case!r} has no image for channel {channel}",
            file=next(iter(files.by_channel.values()), None),
            found="channels " + (", ".join(map(str, files.by_channel)) or "none"),
            fix="add the file, or choose another channel",
        )
    return files.by_channel[channel]


def check_file(path: Path) -> Path:
    """A file a user named; raises UsageError where it does not exist."""
    if not path.is_file():
        raise UsageError("no such file", file=path, fix="check the path")
    return path


def check_case_name(name: str, *, file: Path | str | None = None) -> str:
    """A case name from JSON or the command line as a plain file name; raises DataRefused."""
    if "/" in name:
        raise DataRefused(
            "a case name could leave its folder",
            file=file,
            found=repr(name),
            expected="a plain file name without its ending",
        )
    return str(safe_relative_path(name, archive=file))


def _has_channel_suffix(names: list[str], labelled: Collection[str]) -> bool:
    """Whether the names of a single-channel folder carry `_0000`."""
    suffixed = sum((split_channel(name) or ("", -1))[1] == 0 for name in names)
    return suffixed > 0 and not all(name in labelled for name in names)


def _no_channel(path: Path, channels: int) -> DataRefused:
    last = f" to <case>_{channels - 1:04d}" if channels > 1 else ""
    return DataRefused(
        "an image's name does not say which channel it is",
        file=path,
        found=path.name,
        expected=f"<case>_0000{last} before the ending, as the other images have it",
        fix="rename the file, or correct channel_names in dataset.json",
    )


def _grouped(triples: list[tuple[str, int, Path]], refusals: list[DataRefused]) -> list[ImageFiles]:
    cases: dict[str, dict[int, Path]] = {}
    for case, index, path in triples:
        files = cases.setdefault(case, {})
        if index in files:
            refusals.append(
                DataRefused(
                    f"two files are channel {index} of case {case!r}",
                    file=path,
                    found=f"{files[index].name} and {path.name}",
                    fix="remove one of them",
                )
            )
        else:
            files[index] = path
    return [ImageFiles(case, dict(sorted(cases[case].items()))) for case in sorted(cases)]
