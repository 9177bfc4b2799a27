"""KiTS19: kidney and kidney tumour in CT, 210 labelled and 90 unlabelled cases.

kits19/data/case_NNNNN/imaging.nii.gz, segmentation.nii.gz     00000 to 00209
kits19/data/case_NNNNN/imaging.nii.gz                          00210 to 00299
"""

from __future__ import annotations

from dataset_conversion.facts import PaperRole, SetFacts
from dataset_conversion.scan import PublicSet, Scan, paired_cases
from dataset_conversion.source_tree import SourceTree

FACTS = SetFacts(
    name="kits19",
    title="KiTS19: kidney and kidney tumour (CT)",
    channels=("CT",),
    labels={"kidney": 1, "tumour": 2},
    licence="CC BY-NC-SA 4.0",
    page="https://github.com/neheller/kits19",
    layout="kits19/data/case_NNNNN/{imaging,segmentation}.nii.gz",
    sources=(
        "neheller/kits19: README.md, changelog.md, starter_code/evaluation.py, issues 6, 8, 9, 15",
        "yhygao/universal-medical-image-segmentation: kits_3d.py",
    ),
    subjects="a case is a subject",
    citation="Heller N. et al., The KiTS19 Challenge Data, arXiv:1904.00445",
    paper=PaperRole.TRAINED,
    expected={"labelled": 210, "unlabelled": 90},
    defects=(
        "slices are the first array axis; the header says so, and files stay as they are",
        "segmentations come with the repository, images later: folders without an image are said",
        "files of before 15 April 2019 have flipped affines: a case of two releases is refused",
        "case_00160 is 512 x 796 in plane; label maps of cases 15, 23, 37, 125 were corrected",
    ),
    duplicates=(
        "KiTS21 and KiTS23 hold these cases with other label maps",
        "CTPelvic1K, sub-set 4, has label maps of these images",
    ),
)

LABELLED = 210


def scan(tree: SourceTree) -> Scan:
    images = tree.by_key(r"(?P<key>case_\d{5})/imaging\.nii\.gz")
    labels = tree.by_key(r"(?P<key>case_\d{5})/segmentation\.nii\.gz")
    unlabelled = {name for name in images if int(name.removeprefix("case_")) >= LABELLED}
    cases, deviations = paired_cases(images, labels, unlabelled=unlabelled)
    return Scan(FACTS, tuple(cases), tuple(deviations))


KITS19 = PublicSet(FACTS, scan)
