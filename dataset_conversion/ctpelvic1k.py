"""CTPelvic1K, sub-set 6 (CLINIC), the paper's "Pelvic": bones of the pelvis in 103 CT volumes.

    CTPelvic1K_dataset6_data/dataset6_CLINIC_NNNN_data.nii.gz
    <masks>/dataset6_CLINIC_NNNN_mask_4label.nii.gz

<masks> is ipcai2021_dataset6_Anonymized as the archive has it, or what users call it:
CTPelvic1K_dataset6_Anonymized_mask, CTPelvic1K_dataset6_mask.
"""

from __future__ import annotations

from dataset_conversion.facts import PaperRole, SetFacts
from dataset_conversion.scan import Deviation, PublicSet, Scan, paired_cases
from dataset_conversion.source_tree import SourceTree
from iris_cli.dataset.sides import suggest_mirror_pairs

LABELS: dict[str, int | list[int]] = {
    "sacrum": 1,
    "right hip": 2,
    "left hip": 3,
    "lumbar vertebrae": 4,
}

FACTS = SetFacts(
    name="ctpelvic1k",
    title="CTPelvic1K, sub-set CLINIC: sacrum, hips, lumbar vertebrae (CT)",
    channels=("CT",),
    labels=LABELS,
    licence="as the archive page states; not verified",
    page="https://zenodo.org/records/4588403",
    layout="CTPelvic1K_dataset6_data/dataset6_CLINIC_NNNN_data.nii.gz, "
    "ipcai2021_dataset6_Anonymized/dataset6_CLINIC_NNNN_mask_4label.nii.gz",
    sources=(
        "MIRACLE-Center/CTPelvic1K: readme.md, JstPelvisSegmentation_5label.py, issues 22, 28, 29",
        "openmedlab/Awesome-Medical-Dataset: CTPelvic1K.md",
        "zhaoziheng/SAT-DS: preprocess_CTPelvic1K",
        "function2-llx/MMMM: CTPelvic1K.py",
    ),
    subjects="a number is a scan, taken as a subject",
    citation="Liu P. et al., Deep learning to segment pelvic bones, IJCARS 16 (2021)",
    paper=PaperRole.HELD_OUT,
    expected={"labelled": 103},
    defects=(
        "two public catalogues exchange the hips; the official script's order is taken and "
        "checked in every case by the affine",
        "lumbar vertebrae are L3 to L5 only, according to one converter",
    ),
    duplicates=(
        "whether CLINIC and CLINIC-metal (sub-set 7) share patients is an open question",
        "other sub-sets are label maps of BCV (1), MSD Colon (3), KiTS19 (4), BTCV cervix (5)",
    ),
    mirror_pairs=suggest_mirror_pairs(LABELS),
)


def scan(tree: SourceTree) -> Scan:
    images = tree.by_key(r"(?P<key>dataset6_CLINIC_\d{4})_data\.nii\.gz")
    labels = tree.by_key(r"(?P<key>dataset6_CLINIC_\d{4})_mask_4label\.nii\.gz")
    metal = tree.match(r"(dataset7_)?CLINIC_metal_(?P<key>\d{4})_(data|mask_4label)\.nii\.gz")
    cases, deviations = paired_cases(images, labels)
    if metal:
        names = tuple(sorted({match["key"] for _, match in metal}))
        deviations.append(Deviation("sub-set 7 (CLINIC-metal), left out", names))
    return Scan(FACTS, tuple(cases), tuple(deviations))


CTPELVIC1K = PublicSet(FACTS, scan)
