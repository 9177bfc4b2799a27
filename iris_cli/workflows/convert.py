"""`iris convert`: public data sets and other forms of data into raw data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from iris_cli.dataset.building import TransferMode
from iris_cli.execution.progress import Progress
from iris_cli.execution.signals import StopRequest

# The converters stand beside iris, not in it: they are imported when they are asked for.
if TYPE_CHECKING:
    from dataset_conversion.family import SetFamily
    from dataset_conversion.runner import ConversionReport, PlannedConversion
    from dataset_conversion.scan import PublicSet

RAW = "raw"


def list_converters() -> list[dict[str, Any]]:
    """Every converter with what is known about its set, JSON values only."""
    from dataset_conversion.registry import CONVERTERS

    rows = [_row(converter) for converter in CONVERTERS.values()]
    pairs = "images and label maps (or one mask file per class) by name, or pairs side by side"
    return [*rows, {"name": "pairs", "title": pairs}]


def plan_conversion(name: str, source: Path, *, split: str | None = None) -> PlannedConversion:
    """What would be made: cases, roles and deviations, by names alone; nothing is written.

    raises UsageError for an unknown name or split, DataRefused where the source is not this set.
    """
    from dataset_conversion.registry import plan

    return plan(name, source, split=split)


def convert(
    name: str,
    source: Path,
    target: Path | None = None,
    *,
    workspace: Path = Path(),
    link: bool = False,
    split: str | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> ConversionReport:
    """Convert `source` into `target`, by default a folder of `<workspace>/raw`; resumes by itself.

    That folder is named after the public set, or after the source where `name` is a form of data.
    split: `author`, `subject-5fold`, or a .json file of case lists. A case that fails is in the
    report, whose exit code is 3 then. raises UsageError, DataRefused where nothing of the set is
    there, EnvironmentProblem for disks and permissions, Stopped on a signal.
    """
    from dataset_conversion.registry import default_folder, run

    if target is None:
        target = workspace / RAW / default_folder(name, source)
    return run(
        name,
        source,
        target,
        mode=TransferMode.LINK if link else TransferMode.COPY,
        split=split,
        workers=workers,
        progress=progress,
        stop=stop,
    )


def _row(converter: SetFamily | PublicSet) -> dict[str, Any]:
    from dataset_conversion.scan import PublicSet

    if isinstance(converter, PublicSet):
        return converter.facts.to_json()
    return {"name": converter.name, "title": converter.summary}
