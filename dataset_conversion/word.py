"""WORD: sixteen organs of the whole abdomen in CT."""

from __future__ import annotations

import dataclasses

from dataset_conversion.facts import SetFacts
from dataset_conversion.raw_set import Split
from dataset_conversion.scan import Deviation, PublicSet, Scan, paired_cases
from dataset_conversion.source_tree import SourceTree
from iris_cli.dataset.dataset_json import Role
from iris_cli.dataset.sides import suggest_mirror_pairs

LABELS: dict[str, int | list[int]] = {
    "liver": 1,
    "spleen": 2,
    "left kidney": 3,
    "right kidney": 4,
    "stomach": 5,
    "gallbladder": 6,
    "oesophagus": 7,
    "pancreas": 8,
    "duodenum": 9,
    "colon": 10,
    "intestine": 11,
    "adrenal glands": 12,
    "rectum": 13,
    "bladder": 14,
    "left femoral head": 15,
    "right femoral head": 16,
}

FACTS = SetFacts(
    name="word",
    title="WORD: 16 organs of the whole abdomen in CT",
    channels=("CT",),
    labels=LABELS,
    licence="GPL-3.0 as the authors state it; access by e-mail, academic research only",
    page="https://github.com/HiLab-git/WORD",
    layout="WORD-V0.1.0/images{Tr,Val,Ts}/word_NNNN.nii.gz, labels{Tr,Val,Ts}/ of equal names",
    sources=("HiLab-git/WORD: README.md", "OpenMEDLab: WORD.md", "MMMM: WORD.py"),
    subjects="a file is a subject",
    citation="Luo X. et al., WORD, Medical Image Analysis 82:102642 (2022)",
    expected={"labelled": 150},
    defects=(
        "older releases have no labelsTs: those 30 images are then without label map",
        "addition_validation_from_LiTS/lablesTs (sic) holds label maps of 20 LiTS images that are "
        "not in the archive: left out and said",
        "both adrenal glands are one class, as are small and other bowel (intestine)",
    ),
    duplicates=("the 20 additional label maps are of images of LiTS (MSD Task03 Liver)",),
    mirror_pairs=suggest_mirror_pairs(LABELS),
)

_PARTS: dict[str, tuple[Split, Role]] = {
    "Tr": (Split.TRAINING, "train"),
    "Val": (Split.TRAINING, "validate"),
    "Ts": (Split.TEST, "test"),
}


def scan(tree: SourceTree) -> Scan:
    """The official parts are the roles: Tr trains, Val validates, Ts tests."""
    cases, deviations = [], []
    for part, (split, role) in _PARTS.items():
        images = tree.by_key(rf"images{part}/(?P<key>word_\d+)\.nii\.gz")
        labels = tree.by_key(rf"labels{part}/(?P<key>word_\d+)\.nii\.gz")
        found, said = paired_cases(images, labels, unlabelled=split is Split.TEST)
        cases += [
            dataclasses.replace(case, split=split, role=role) if case.label else case
            for case in found
        ]
        deviations += said
    of_lits = tree.match(r"(?P<key>\w+)_word_label\.nii\.gz")
    if of_lits:
        names = tuple(match["key"] for _, match in of_lits)
        deviations.append(Deviation("label maps of LiTS images, which are not here", names))
    return Scan(FACTS, tuple(cases), tuple(deviations))


WORD = PublicSet(FACTS, scan)
