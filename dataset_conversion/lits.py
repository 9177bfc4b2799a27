"""LiTS: liver and liver tumour in CT, 131 labelled and 70 unlabelled volumes.

    Training Batch 1/volume-N.nii, segmentation-N.nii     0 to 27
    Training Batch 2/volume-N.nii, segmentation-N.nii     28 to 130
    test-volume-N.nii

Both batches in one folder are taken, too.
"""

from __future__ import annotations

import functools
from pathlib import Path
from types import MappingProxyType

import numpy as np

from dataset_conversion.facts import LabelGrid, PaperRole, SetFacts
from dataset_conversion.raw_set import Split
from dataset_conversion.recipes import with_stored_affine
from dataset_conversion.scan import FoundCase, PublicSet, Scan, paired_cases
from dataset_conversion.source_tree import SourceTree
from iris_cli.volume.reading import Volume

FACTS = SetFacts(
    name="lits",
    title="LiTS: liver and liver tumour (CT)",
    channels=("CT",),
    labels={"liver": 1, "tumour": 2},
    licence="challenge terms; not verified",
    page="https://competitions.codalab.org/competitions/17094",
    layout="Training Batch {1,2}/{volume,segmentation}-N.nii, test-volume-N.nii",
    sources=(
        "MIC-DKFZ/nnUNet (version 1): Task029_LiverTumorSegmentationChallenge.py",
        "yhygao/universal-medical-image-segmentation: lits_3d.py (spacings of 28 to 47)",
        "function2-llx/MMMM: LiTS.py",
        "openmedlab/Awesome-Medical-Dataset: LiTS.md",
        "PatrickChrist/LITS-CHALLENGE issue 14, JunMa11/AbdomenCT-1K issue 27",
    ),
    subjects="a number is a scan, taken as a subject",
    citation="Bilic P. et al., The Liver Tumor Segmentation Benchmark, Medical Image Analysis 84 "
    "(2023)",
    paper=PaperRole.TRAINED,
    expected={"labelled": 131, "unlabelled": 70},
    defects=(
        "28 to 47 have an identity affine, spacing 1 x 1 x 1 mm: z is set to the author's value, "
        "the rest stays and is said",
        "label maps of some cases have another affine than the image: the image's is taken",
        "13 cases have no tumour",
    ),
    duplicates=(
        "MSD Task03 Liver is LiTS",
        "28 to 47 are 3D-IRCADb",
        "the additional label maps of WORD are of LiTS images",
    ),
    label_grid=LabelGrid.COPY,
)

_NUMBERS = (28, 31, 32, 33, 34, 35, 36, 37, 38, 40, 41, 42, 43, 44, 45, 46, 47)
_Z_MM = (1.7, 2.5, 1.5, 1.8, 1.7, 1.9, 2, 1.7, 1.7, 1.7, 1.8, 1.6, 1.8, 2, 2.5, 2.5, 1.7)
AUTHORS_Z_MM = MappingProxyType(dict(zip(_NUMBERS, _Z_MM, strict=True)))
"""Slice distances that the paper's author gives the volumes of 3D-IRCADb."""

IRCADB = range(28, 48)


def repair_spacing(volume: Volume, *, z_mm: float | None) -> tuple[Volume, str | None]:
    """An identity affine gets the author's slice distance (None: there is none, only said)."""
    grid = volume.native.grid
    if not np.allclose(np.abs(grid.affine[:3, :3]), np.eye(3)):
        return volume, None
    if z_mm is None:
        return volume, "spacing of 1 mm in the header is not true; no published repair, kept"
    affine = grid.affine.copy()
    affine[:3, 2] *= z_mm
    said = "slice distance of 1 mm in the header replaced by the author's; 1 mm in plane is kept"
    return with_stored_affine(volume, affine), said


def scan(tree: SourceTree) -> Scan:
    images = tree.by_key(r"(?P<key>(test-)?volume-\d+)\.nii(\.gz)?")
    labels = tree.by_key(r"segmentation-(?P<key>\d+)\.nii(\.gz)?")
    by_image = {f"volume-{number}": path for number, path in labels.items()}
    test = {name for name in images if name.startswith("test")}
    cases, deviations = paired_cases(images, by_image, unlabelled=test, make=_case)
    return Scan(FACTS, tuple(cases), tuple(deviations))


def _case(name: str, image: Path, label: Path | None) -> FoundCase:
    split = Split.TEST if label is None else Split.TRAINING
    number = int(name.rpartition("-")[2])
    if name.startswith("test") or number not in IRCADB:
        return FoundCase(name, (image,), label, split=split)
    repair = functools.partial(repair_spacing, z_mm=AUTHORS_Z_MM.get(number))
    return FoundCase(name, (image,), label, split=split, repair=repair)


LITS = PublicSet(FACTS, scan)
