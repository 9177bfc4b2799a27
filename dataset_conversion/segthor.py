"""SegTHOR: thoracic organs at risk in CT, 40 labelled and 20 unlabelled patients.

train/Patient_NN/Patient_NN.nii.gz, train/Patient_NN/GT.nii.gz     01 to 40
test/Patient_NN.nii.gz                                            41 to 60
"""

from __future__ import annotations

from dataset_conversion.facts import PaperRole, SetFacts
from dataset_conversion.scan import PublicSet, Scan, paired_cases
from dataset_conversion.source_tree import SourceTree

FACTS = SetFacts(
    name="segthor",
    title="SegTHOR: thoracic organs at risk (CT)",
    channels=("CT",),
    labels={"oesophagus": 1, "heart": 2, "trachea": 3, "aorta": 4},
    licence="challenge agreement",
    page="https://competitions.codalab.org/competitions/21145",
    layout="train/Patient_NN/{Patient_NN,GT}.nii.gz and test/Patient_NN.nii.gz",
    sources=(
        "MIC-DKFZ/nnUNet (version 1): Task055_SegTHOR.py",
        "function2-llx/MMMM: SegTHOR.py",
        "zhaoziheng/SAT-DS: SegTHOR.jsonl",
        "openmedlab/Awesome-Medical-Dataset: SegTHOR.md",
    ),
    subjects="Patient_NN is the subject",
    citation="Lambert Z. et al., SegTHOR: Segmentation of Thoracic Organs at Risk in CT images, "
    "IPTA 2020",
    paper=PaperRole.HELD_OUT,
    expected={"labelled": 40, "unlabelled": 20},
    defects=("all label maps are called GT.nii.gz; the folder names the case",),
)


def scan(tree: SourceTree) -> Scan:
    images = tree.by_key(r"(?P<key>Patient_\d+)/(?P=key)\.nii(\.gz)?")
    test = tree.by_key(r"test/(?P<key>Patient_\d+)\.nii(\.gz)?")
    labels = tree.by_key(r"(?P<key>Patient_\d+)/GT\.nii(\.gz)?")
    cases, deviations = paired_cases(images | test, labels, unlabelled=test)
    return Scan(FACTS, tuple(cases), tuple(deviations))


SEGTHOR = PublicSet(FACTS, scan)
