"""ACDC: heart in cine MR, two frames of 100 training and 50 testing patients.

    database/{training,testing}/patientNNN/patientNNN_frameFF.nii.gz, patientNNN_frameFF_gt.nii.gz
    database/{training,testing}/patientNNN/patientNNN_4d.nii.gz, Info.cfg

The older archive has training/ alone.
"""

from __future__ import annotations

import re
from pathlib import Path

from dataset_conversion.facts import PaperRole, SetFacts
from dataset_conversion.raw_set import Split
from dataset_conversion.scan import Deviation, FoundCase, PublicSet, Scan, paired_cases
from dataset_conversion.source_tree import SourceTree

FACTS = SetFacts(
    name="acdc",
    title="ACDC: ventricles and myocardium, two frames of each heart (cine MR)",
    channels=("MR cine",),
    labels={"right ventricle": 1, "myocardium": 2, "left ventricle": 3},
    licence="CC BY-NC-SA 4.0",
    page="https://humanheart-project.creatis.insa-lyon.fr/database",
    layout="database/{training,testing}/patientNNN/patientNNN_frameFF{,_gt}.nii.gz",
    sources=(
        "MIC-DKFZ/nnUNet: Dataset027_ACDC.py",
        "yhygao/CBIM-Medical-Image-Segmentation: acdc_3d.py",
        "function2-llx/MMMM: ACDC.py",
        "openmedlab/Awesome-Medical-Dataset: ACDC.md",
    ),
    subjects="patientNNN is the subject of both frames",
    citation="Bernard O. et al., Deep Learning Techniques for Automatic MRI Cardiac Multi-"
    "Structures Segmentation and Diagnosis, IEEE TMI 37 (2018)",
    paper=PaperRole.HELD_OUT,
    expected={"labelled": 300},
    defects=(
        "the order of values is the reverse of M&Ms: right ventricle first",
        "patientNNN_4d.nii.gz is the whole sequence without label maps, not used",
    ),
)

_NAME = r"(?P<part>training|testing)/(?P<patient>patient\d{3})/(?P<key>(?P=patient)_frame\d{2})"


def scan(tree: SourceTree) -> Scan:
    """training/ is imagesTr, testing/ is imagesTs, each with its label maps."""
    images = tree.by_key(rf"{_NAME}\.nii(\.gz)?")
    labels = tree.by_key(rf"{_NAME}_gt\.nii(\.gz)?")
    tree.match(r"patient\d{3}_4d\.nii(\.gz)?")
    testing = {name for name, path in images.items() if path.parts[-3] == "testing"}

    def make(name: str, image: Path, label: Path | None) -> FoundCase:
        split = Split.TEST if name in testing else Split.TRAINING
        return FoundCase(name, (image,), label, name.partition("_")[0], split)

    cases, deviations = paired_cases(images, labels, make=make)
    return Scan(FACTS, tuple(cases), (*deviations, *_other_frames(tree, cases)))


def _other_frames(tree: SourceTree, cases: list[FoundCase]) -> list[Deviation]:
    """Patients whose frames are not those that their Info.cfg names as ED and ES."""
    frames: dict[str, set[int]] = {}
    for case in cases:
        frames.setdefault(case.person, set()).add(int(case.name[-2:]))
    odd = []
    for path, match in tree.match(r"(?P<patient>patient\d{3})/Info\.cfg"):
        text = path.read_text(encoding="utf-8", errors="replace")
        stated = {int(n) for n in re.findall(r"^E[DS]:\s*(\d+)", text, re.MULTILINE)}
        if stated != frames.get(match["patient"], stated):
            odd.append(match["patient"])
    return [Deviation("frames are not ED and ES of Info.cfg", tuple(odd))] if odd else []


ACDC = PublicSet(FACTS, scan)
