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


def find_volumes(path: Path, *, channel: int = 0) -> list[Path]:
    """The volumes of `find_queries`, without their names."""
    return [query.path for query in find_queries(path, channel=channel)]


def find_queries(path: Path, *, channel: int = 0) -> tuple[QueryVolume, ...]:
    """The volumes to segment: a folder, one file, or a text file with one path per line.

    Names as nnU-Net has them (`<case>_0000`, ...) lose the channel and only the files of
    `channel` are taken; other names stay as they are. Lines of a list are relative to it; empty
    lines and lines starting with # are left out. Outputs are sorted by name.
    raises UsageError where there is nothing, or where names do not say what a file is;
    DataRefused where two files would have one output name.
    """
    if path.is_dir():
        files = list_volumes(path)
        queries = _of_folder(files, channel, path) if files else []
    else:
        files = [check_file(path)] if is_volume(path) else _listed(path)
        queries = _of_list(files, channel)
    if not queries:
        raise _nothing_found(path)
    _refuse_equal_outputs(queries)
    return tuple(sorted(queries, key=lambda query: query.name))


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


def _of_folder(files: Sequence[Path], channel: int, folder: Path) -> list[QueryVolume]:
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
    return [QueryVolume(group.case, channel_file(group, channel)) for group in groups]


def _declared_channels(folder: Path) -> int | None:
    """How many channels the dataset.json beside an image folder declares."""
    if not (folder / FILE_NAME).is_file():
        return None
    content = read_json(folder / FILE_NAME)
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
            fix = "these are DICOM files: iris convert dicom"
    return UsageError("no volumes are found here", file=path, fix=fix)
