"""Queries: the volumes a user wants segmented, and the names their outputs get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iris_cli.dataset.dataset_json import FILE_NAME
from iris_cli.dataset.layout import (
    channel_file,
    check_file,
    count_channels,
    group_channels,
    list_volumes,
    split_channel,
)
from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.schema import read_json
from iris_cli.volume.reading import is_volume, volume_name


@dataclass(frozen=True)
class QueryVolume:
    """One volume to segment; `name` is the name its output gets, without ending."""

    name: str
    path: Path


@dataclass(frozen=True)
class FoundQueries:
    """The volumes to segment, sorted by name, and what should be said about the choice."""

    queries: tuple[QueryVolume, ...]
    notes: tuple[str, ...] = ()


def find_volumes(path: Path, *, channel: int = 0) -> list[Path]:
    """The volumes of `find_queries`, without their names."""
    return [query.path for query in find_queries(path, channel=channel)]


def find_queries(path: Path, *, channel: int = 0) -> tuple[QueryVolume, ...]:
    """The volumes of `search_queries`, without its notes."""
    return search_queries(path, channel=channel).queries


def search_queries(path: Path, *, channel: int = 0) -> FoundQueries:
    """The volumes to segment: a folder, one file, or a text file with one path per line.

    Names as nnU-Net has them (`<case>_0000`, ...) lose the channel and only the files of
    `channel` are taken; other names stay as they are. Lines of a list are relative to it; empty
    lines and lines starting with # are left out. A note says what was left out as another
    channel, unless a dataset.json beside the folder declares the channels.
    raises UsageError where there is nothing, or where names do not say what a file is;
    DataRefused where two files would have one output name.
    """
    notes: list[str] = []
    if path.is_dir():
        files = list_volumes(path)
        queries = _of_folder(files, channel, path, notes) if files else []
    else:
        files = [check_file(path)] if is_volume(path) else _listed(path)
        queries = _of_list(_of_channel(files, channel, path, notes), channel)
    if not queries:
        raise _nothing_found(path)
    return _found(queries, notes)


def search_files(files: Sequence[Path], *, channel: int = 0) -> FoundQueries:
    """Volumes that were named one by one, judged together as the lines of one list are.

    files: at least one. raises as `search_queries`.
    """
    notes: list[str] = []
    checked = [check_file(path) for path in files]
    where = checked[0] if len(checked) == 1 else checked[0].parent
    return _found(_of_list(_of_channel(checked, channel, where, notes), channel), notes)


def _found(queries: Sequence[QueryVolume], notes: Sequence[str]) -> FoundQueries:
    _refuse_equal_outputs(queries)
    return FoundQueries(tuple(sorted(queries, key=lambda query: query.name)), tuple(notes))


def _listed(path: Path) -> list[Path]:
    """The volumes a list file names."""
    check_file(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UsageError(
            "neither a volume nor a list of volumes",
            file=path,
            expected="a volume, or a text file with one path per line",
        ) from None
    texts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    files = [path.parent / text for text in texts]
    for text, file in zip(texts, files, strict=True):
        if not (file.is_file() and is_volume(file)):
            what = "is no volume" if file.is_file() else "does not exist"
            raise UsageError(
                "a line of the list is not a volume",
                file=path,
                found=f"{text!r}, which {what}",
                expected="one volume per line, relative to the list",
            )
    return files


def _of_list(files: Sequence[Path], channel: int) -> list[QueryVolume]:
    """Each file is a query; names lose their channel where all of them have it."""
    names = [volume_name(path) for path in files]
    parts = [split_channel(name) for name in names]
    if all(part is not None and part[1] == channel for part in parts):
        names = [part[0] for part in parts if part is not None]
    return [QueryVolume(name, path) for name, path in zip(names, files, strict=True)]


def _of_channel(
    files: Sequence[Path], channel: int, path: Path, notes: list[str]
) -> Sequence[Path]:
    """The named files without those that are known to be another channel, which are noted."""
    other = {file for file in files if _known_channel(file) not in (None, channel)}
    if files and len(other) == len(files):
        raise UsageError(
            f"no volume is of channel {channel}, which the task wants",
            file=path,
            found=_some([file.name for file in files]),
            expected=f"names ending in _{channel:04d}",
            fix="give the files of this channel; rename them if they are cases of their own",
        )
    if other:
        notes.append(_note_on_channels([file for file in files if file in other], channel, path))
    return [file for file in files if file not in other]


def _known_channel(file: Path) -> int | None:
    """The channel that a named file is by its name and the files beside it; None if open.

    Open too where the files beside it could be the channels of one case or cases with numbers:
    who names them in a list means cases.
    """
    parts = split_channel(volume_name(file))
    folder = file.absolute().parent
    if parts is None:
        return None
    declared = _declared_channels(folder.parent)
    if declared is not None:
        return parts[1] if parts[1] < declared and declared > 1 else None
    names = [volume_name(path) for path in list_volumes(folder)]
    stems = {split[0] for name in names if (split := split_channel(name)) is not None}
    is_channel = count_channels(names) > 1 and len(stems) > 1
    return parts[1] if is_channel else None


def _note_on_channels(files: Sequence[Path], channel: int, where: Path) -> str:
    count = "1 file is" if len(files) == 1 else f"{len(files)} files are"
    return (
        f"{count} taken as channels other than {channel} of {where} and left out: "
        f"{_some([file.name for file in files])}; rename them if they are cases of their own"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _of_folder(
    files: Sequence[Path], channel: int, folder: Path, notes: list[str]
) -> list[QueryVolume]:
    names = [volume_name(path) for path in files]
    declared = _declared_channels(folder.absolute().parent)
    count = count_channels(names) if declared is None else declared
    if count == 1:
        if channel != 0:
            raise _one_channel(folder, channel)
        return _of_list(files, 0)
    groups = group_channels(files, count)
    if declared is None and len(groups) == 1:
        raise UsageError(
            "these names may be the channels of one case, or cases with numbers",
            file=folder,
            found=f"{names[0]} to {names[-1]}",
            fix="give a text file that lists the volumes to segment, one per line",
        )
    queries = [QueryVolume(group.case, channel_file(group, channel)) for group in groups]
    left_out = sorted(set(files) - {query.path for query in queries})
    if declared is None and left_out:
        notes.append(_note_on_channels(left_out, channel, folder))
    return queries


def _declared_channels(folder: Path) -> int | None:
    """How many channels the dataset.json beside an image folder declares."""
    if not (folder / FILE_NAME).is_file():
        return None
    content = read_json(folder / FILE_NAME)
    if not isinstance(content, dict):
        return None
    names = content.get("channel_names", content.get("modality"))
    return len(names) if isinstance(names, dict) and names else None


def _one_channel(folder: Path, channel: int) -> UsageError:
    return UsageError(
        f"these volumes have one channel, the task wants channel {channel}",
        file=folder,
        expected=f"names ending in _{channel:04d}",
        fix="name the files as nnU-Net does, or list the volumes in a text file",
    )


def _refuse_equal_outputs(queries: Sequence[QueryVolume]) -> None:
    seen: dict[str, Path] = {}
    for query in queries:
        if query.name in seen:
            raise DataRefused(
                f"two volumes would have the output {query.name!r}",
                file=query.path,
                found=f"{seen[query.name]} and {query.path}",
                fix="rename one of them, or segment them one after the other",
            )
        seen[query.name] = query.path


def _nothing_found(path: Path) -> UsageError:
    fix = "give a folder of .nii.gz, .nrrd or .mha files"
    if path.is_dir():
        if (path / "imagesTs").is_dir() or (path / "imagesTr").is_dir():
            fix = f"give {path / 'imagesTs'} or {path / 'imagesTr'}"
        elif any(entry.suffix.lower() in (".dcm", ".ima") for entry in path.iterdir()):
            fix = "these are DICOM files: make volumes of them first, for example with dcm2niix"
    return UsageError("no volumes are found here", file=path, fix=fix)
