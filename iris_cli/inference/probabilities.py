"""Probabilities of every class on the grid of the query, one file for each.

The sweep hands over the logits of one class in one box at a time. What becomes of them waits in a
file without a name, so that memory does not grow with the number of classes; after the sweep one
class after the other is put together and published.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iris_cli.files.publish import environment_problem
from iris_cli.volume.reading import NativeGeometry
from iris_cli.volume.scores import Box
from iris_cli.volume.writing import write_image

ProbabilityType = Literal["uint8", "float16"]
"""uint8: 0 to 255 for 0 to 1. float16: 0 to 1 in steps of half precision, written as float32."""

PROBABILITIES = "probabilities"

FILE_TYPES: Mapping[ProbabilityType, npt.DTypeLike] = {"uint8": np.uint8, "float16": np.float32}
"""No format of volumes has numbers of half precision; rounded to it, they deflate well."""


WRITE_BYTES: Mapping[ProbabilityType, int] = {"uint8": 5, "float16": 19}
"""Of memory for each voxel while a class is put together, written, and read again (measured)."""


@dataclass(frozen=True)
class _Block:
    """Where in the file a box of a class stands, and where in the volume it belongs."""

    offset: int
    box: Box


class ProbabilityStore:
    """The probabilities of one query while its boxes are decided.

    folder: where the file without a name is. raises EnvironmentProblem where its disk is full.
    """

    def __init__(self, folder: Path, kind: ProbabilityType) -> None:
        self._folder, self._kind = folder, kind
        self._dtype = np.dtype(kind)
        self._blocks: dict[int, list[_Block]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115

    def add(self, box: Box, value: int, logits: Tensor) -> None:
        """Logits (z, y, x) of a class everywhere in a box; called with every box once."""
        probability = logits.float().sigmoid()
        if self._kind == "uint8":
            probability = (probability * 255).round_().to(torch.uint8)
        array = probability.cpu().numpy().astype(self._dtype, copy=False)
        offset = self._file.seek(0, 2)
        self._blocks.setdefault(value, []).append(_Block(offset, box))
        left = memoryview(np.ascontiguousarray(array).tobytes())
        needs = offset + len(left)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            written = self._file.seek(0, 2)
            problem = environment_problem(self._folder, error, written, needs)
            raise problem or error from error

    def write(self, path: Path, value: int, native: NativeGeometry) -> Path:
        """Publish the probabilities of one class."""
        kind = FILE_TYPES[self._kind]
        array = np.zeros(native.canonical_grid.shape_zyx, kind)
        for block in self._blocks[value]:
            self._file.seek(block.offset)
            part = array[block.box]
            read = np.frombuffer(self._read(part.size * self._dtype.itemsize), self._dtype)
            np.maximum(part, read.reshape(part.shape), out=part)  # 0 where another box has it
        return write_image(path, array, native, dtype=kind)

    def close(self) -> None:
        """Give the room on the disk back."""
        self._file.close()

    def _read(self, size: int) -> bytes:
        pieces: list[Any] = []
        while size:
            pieces.append(self._file.read(size))
            size -= len(pieces[-1])
        return b"".join(pieces)


def probability_file(value: int, name: str, ending: str) -> str:
    """Name of the file of a class: its value, and its name as far as file systems take it."""
    plain = "".join(c if c.isalnum() or c in "-._" else "_" for c in name)
    return f"{value}_{plain[:60]}{ending}"
