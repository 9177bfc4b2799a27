"""BCV (BTCV): 13 abdominal organs in CT, 30 labelled and 20 unlabelled volumes.

Abdomen/RawData/Training/img/imgNNNN.nii.gz, Training/label/labelNNNN.nii.gz
Abdomen/RawData/Testing/img/imgNNNN.nii.gz      (some copies: Test)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dataset_conversion.facts import AuthorSplit, LabelGrid, PaperRole, SetFacts
from dataset_conversion.recipes import with_stored_affine
from dataset_conversion.scan import FoundCase, PublicSet, Scan, paired_cases
from dataset_conversion.source_tree import SourceTree
from iris_cli.dataset.sides import suggest_mirror_pairs
from iris_cli.volume.reading import Volume

LABELS: dict[str, int | list[int]] = {
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gallbladder": 4,
    "oesophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior vena cava": 9,
    "portal and splenic veins": 10,
    "pancreas": 11,
    "right adrenal gland": 12,
    "left adrenal gland": 13,
}

FACTS = SetFacts(
    name="bcv",
    title="BCV (BTCV, Beyond the Cranial Vault): 13 abdominal organs (CT)",
    channels=("CT",),
    labels=LABELS,
    licence="Synapse account and terms",
    page="https://www.synapse.org/#!Synapse:syn3193805",
    layout="Abdomen/RawData/Training/{img/imgNNNN,label/labelNNNN}.nii.gz, Testing/img/",
    sources=(
        "MIC-DKFZ/nnUNet (version 1): Task017_BeyondCranialVaultAbdominalOrganSegmentation.py",
        "yhygao/universal-medical-image-segmentation: bcv_3d.py",
        "function2-llx/MMMM: BTCV.py",
        "openmedlab/Awesome-Medical-Dataset: BTCV.md",
    ),
    subjects="a file is a subject",
    citation="Landman B. et al., MICCAI Multi-Atlas Labeling Beyond the Cranial Vault, 2015",
    paper=PaperRole.TRAINED,
    expected={"labelled": 30, "unlabelled": 20},
    defects=(
        "direction of some headers is wrong: set to the author's, patient's left and anterior",
        "the gallbladder is absent in two cases",
        "numbers of organs are not those of AMOS",
    ),
    duplicates=("CTPelvic1K, sub-set 1, has label maps of these images",),
    mirror_pairs=suggest_mirror_pairs(LABELS),
    right_of=(("liver", "spleen"),),
    label_grid=LabelGrid.COPY,
    author_split=AuthorSplit(
        validate=frozenset({"img0032"}),
        test=frozenset({"img0006", "img0022", "img0026", "img0031", "img0034", "img0038"}),
        source="yhygao/universal-medical-image-segmentation: list of BCV",
    ),
)

# x to the patient's left, y to anterior, z to superior, in RAS+: the author's ITK direction
# (1,0,0, 0,-1,0, 0,0,1).
DIRECTION = np.diag([-1.0, 1.0, 1.0])


def repair_direction(volume: Volume) -> tuple[Volume, str | None]:
    """The same voxels with the direction that all volumes of this set have; origin kept."""
    grid = volume.native.grid
    if np.allclose(grid.direction, DIRECTION, atol=1e-3):
        return volume, None
    affine = grid.affine.copy()
    affine[:3, :3] = DIRECTION * np.asarray(grid.spacing_xyz)
    return with_stored_affine(volume, affine), "direction of the header was wrong and is set"


def scan(tree: SourceTree) -> Scan:
    images = tree.by_key(r"Training/img/(?P<key>img\d{4})\.nii(\.gz)?")
    test = tree.by_key(r"(Testing|Test)/img/(?P<key>img\d{4})\.nii(\.gz)?")
    numbers = tree.by_key(r"Training/label/label(?P<key>\d{4})\.nii(\.gz)?")
    labels = {f"img{number}": path for number, path in numbers.items()}
    cases, deviations = paired_cases(images | test, labels, unlabelled=test)
    return Scan(FACTS, tuple(map(_repaired, cases)), tuple(deviations))


def _repaired(case: FoundCase) -> FoundCase:
    return dataclasses.replace(case, repair=repair_direction)


BCV = PublicSet(FACTS, scan)
