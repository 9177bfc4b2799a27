"""The files that the voxels of a volume are in, and what the file system says of them."""

from __future__ import annotations

from pathlib import Path

from iris_cli.errors import IrisError
from iris_cli.files.state import FileState, file_state
from iris_cli.volume.reading import volume_ending
from iris_cli.volume.text_volumes import read_claim_of_text

VolumeState = list[FileState]


def data_files(path: Path) -> tuple[Path, ...]:
    """The file, and the one of its voxels where its header names another that is there."""
    if volume_ending(path) not in (".nrrd", ".mha", ".mhd"):
        return (path,)
    try:
        voxels = read_claim_of_text(path).data_file
    except (IrisError, OSError):
        return (path,)  # reading it will say what is wrong
    return (path,) if voxels == path else (path, voxels)


def volume_state(path: Path) -> VolumeState | None:
    """State of all files of a volume, None where one cannot be seen."""
    states = [file_state(file) for file in data_files(path)]
    found = [state for state in states if state is not None]
    return found if len(found) == len(states) else None
