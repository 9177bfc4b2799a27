"""The converters by name. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from dataset_conversion.acdc import ACDC
from dataset_conversion.amos import AMOS_CT, AMOS_MR
from dataset_conversion.autopet import AUTOPET, AUTOPET_PETCT
from dataset_conversion.bcv import BCV
from dataset_conversion.bids import BIDS
from dataset_conversion.brain_dlbs import BRAIN_DLBS
from dataset_conversion.brats import BRATS
from dataset_conversion.chaos import CHAOS_MR
from dataset_conversion.ctpelvic1k import CTPELVIC1K
from dataset_conversion.family import SetFamily
from dataset_conversion.flare22 import FLARE22
from dataset_conversion.info_json import INFO_JSON
from dataset_conversion.ivdm3seg import CSI_SETS
from dataset_conversion.kits19 import KITS19
from dataset_conversion.kits23 import KITS23
from dataset_conversion.lits import LITS
from dataset_conversion.mnms import MNMS
from dataset_conversion.msd import MSD, MSD_TASKS
from dataset_conversion.msd_pancreas import MSD_PANCREAS
from dataset_conversion.nnunet_v1 import NNUNET_V1
from dataset_conversion.raw_set import Conversion
from dataset_conversion.runner import ConversionReport, PlannedConversion, plan_conversion
from dataset_conversion.runner import run_conversion as run_public_set
from dataset_conversion.scan import PublicSet
from dataset_conversion.segthor import SEGTHOR
from dataset_conversion.structseg import STRUCTSEG_HEAD_AND_NECK, STRUCTSEG_THORAX
from dataset_conversion.totalsegmentator import TOTALSEGMENTATOR_CT, TOTALSEGMENTATOR_MR
from dataset_conversion.word import WORD
from iris_cli.dataset.building import TransferMode
from iris_cli.errors import UsageError
from iris_cli.execution.progress import Progress
from iris_cli.execution.signals import StopRequest
from iris_cli.files.schema import nearest

_SETS: tuple[PublicSet, ...] = (
    AMOS_CT,
    AMOS_MR,
    AUTOPET,
    AUTOPET_PETCT,
    BCV,
    BRAIN_DLBS,
    CHAOS_MR,
    KITS19,
    LITS,
    MNMS,
    STRUCTSEG_HEAD_AND_NECK,
    STRUCTSEG_THORAX,
    *CSI_SETS,
    ACDC,
    SEGTHOR,
    MSD_PANCREAS,
    CTPELVIC1K,
    *(task for task in MSD_TASKS if task.name != MSD_PANCREAS.name),
    KITS23,
    WORD,
    FLARE22,
    TOTALSEGMENTATOR_CT,
    TOTALSEGMENTATOR_MR,
    NNUNET_V1,
    BIDS,
    *BRATS,
)

_FAMILIES: tuple[SetFamily, ...] = (INFO_JSON, MSD)

_FORMS = {INFO_JSON.name, MSD.name, NNUNET_V1.name, BIDS.name}

_ALL: tuple[SetFamily | PublicSet, ...] = (*_FAMILIES, *_SETS)

CONVERTERS = {converter.name: converter for converter in _ALL}


def find_converter(name: str) -> SetFamily | PublicSet:
    """The converter of this name; raises UsageError with the nearest known name."""
    if name in CONVERTERS:
        return CONVERTERS[name]
    guess = nearest(name, list(CONVERTERS))
    raise UsageError(
        f"there is no converter {name!r}",
        expected="one of " + ", ".join(CONVERTERS),
        fix=f"did you mean {guess!r}?" if guess else "see iris convert list",
    )


def default_folder(name: str, source: Path) -> str:
    """The raw folder where none is named: after the public set, or, for a form, after the source.

    raises UsageError for an unknown name.
    """
    if find_converter(name).name not in _FORMS:
        return name
    found = source.resolve()
    return found.name if found.is_dir() else found.name.partition(".")[0]


def plan(name: str, source: Path, *, split: str | None = None) -> PlannedConversion:
    """What the converter of this name would make; nothing is written."""
    converter = find_converter(name)
    if isinstance(converter, SetFamily):
        return converter.plan(source, split=split)
    return plan_conversion(converter, source, split=split)


def run(
    name: str,
    source: Path,
    target: Path,
    *,
    mode: TransferMode = TransferMode.COPY,
    split: str | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> ConversionReport:
    """Convert with the converter of this name; failed cases are in the report.

    raises UsageError for an unknown name, and whatever `runner.run_conversion` raises.
    """
    converter = find_converter(name)
    convert_it: Callable[..., ConversionReport] = (
        converter.run if isinstance(converter, SetFamily) else partial(run_public_set, converter)
    )
    return convert_it(
        source, target, mode=mode, split=split, workers=workers, progress=progress, stop=stop
    )


def convert(
    name: str, source: Path, target: Path, *, mode: TransferMode = TransferMode.COPY
) -> Conversion:
    """Convert a public data set with the converter of this name.

    raises SomeCasesFailed (or what all cases failed of) where a case failed.
    """
    report = run(name, source, target, mode=mode)
    report.run.raise_for_failures()
    return Conversion(report.folders, tuple(map(str, report.deviations)))
