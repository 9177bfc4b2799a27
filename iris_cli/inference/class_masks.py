"""One mask for each class of a query: every voxel whose logit is above 0, overlaps kept.

Where a label map gives a voxel to the class of the largest logit, a mask says whether its class
claims it at all. The masks wait packed and deflated until the sweep is done: most of their boxes
are empty, so that memory does not grow with the number of classes.
source: DESIGN.md section 7, `--multilabel`.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from iris_cli.errors import DataRefused
from iris_cli.volume.scores import Box

LEVEL = 1
MASK_WRITE_BYTES = 6
"""Of memory for each voxel while a mask is put together, written, and read again (measured)."""

LONGEST_NAME = 120
"""Characters of a class in a file name; file systems stop at 255 bytes."""

FORBIDDEN = set('/\\:*?"<>|')
"""In file names, of some system or other."""


@dataclass(frozen=True)
class _Block:
    """The mask of a class in a box: bits of (z, y, x), deflated."""

    box: Box
    bits: bytes

    def put(self, whole: npt.NDArray[np.uint8]) -> None:
        """Into the mask of the volume; 0 where another box has the voxel."""
        part = whole[self.box]
        packed = np.frombuffer(zlib.decompress(self.bits), np.uint8)
        part |= np.unpackbits(packed, count=part.size).reshape(part.shape)


class ClassMasks:
    """The masks of one query while its boxes are decided; `add` is an `OnScores`."""

    def __init__(self) -> None:
        self._blocks: dict[int, list[_Block]] = {}

    def add(self, box: Box, value: int, logits: Tensor) -> None:
        """Logits (z, y, x) of a class everywhere in a box; called with every box once."""
        mask = logits > 0
        if not bool(mask.any()):
            return
        bits = zlib.compress(np.packbits(mask.cpu().numpy()).tobytes(), LEVEL)
        self._blocks.setdefault(value, []).append(_Block(box, bits))

    def mask(self, value: int, shape_zyx: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
        """(z, y, x): 1 where the class of this label value claims the voxel, else 0."""
        whole = np.zeros(shape_zyx, np.uint8)
        for block in self._blocks.get(value, ()):
            block.put(whole)
        return whole


def mask_file(name: str, ending: str) -> str:
    """The file of a class: its name, with `_` for what some file system does not take."""
    plain = "".join("_" if c in FORBIDDEN else c for c in name)[:LONGEST_NAME]
    return f"{plain.strip('. ') or '_'}{ending}"


def check_mask_files(names: Sequence[str]) -> None:
    """Refuse classes whose masks would be one file, on a file system that knows no case, too."""
    count = Counter(mask_file(name, "").casefold() for name in names)
    twice = [name for name in names if count[mask_file(name, "").casefold()] > 1]
    if twice:
        raise DataRefused(
            "the masks of two classes would be one file",
            found=" and ".join(repr(name) for name in twice[:2]),
            expected="names that differ in more than case and signs that files cannot have",
            fix="`iris task rename` one of them, or leave out --multilabel",
        )
