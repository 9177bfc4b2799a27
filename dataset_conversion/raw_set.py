"""What converters hand over: the image folder a case lies in, and the sets that were made."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Split(StrEnum):
    """Which image folder a case lies in: nnU-Net trains on `imagesTr` and predicts `imagesTs`."""

    TRAINING = "Tr"
    TEST = "Ts"


@dataclass(frozen=True)
class Conversion:
    """The raw data sets that a converter made, and what it has to say about them."""

    folders: tuple[Path, ...]
    notes: tuple[str, ...] = ()
