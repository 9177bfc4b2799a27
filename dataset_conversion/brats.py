"""BraTS, 2018 to 2024: tumours of the brain in four MR sequences, one folder per case.

Every edition and task is a converter of its own, because values with one name mean different
things: 4 is enhancing tumour up to 2021, resection cavity in the gliomas of 2024 and oedema in the
children of 2024. What is not 1, 2, 3, ... is renumbered, and said.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dataset_conversion.facts import SetFacts
from dataset_conversion.raw_set import Split
from dataset_conversion.relabelling import described, renumbered
from dataset_conversion.scan import Deviation, FoundCase, PublicSet, Recipe, Scan, missing
from dataset_conversion.source_tree import SourceTree
from iris_cli.errors import DataRefused
from iris_cli.volume.reading import read_labels


@dataclass(frozen=True)
class Edition:
    """One edition of one task.

    case: pattern of a case's folder; its group `subject` names the patient.
    files: suffix of the file of each channel, in order. label: suffix of the label map.
    renumber: values of the archive to those of the label table, where they differ.
    repaired: names of label maps that the archive has under a wrong name, by case.
    elsewhere: values that only another edition of equal file names has, with the name of that one.
    """

    name: str
    case: str
    labels: Mapping[str, int | list[int]]
    page: str
    expected: Mapping[str, int]
    files: tuple[str, ...] = ("-t1n", "-t1c", "-t2w", "-t2f")
    label: str = "-seg"
    channels: tuple[str, ...] = ("T1", "T1 contrast", "T2", "FLAIR")
    renumber: Mapping[int, int] = field(default_factory=dict)
    repaired: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[int, str] = field(default_factory=dict)
    layout: str = ""
    defects: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()


_OLD_FILES = ("_t1", "_t1ce", "_t2", "_flair")
_GLIOMA: dict[str, int | list[int]] = {
    "necrotic and non-enhancing core": 1,
    "peritumoural oedema": 2,
    "enhancing tumour": 3,
}
_RENUMBER = {1: 1, 2: 2, 4: 3}
_TUMOUR: dict[str, int | list[int]] = {
    "non-enhancing tumour core": 1,
    "surrounding non-enhancing FLAIR hyperintensity": 2,
    "enhancing tumour": 3,
}
_CHILDREN: dict[str, int | list[int]] = {
    "enhancing tumour": 1,
    "non-enhancing tumour": 2,
    "cystic component": 3,
    "peritumoural oedema": 4,
}
_REGIONS = (
    "the challenge scores regions: whole tumour (all classes), tumour core (all but oedema or "
    "FLAIR hyperintensity), enhancing tumour; the classes here are the values",
)
_GROWN = "each edition up to 2023 contains the cases of those before it under other names"


def _synapse(number: str) -> str:
    return f"https://www.synapse.org/Synapse:{number}"


def _of_2023(task: str, labelled: int, unlabelled: int) -> Edition:
    return Edition(
        name=f"brats2023-{task.lower()}",
        case=rf"(?P<subject>BraTS-{task}-\d{{5}})-\d{{3}}",
        labels=_TUMOUR,
        page=_synapse("syn51156910"),
        expected={"labelled": labelled, "unlabelled": unlabelled},
        layout=f"ASNR-MICCAI-BraTS2023-{task}-Challenge-TrainingData/BraTS-{task}-NNNNN-NNN/"
        f"BraTS-{task}-NNNNN-NNN-{{t1n,t1c,t2w,t2f,seg}}.nii.gz; ValidationData without seg",
    )


_OLD_LAYOUT = "BraTS{year}: {parts}<case>/<case>_{{t1,t1ce,t2,flair,seg}}.nii(.gz)"
EDITIONS = (
    Edition(
        name="brats2018",
        case=r"(?P<subject>Brats18_\w+?)_\d+",
        files=_OLD_FILES,
        label="_seg",
        labels=_GLIOMA,
        renumber=_RENUMBER,
        page="https://www.med.upenn.edu/sbia/brats2018/data.html",
        expected={"labelled": 285, "unlabelled": 66},
        layout=_OLD_LAYOUT.format(year=2018, parts="{HGG,LGG}/"),
        duplicates=(_GROWN, "MSD Task01 holds cases of the editions of 2016 and 2017"),
    ),
    Edition(
        name="brats2019",
        case=r"(?P<subject>BraTS19_\w+?)_\d+",
        files=_OLD_FILES,
        label="_seg",
        labels=_GLIOMA,
        renumber=_RENUMBER,
        page="https://www.med.upenn.edu/cbica/brats2019/data.html",
        expected={"labelled": 335, "unlabelled": 125},
        layout=_OLD_LAYOUT.format(year=2019, parts="{HGG,LGG}/"),
        duplicates=(_GROWN,),
    ),
    Edition(
        name="brats2020",
        case=r"(?P<subject>BraTS20_(?:Training|Validation)_\d{3})",
        files=_OLD_FILES,
        label="_seg",
        labels=_GLIOMA,
        renumber=_RENUMBER,
        page="https://www.med.upenn.edu/cbica/brats2020/data.html",
        expected={"labelled": 369, "unlabelled": 125},
        repaired={"BraTS20_Training_355": "W39_1998.09.19_Segm"},
        layout=_OLD_LAYOUT.format(year=2020, parts=""),
        defects=("the label map of BraTS20_Training_355 has a wrong name: taken and said",),
        duplicates=(_GROWN,),
    ),
    Edition(
        name="brats2021",
        case=r"(?P<subject>BraTS2021_\d{5})",
        files=_OLD_FILES,
        label="_seg",
        labels=_GLIOMA,
        renumber=_RENUMBER,
        page=_synapse("syn25829067"),
        expected={"labelled": 1251, "unlabelled": 219},
        layout=_OLD_LAYOUT.format(year=2021, parts=""),
        duplicates=(_GROWN, "brats2023-gli holds the same cases"),
    ),
    replace(
        _of_2023("GLI", 1251, 219),
        duplicates=(_GROWN, "the cases of brats2021 under other names"),
    ),
    _of_2023("MEN", 1000, 141),
    _of_2023("MET", 238, 31),
    replace(
        _of_2023("PED", 99, 45),
        elsewhere={4: "brats2024-ped"},
        defects=("the files of 2024 have equal names and other values: refused where one holds 4",),
    ),
    _of_2023("SSA", 60, 15),
    replace(
        _of_2023("GLI", 1350, 188),
        name="brats2024-gli",
        labels=_TUMOUR | {"resection cavity": 4},
        page=_synapse("syn53708249"),
        layout="training_data*/BraTS-GLI-NNNNN-NNN/BraTS-GLI-NNNNN-NNN-"
        "{t1n,t1c,t2w,t2f,seg}.nii.gz; validation_data without seg",
        defects=("several time points of a patient: one subject",),
    ),
    replace(
        _of_2023("PED", 261, 91),
        name="brats2024-ped",
        labels=_CHILDREN,
        page=_synapse("syn53708249"),
        layout="BraTS-PEDs2024_Training/BraTS-PED-NNNNN-NNN/"
        "BraTS-PED-NNNNN-NNN-{t1n,t1c,t2w,t2f,seg}.nii.gz",
    ),
    Edition(
        name="brats2024-men-rt",
        case=r"(?P<subject>BraTS-MEN-RT-\d{4})-\d+",
        files=("_t1c",),
        label="_gtv",
        channels=("T1 contrast",),
        labels={"gross tumour volume": 1},
        page=_synapse("syn53708249"),
        expected={"labelled": 500, "unlabelled": 70},
        layout="BraTS-MEN-RT-Train*/BraTS-MEN-RT-NNNN-N/BraTS-MEN-RT-NNNN-N_{t1c,gtv}.nii.gz",
        defects=("native spacing and field of view, head not stripped: unlike the other tasks",),
    ),
)


def _facts(edition: Edition) -> SetFacts:
    regions = _REGIONS if len(edition.labels) > 1 else ()
    changed = described(edition.renumber)
    regions = (*regions, changed) if changed else regions
    return SetFacts(
        name=edition.name,
        title=f"BraTS {edition.name[5:].upper()}: brain tumours in MR, {len(edition.files)} "
        f"sequence{'s' * (len(edition.files) > 1)}",
        channels=edition.channels,
        labels=edition.labels,
        licence="registration and terms of the challenge; see its page",
        page=edition.page,
        layout=edition.layout,
        sources=(
            "nnU-Net v1: Task032_BraTS_2018.py, Task043_BraTS_2019.py, Task082_BraTS_2020.py",
            "nnU-Net v2: Dataset137_BraTS21.py, Dataset226_BraTS2024-BraTS-GLI.py",
            "OpenMEDLab: BraTS18.md, BraTS2021.md, BraTS2023-{MEN,MET,PED,SSA}.md",
            "MMMM: BraTS2023.py",
            "arXiv 2405.18368 (GLI 2024), 2404.15009 (PED 2024), 2405.18383 (MEN-RT)",
        ),
        subjects="the patient's number; a name's last number is the time point",
        citation="Menze B. et al., IEEE TMI 34(10):1993-2024 (2015); Baid U. et al., arXiv "
        "2107.02314 (2021)",
        expected=edition.expected,
        defects=(*edition.defects, *regions),
        duplicates=edition.duplicates,
    )


def _scan(tree: SourceTree, *, edition: Edition, facts: SetFacts) -> Scan:
    found: dict[str, dict[str, Path]] = {}
    subjects: dict[str, str] = {}
    suffixes = "|".join((*edition.files, edition.label))
    pattern = rf"(?P<key>{edition.case})/(?P=key)(?P<suffix>{suffixes})\.nii(?:\.gz)?"
    for path, match in tree.match(pattern):
        found.setdefault(match["key"], {})[match["suffix"]] = path
        subjects[match["key"]] = match["subject"]
    notes: dict[str, tuple[str, ...]] = {}
    for case, wrong in edition.repaired.items():
        for path, _ in tree.match(rf"{case}/{wrong}\.nii(?:\.gz)?"):
            found.setdefault(case, {}).setdefault(edition.label, path)
            notes[case] = (f"label map found as {path.name}",)
    whole = [case for case, files in found.items() if set(edition.files) <= set(files)]
    cases = [
        _case(case, subjects[case], found[case], edition, notes.get(case, ())) for case in whole
    ]
    labels = [files[edition.label] for files in found.values() if edition.label in files]
    _refuse_other_edition(edition, labels)
    said: list[Deviation] = missing("a sequence is missing: left out", whole, found)
    if changed := described(edition.renumber):
        said.append(Deviation(changed))
    return Scan(facts, tuple(cases), tuple(said))


def _refuse_other_edition(edition: Edition, labels: Sequence[Path]) -> None:
    """The other values of such an edition would pass with wrong meanings, so all are looked at."""
    for path in labels if edition.elsewhere else ():
        values: set[int] = set()
        with suppress(DataRefused):  # of a damaged file, which the conversion of its case names
            values = set(np.unique(read_labels(path).array).tolist())
        for value in edition.elsewhere.keys() & values:
            raise DataRefused(
                "these label maps are of another edition",
                file=path,
                found=f"value {value}",
                expected=", ".join(f"{number} {name}" for name, number in edition.labels.items()),
                fix=f"iris convert {edition.elsewhere[value]}",
            )


def _case(
    name: str, subject: str, files: Mapping[str, Path], edition: Edition, notes: tuple[str, ...]
) -> FoundCase:
    label: Path | Recipe | None = files.get(edition.label)
    if isinstance(label, Path) and edition.renumber:
        label = renumbered(label, edition.renumber)
    return FoundCase(
        name,
        tuple(files[suffix] for suffix in edition.files),
        label,
        subject=subject,
        split=Split.TRAINING if label else Split.TEST,
        notes=notes,
    )


def _public_set(edition: Edition) -> PublicSet:
    facts = _facts(edition)
    return PublicSet(facts, functools.partial(_scan, edition=edition, facts=facts))


BRATS: tuple[PublicSet, ...] = tuple(map(_public_set, EDITIONS))
