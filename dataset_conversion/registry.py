"""The converters by name. A new one is one file and one line here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dataset_conversion import info_json, msd
from dataset_conversion.raw_set import Conversion
from iris_cli.dataset.building import TransferMode
from iris_cli.errors import UsageError
from iris_cli.files.schema import nearest


class ConvertFunction(Protocol):
    """Make the raw data set `target` out of `source`."""

    def __call__(self, source: Path, target: Path, *, mode: TransferMode) -> Conversion: ...


@dataclass(frozen=True)
class Converter:
    """A converter and what `iris convert list` says about it."""

    name: str
    summary: str
    convert: ConvertFunction


CONVERTERS: dict[str, Converter] = {
    converter.name: converter
    for converter in (
        Converter(
            "info_json",
            "a set (or a folder of sets) of images/, labels/ and info.json",
            info_json.convert,
        ),
        Converter(
            "msd",
            "a task of the Medical Segmentation Decathlon: its .tar, or the extracted folder",
            msd.convert,
        ),
    )
}


def find_converter(name: str) -> Converter:
    """The converter of this name; raises UsageError with the nearest known name."""
    if name in CONVERTERS:
        return CONVERTERS[name]
    guess = nearest(name, list(CONVERTERS))
    raise UsageError(
        f"there is no converter {name!r}",
        expected="one of " + ", ".join(CONVERTERS),
        fix=f"did you mean {guess!r}?" if guess else "see iris convert list",
    )


def convert(
    name: str, source: Path, target: Path, *, mode: TransferMode = TransferMode.COPY
) -> Conversion:
    """Convert a public data set into a raw data set with the converter of this name."""
    return find_converter(name).convert(source, target, mode=mode)
