"""KiTS23: kidneys, their tumours and cysts in CT."""

from __future__ import annotations

from dataset_conversion.facts import SetFacts
from dataset_conversion.scan import Deviation, PublicSet, Scan, paired_cases
from dataset_conversion.source_tree import SourceTree

FACTS = SetFacts(
    name="kits23",
    title="KiTS23: kidney, tumour and cyst in CT",
    channels=("CT",),
    labels={"kidney": 1, "tumour": 2, "cyst": 3},
    licence="CC BY-NC-SA 4.0",
    page="https://github.com/neheller/kits23",
    layout="dataset/case_NNNNN/imaging.nii.gz, segmentation.nii.gz, instances/",
    sources=(
        "neheller/kits23: README.md, issues #5, #19, #35",
        "nnU-Net v2: Dataset220_KiTS2023.py",
        "OpenMEDLab: KiTS23.md",
    ),
    subjects="a case is a subject",
    citation="Heller N. et al., The KiTS21 Challenge, arXiv 2307.01984 (2023)",
    expected={"labelled": 489},
    defects=(
        "images are downloaded after the repository: folders without imaging.nii.gz are left out "
        "and listed",
        "slices are the first array axis; files are taken as they are, the affine says so",
        "the challenge scores kidney with masses {1, 2, 3}, masses {2, 3} and tumour {2}; the "
        "classes here are the values",
        "cases 0 to 499 are of the arterial phase, 500 and above of the nephrogenic one",
    ),
    duplicates=("cases 00000 to 00299 are those of KiTS19 (00000 to 00209 labelled there)",),
)


def scan(tree: SourceTree) -> Scan:
    images = tree.by_key(r"(?P<key>case_\d{5})/imaging\.nii\.gz")
    labels = tree.by_key(r"(?P<key>case_\d{5})/segmentation\.nii\.gz")
    # Contours of single raters, out of which the segmentation was made.
    raters = tree.match(r"case_\d{5}/instances/[^/]+")
    cases, deviations = paired_cases(images, labels)
    if raters:
        deviations.append(Deviation(f"{len(raters)} files of single raters (instances/) left out"))
    return Scan(FACTS, tuple(cases), tuple(deviations))


KITS23 = PublicSet(FACTS, scan)
