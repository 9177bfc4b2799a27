"""AMOS 2022: abdominal organs, 300 labelled CT and 60 labelled MR volumes in one archive.

    amos22/dataset.json
    amos22/imagesTr, labelsTr, imagesVa, labelsVa, imagesTs / amos_NNNN.nii.gz

CT is numbered up to 500, MR above; each is a set of its own.
"""

from __future__ import annotations

import functools
from pathlib import Path

from dataset_conversion.facts import LabelGrid, PaperRole, SetFacts
from dataset_conversion.raw_set import Split
from dataset_conversion.scan import FoundCase, PublicSet, Scan, paired_cases
from dataset_conversion.source_tree import SourceTree
from iris_cli.dataset.sides import suggest_mirror_pairs

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
    "pancreas": 10,
    "right adrenal gland": 11,
    "left adrenal gland": 12,
    "duodenum": 13,
    "bladder": 14,
    "prostate or uterus": 15,
}
LAST_CT = 500
NOT_IN_MR = (14, 15)


def _facts(modality: str, labelled: int, unlabelled: int) -> SetFacts:
    is_mr = modality == "MR"
    dropped = NOT_IN_MR if is_mr else ()
    labels = {name: value for name, value in LABELS.items() if value not in dropped}
    return SetFacts(
        name=f"amos_{modality.lower()}",
        title=f"AMOS 2022: {len(labels)} abdominal organs ({modality})",
        channels=(modality,),
        labels=labels,
        licence="CC BY 4.0 (as a redistribution of the Zenodo release states it)",
        page="https://zenodo.org/records/7262581",
        layout="amos22/images{Tr,Va,Ts}/amos_NNNN.nii.gz, labels{Tr,Va}/ of equal names",
        sources=(
            "MIC-DKFZ/nnUNet: Dataset218_Amos2022_task1.py, Dataset219_Amos2022_task2.py",
            "yhygao/universal-medical-image-segmentation: amos_3d.py",
            "function2-llx/MMMM: AMOS22.py",
            "openmedlab/Awesome-Medical-Dataset: AMOS.md",
        ),
        subjects="a file is a subject",
        citation="Ji Y. et al., AMOS: A Large-Scale Abdominal Multi-Organ Benchmark, NeurIPS 2022",
        paper=PaperRole.TRAINED,
        expected={"labelled": labelled, "unlabelled": unlabelled},
        defects=(
            "headers of label maps are not always those of the images: the image's is taken",
            "prostate or uterus is one class",
            *(("bladder and prostate are not contoured in MR: no classes here",) if is_mr else ()),
        ),
        mirror_pairs=suggest_mirror_pairs(labels),
        right_of=(("liver", "spleen"),),
        label_grid=LabelGrid.COPY,
        drop_values=dropped,
    )


def scan(tree: SourceTree, *, facts: SetFacts) -> Scan:
    """Tr trains, Va validates, Ts has no label maps."""
    is_mr = facts.channels == ("MR",)
    pattern = r"(?P<key>amos_\d{4})\.nii(\.gz)?"
    validating = set(tree.by_key(rf"imagesVa/{pattern}"))
    test = set(tree.by_key(rf"imagesTs/{pattern}"))
    images, labels = (
        {
            name: path
            for name, path in tree.by_key(rf"{folder}/{pattern}").items()
            if (int(name.rpartition("_")[2]) > LAST_CT) == is_mr
        }
        for folder in ("images(Tr|Va|Ts)", "labels(Tr|Va)")
    )

    def make(name: str, image: Path, label: Path | None) -> FoundCase:
        if label is None:
            return FoundCase(name, (image,), None, split=Split.TEST)
        return FoundCase(name, (image,), label, role="validate" if name in validating else None)

    cases, deviations = paired_cases(images, labels, unlabelled=test, make=make)
    return Scan(facts, tuple(cases), tuple(deviations))


_CT, _MR = _facts("CT", 300, 200), _facts("MR", 60, 40)
AMOS_CT = PublicSet(_CT, functools.partial(scan, facts=_CT))
AMOS_MR = PublicSet(_MR, functools.partial(scan, facts=_MR))
