"""FLARE 2022: thirteen abdominal organs in CT, few scans with labels and many without."""

from __future__ import annotations

from dataclasses import replace

from dataset_conversion.facts import SetFacts
from dataset_conversion.scan import FoundCase, PublicSet, Scan, paired_cases, simple_case
from dataset_conversion.source_tree import SourceTree
from iris_cli.dataset.sides import suggest_mirror_pairs

LABELS: dict[str, int | list[int]] = {
    "liver": 1,
    "right kidney": 2,
    "spleen": 3,
    "pancreas": 4,
    "aorta": 5,
    "inferior vena cava": 6,
    "right adrenal gland": 7,
    "left adrenal gland": 8,
    "gallbladder": 9,
    "oesophagus": 10,
    "stomach": 11,
    "duodenum": 12,
    "left kidney": 13,
}

FACTS = SetFacts(
    name="flare22",
    title="FLARE 2022: 13 abdominal organs in CT, 50 labelled scans and 2000 without labels",
    channels=("CT",),
    labels=LABELS,
    licence="images and pancreas CC BY-SA 4.0 (MSD); labels of the other organs: research only",
    page="https://zenodo.org/records/7860267 (labelled), https://flare22.grand-challenge.org",
    layout="Training/FLARE22_LabeledCase50/{images,labels}/FLARE22_Tr_NNNN(_0000).nii.gz, "
    "Training/FLARE22_UnlabeledCase*/Case_NNNNN_0000.nii.gz, Tuning/{images,labels}/, Testing/",
    sources=(
        "OpenMEDLab: FLARE2022.md",
        "Zenodo record 7860267 (origin of images and labels)",
        "bowang-lab/U-Mamba: data/README.md; label order also in "
        "Shanghai-Aitrox-Technology/EfficientSegLearning: labels.py",
    ),
    subjects="a file is a subject",
    citation="Ma J. et al., Lancet Digital Health 6(11):e815-e826 (2024)",
    expected={"labelled": 100, "unlabelled": 2200},
    defects=(
        "Tuning and Testing use equal names (FLARETs_NNNN) for different scans: cases of Tuning "
        "are called FLARETu_NNNN here",
        "the labelled set of Zenodo (FLARE22Train) is Training/FLARE22_LabeledCase50 alone",
    ),
    duplicates=("the 50 labelled scans are of MSD Task07 Pancreas, their labels of AbdomenCT-1K",),
    mirror_pairs=suggest_mirror_pairs(LABELS),
)


def scan(tree: SourceTree) -> Scan:
    """Labelled training scans train, Tuning validates; scans without labels go to imagesTs."""
    cases, deviations = paired_cases(
        tree.by_key(r"(?P<key>FLARE22_Tr_\d+)_0000\.nii\.gz"),
        tree.by_key(r"(?P<key>FLARE22_Tr_\d+)\.nii\.gz"),
    )
    tuning, said = paired_cases(
        tree.by_key(r"Tuning/images/(?P<key>FLARETs_\d+)_0000\.nii\.gz"),
        tree.by_key(r"Tuning/labels/(?P<key>FLARETs_\d+)\.nii\.gz"),
        unlabelled=True,
    )
    free = tree.by_key(r"(?P<key>Case_\d+)_0000\.nii\.gz")
    test = tree.by_key(r"Testing/(?:images/)?(?P<key>FLARETs_\d+)_0000\.nii\.gz")
    found = [
        *cases,
        *(replace(simple_case(name, path, None), role="unlabelled") for name, path in free.items()),
        *map(_tuning, tuning),
        *(simple_case(name, path, None) for name, path in test.items()),
    ]
    return Scan(FACTS, tuple(found), (*deviations, *said))


def _tuning(case: FoundCase) -> FoundCase:
    named = replace(case, name=case.name.replace("FLARETs", "FLARETu"))
    return replace(named, role="validate") if named.label else named


FLARE22 = PublicSet(FACTS, scan)
