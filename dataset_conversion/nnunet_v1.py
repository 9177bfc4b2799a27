"""nnU-Net's version 1: `TaskNNN_Name/` with files numbered by channel and the Decathlon's json.

imagesTr/case_0000.nii.gz, case_0001.nii.gz, labelsTr/case.nii.gz, imagesTs/, (labelsTs/)
dataset.json, which lists `./imagesTr/case.nii.gz`
"""

from __future__ import annotations

from dataset_conversion.facts import SetFacts, Verified
from dataset_conversion.msd import facts_in, read_version_1, scan_listed
from dataset_conversion.scan import PublicSet, Scan
from dataset_conversion.source_tree import SourceTree

FACTS = SetFacts(
    name="nnunet_v1",
    title="a raw folder of nnU-Net's version 1",
    channels=("as dataset.json says",),
    labels={},
    licence="as dataset.json says",
    page="https://github.com/MIC-DKFZ/nnUNet (branch nnunetv1)",
    layout="TaskNNN_Name/{imagesTr,imagesTs}/<case>_NNNN.nii.gz, labelsTr/<case>.nii.gz, "
    "dataset.json",
    sources=(
        "MIC-DKFZ/nnUNet: documentation/dataset_conversion.md of version 1",
        "nnU-Net v2: convert_raw_dataset_from_old_nnunet_format.py",
    ),
    subjects="a case is a subject: the form has no place for another rule",
    verified=Verified.DOCUMENTATION,
    defects=("dataset.json lists names without the channel's number: files are <case>_NNNN",),
)


def scan(tree: SourceTree) -> Scan:
    content = read_version_1(tree, "raw folder of nnU-Net's version 1")
    return scan_listed(tree, content, facts_in(content, tree, FACTS), numbered=True)


NNUNET_V1 = PublicSet(FACTS, scan)
