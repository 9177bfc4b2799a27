"""`iris convert pairs`: words of the command line into the conversion of `dataset.pairs`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iris_cli.dataset import pairs
from iris_cli.dataset.building import TransferMode
from iris_cli.dataset.classes import Modality
from iris_cli.dataset.pairs import PairsConversion
from iris_cli.errors import UsageError


def parse_modality(text: str | None) -> Modality | None:
    """ct or other; raises UsageError for anything else."""
    match text:
        case None:
            return None
        case "ct":
            return "ct"
        case "other":
            return "other"
    raise UsageError("no such modality", found=text, expected="ct, or other (MR, PET, microscopy)")


def convert_pairs(
    images: Path,
    labels: Path | None,
    target: Path,
    *,
    mode: TransferMode = TransferMode.COPY,
    names: Sequence[str] = (),
    labels_file: Path | None = None,
    channel_names: Sequence[str] = (),
    modality: str | None = None,
    keep_values: bool = False,
) -> PairsConversion:
    """See `dataset.pairs.convert_pairs`; the modality is checked here."""
    return pairs.convert_pairs(
        images,
        labels,
        target,
        mode=mode,
        names=names,
        labels_file=labels_file,
        channel_names=channel_names,
        modality=parse_modality(modality),
        keep_values=keep_values,
    )
