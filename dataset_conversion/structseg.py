"""StructSeg 2019: organs at risk of head and neck (22) and thorax (6) in CT, 50 patients each.

HaN_OAR/<n>/data.nii.gz, label.nii.gz           n = 1 to 50, not padded
Thoracic_OAR/<n>/data.nii.gz, label.nii.gz
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from dataset_conversion.facts import AuthorSplit, LabelGrid, PaperRole, SetFacts
from dataset_conversion.scan import PublicSet, Scan, paired_cases
from dataset_conversion.source_tree import SourceTree
from iris_cli.dataset.sides import suggest_mirror_pairs

HEAD_AND_NECK = (
    "brain stem",
    "left eye",
    "right eye",
    "left lens",
    "right lens",
    "left optic nerve",
    "right optic nerve",
    "optic chiasm",
    "left temporal lobe",
    "right temporal lobe",
    "pituitary",
    "left parotid",
    "right parotid",
    "left inner ear",
    "right inner ear",
    "left middle ear",
    "right middle ear",
    "left temporomandibular joint",
    "right temporomandibular joint",
    "spinal cord",
    "left mandible",
    "right mandible",
)
THORAX = ("left lung", "right lung", "heart", "oesophagus", "trachea", "spinal cord")


def _facts(
    name: str, title: str, folder: str, classes: tuple[str, ...], split: AuthorSplit
) -> SetFacts:
    return SetFacts(
        name=name,
        title=f"StructSeg 2019: {len(classes)} organs at risk, {title} (CT)",
        channels=("CT",),
        labels={organ: value for value, organ in enumerate(classes, start=1)},
        licence="none published; not to be passed on",
        page="https://structseg2019.grand-challenge.org",
        layout=f"{folder}/<n>/{{data,label}}.nii.gz",
        sources=(
            "openmedlab/Awesome-Medical-Dataset: StructSeg2019_Task1.md, StructSeg2019_Task3.md",
            "yhygao/universal-medical-image-segmentation: structseg_3d.py",
            "MIC-DKFZ/MultiTalent: MultiTalent_labels (order of the classes)",
        ),
        subjects="the number is the subject within a task; tasks are of different patients",
        paper=PaperRole.TRAINED,
        expected={"labelled": 50},
        defects=(
            "headers of label maps are not always those of the images: the image's is taken",
            "public tables disagree on the order of the classes; the one taken fits the volumes "
            "and is checked by left and right",
        ),
        mirror_pairs=suggest_mirror_pairs(classes),
        label_grid=LabelGrid.COPY,
        author_split=split,
    )


def _split(folder: str, validate: Iterable[int], test: Iterable[int]) -> AuthorSplit:
    return AuthorSplit(
        frozenset(f"{folder}_{number}" for number in validate),
        frozenset(f"{folder}_{number}" for number in test),
        "yhygao/universal-medical-image-segmentation: list of StructSeg",
    )


def scan(tree: SourceTree, *, facts: SetFacts, folder: str) -> Scan:
    images = tree.by_key(rf"{folder}/(?P<key>\d+)/data\.nii\.gz")
    labels = tree.by_key(rf"{folder}/(?P<key>\d+)/label\.nii\.gz")
    tree.match(r"(HaN_OAR|Thoracic_OAR|Naso_GTV|Lung_GTV)/.*")  # the other tasks of the archive
    cases, deviations = paired_cases(
        {f"{folder}_{number}": path for number, path in images.items()},
        {f"{folder}_{number}": path for number, path in labels.items()},
    )
    return Scan(facts, tuple(cases), tuple(deviations))


def _set(
    name: str, title: str, folder: str, classes: tuple[str, ...], split: AuthorSplit
) -> PublicSet:
    facts = _facts(name, title, folder, classes, split)
    return PublicSet(facts, functools.partial(scan, facts=facts, folder=folder))


STRUCTSEG_HEAD_AND_NECK = _set(
    "structseg_head_neck",
    "head and neck",
    "HaN_OAR",
    HEAD_AND_NECK,
    _split("HaN_OAR", (25,), (1, 2, 5, 10, 18, 22, 40, 42, 45, 47)),
)
STRUCTSEG_THORAX = _set(
    "structseg_thorax",
    "thorax",
    "Thoracic_OAR",
    THORAX,
    _split("Thoracic_OAR", (3, 4), (1, 6, 8, 13, 15, 28, 29, 37, 44, 48)),
)
