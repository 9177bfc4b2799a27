"""What goes into the check of one case, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iris_cli.dataset.raw import Case, RawDataset
from iris_cli.files.schema import Record
from iris_cli.preparation.findings import Finding, Place
from iris_cli.preparation.integrity.sides import SideOffset, SidePair, side_pairs
from iris_cli.preparation.measure import CaseFacts, class_values, measured_values


@dataclass(frozen=True)
class CasePayload:
    """What `check_case` needs of one case, picklable.

    channels: as many as the set declares. measured: the classes among them whose size and place
    planning may know. pairs: left/right pairs whose places are compared.
    kept: file in which the result is kept, None to keep nothing.
    """

    set: str
    case: Case
    channels: int
    classes: Mapping[str, tuple[int, ...]]
    measured: Mapping[str, tuple[int, ...]]
    ignore_value: int | None
    pairs: tuple[SidePair, ...] = ()
    kept: Path | None = None

    @property
    def place(self) -> Place:
        return Place(self.set, self.case.name)

    @property
    def files(self) -> tuple[Path, ...]:
        label = () if self.case.label is None else (self.case.label,)
        return (*self.case.images, *label)

    def parameters(self) -> dict[str, Any]:
        """What the result depends on besides the files; JSON values only."""
        return {
            "set": self.set,
            "case": self.case.name,
            "subject": self.case.subject,
            "role": self.case.role,
            "modality": list(self.case.modality),
            "not_annotated": sorted(self.case.not_annotated),
            "channels": self.channels,
            "classes": {name: list(values) for name, values in self.classes.items()},
            "measured": sorted(self.measured),
            "ignore_value": self.ignore_value,
            "pairs": [[pair.left, pair.right] for pair in self.pairs],
        }


class CheckedCase(Record):
    """What was found of one case.

    facts: None where an image cannot be read; without classes for test cases.
    label_hash: of the voxels of its label map, None where it has none or only background.
    """

    findings: tuple[Finding, ...] = ()
    facts: CaseFacts | None = None
    label_hash: str | None = None
    sides: tuple[SideOffset, ...] = ()


def payloads(raw: RawDataset, file_names: Sequence[str], folder: Path | None) -> list[CasePayload]:
    """One payload per case; `file_names` are those of the kept results in `folder`."""
    classes, measured, pairs = class_values(raw), measured_values(raw), side_pairs(raw)
    return [
        CasePayload(
            set=raw.name,
            case=case,
            channels=len(raw.channels),
            classes=classes,
            measured=measured,
            ignore_value=raw.ignore_value,
            pairs=pairs,
            kept=None if folder is None else folder / f"{name}.json",
        )
        for case, name in zip(raw.cases, file_names, strict=True)
    ]
