"""Miniature archives of sets that the paper does not use and many people do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dataset_conversion import brats, flare22, kits23, msd, word
from dataset_conversion.totalsegmentator import CT_V2, MR_V2
from tests.dataset.trees import write_json
from tests.dataset_conversion.miniature import (
    LEFT,
    MIDDLE,
    RIGHT,
    SHAPE,
    Miniature,
    Truth,
    anatomy,
    companion,
    image,
    mr,
    write,
)

Truths = Mapping[str, Truth]


def _kits23(folder: Path) -> Truths:
    """Slices first; a folder whose image was not downloaded; contours of single raters."""
    truths = {}
    for name in ("case_00000", "case_00400", "case_00588"):
        case = folder / "kits23/dataset" / name
        picture, label = image(int(name[-3:])), anatomy(kits23.FACTS.labels, without=["cyst"])
        write(case / "segmentation.nii.gz", label, "SPL")
        write(case / "instances/tumor_instance-1_annotation-1.nii.gz", label, "SPL")
        if name == "case_00400":
            continue
        write(case / "imaging.nii.gz", picture, "SPL")
        truths[name] = Truth((picture,), label, name)
    companion(folder / "kits23/dataset/case_00000/imaging.nii.gz")
    return truths


def _word(folder: Path) -> Truths:
    """The official parts; a test image of an older release; label maps of LiTS images."""
    root, truths = folder / "WORD-V0.1.0", {}
    parts = {"word_0002": "Tr", "word_0001": "Val", "word_0014": "Ts", "word_0016": "Ts"}
    for number, (name, part) in enumerate(parts.items()):
        picture, label = image(number), anatomy(word.LABELS)
        write(root / f"images{part}/{name}.nii.gz", picture, "LPS")
        labelled = name != "word_0016"
        if labelled:
            write(root / f"labels{part}/{name}.nii.gz", label, "LPS")
        role = {"Tr": "train", "Val": "validate", "Ts": "test"}[part]
        split = "Ts" if part == "Ts" else "Tr"
        truths[name] = Truth((picture,), label if labelled else None, name, split, role)
    write(root / "addition_validation_from_LiTS/lablesTs/liver_5_word_label.nii.gz", label)
    return truths


def _flare22(folder: Path) -> Truths:
    """Equal names in Tuning and Testing; two thousand scans without labels, here one."""
    root, truths = folder / "FLARE2022", {}
    label = anatomy(flare22.LABELS)
    files = {
        "Training/FLARE22_LabeledCase50/images/FLARE22_Tr_0001": "FLARE22_Tr_0001",
        "Training/FLARE22_UnlabeledCase1-1000/Case_00001": "Case_00001",
        "Tuning/images/FLARETs_0001": "FLARETu_0001",
        "Testing/FLARETs_0001": "FLARETs_0001",
    }
    for number, (path, name) in enumerate(files.items()):
        picture = image(number)
        write(root / f"{path}_0000.nii.gz", picture, "LPS")
        labelled = "/images/" in path
        if labelled:
            write(root / f"{path.replace('/images/', '/labels/')}.nii.gz", label, "LPS")
        role = {"Case_00001": "unlabelled", "FLARETu_0001": "validate", "FLARETs_0001": "test"}
        truths[name] = Truth(
            (picture,),
            label if labelled else None,
            name,
            "Tr" if labelled else "Ts",
            role.get(name, "train"),
        )
    companion(root / "Tuning/images/FLARETs_0001_0000.nii.gz")
    return truths


def whole_body(labels: Mapping[str, Any]) -> Mapping[str, tuple[int, int, int]]:
    """A place for each class, on its side of the patient."""
    places = {}
    for name, value in labels.items():
        words = name.split("_")
        x = RIGHT if "right" in words else LEFT if "left" in words else MIDDLE
        places[name] = (x - int(value) // 60, value % SHAPE[1], value // SHAPE[1] % SHAPE[2])
    return places


def write_masks(folder: Path, labels: Mapping[str, Any], axes: str = "RAS") -> np.ndarray:
    """One mask file per class of `labels`, and the label map they stand for."""
    merged = np.zeros(SHAPE, np.uint8)
    for name, place in whole_body(labels).items():
        mask = np.zeros(SHAPE, np.uint8)
        mask[place] = 1
        write(folder / f"{name}.nii.gz", mask, axes)
        merged[place] = labels[name]
    return merged


def _totalsegmentator(folder: Path, *, labels: Mapping[str, Any], name: str, root: str) -> Truths:
    """One case with all masks, one with few, one without an image; roles from meta.csv."""
    few = ("kidney_left", "kidney_right", "liver")
    lines = ["image_id;age;split"]
    truths = {}
    for number, (case, part) in enumerate(
        {"s0011": "train", "s0864": "val", "s0900": "test"}.items()
    ):
        picture = mr(number)
        lines.append(f"{case};60;{part}")
        present = labels if case == "s0011" else {key: labels[key] for key in few}
        merged = write_masks(folder / root / case / "segmentations", present)
        write(folder / root / case / f"{name}.nii.gz", picture)
        truths[case] = Truth(
            (picture,),
            merged,
            case,
            "Ts" if part == "test" else "Tr",
            {"train": "train", "val": "validate", "test": "test"}[part],
            frozenset(set(labels) - set(present)),
        )
    write_masks(folder / root / "s0999/segmentations", {"liver": labels["liver"]})
    (folder / root / "meta.csv").write_text("\n".join([*lines, "s0500;40;train", ""]))
    return truths


def _decathlon(folder: Path, *, task: msd.Task) -> Truths:
    """A 4-D image where there are several channels; a listed case that is absent."""
    root, truths = folder / task.folder, {}
    stem = msd.STEMS[task.number]
    several = len(task.channels) > 1
    listed = {"003": "Tr", "006": "Tr", "007": "Ts", "009": "Tr"}
    for number, part in listed.items():
        pictures = tuple(mr(int(number) + 10 * n) for n in range(len(task.channels)))
        name, label = f"{stem}_{number}", anatomy(task.labels)
        if number == "009":
            continue
        stored = np.stack(pictures, axis=-1) if several else pictures[0]
        write(root / f"images{part}/{name}.nii.gz", stored)
        if part == "Tr":
            write(root / f"labelsTr/{name}.nii.gz", label)
        subject = msd.subject_of(name)
        truths[name] = Truth(
            pictures,
            label if part == "Tr" else None,
            subject,
            part,
            "train" if part == "Tr" else "test",
        )
    companion(root / f"imagesTr/{stem}_003.nii.gz")
    content = {
        "name": task.name,
        "licence": "CC BY-SA 4.0",
        "modality": {str(i): name for i, name in enumerate(task.channels)},
        "labels": {"0": "background", **{str(v): name for name, v in task.labels.items()}},
        "training": [
            {"image": f"./imagesTr/{stem}_{n}.nii.gz", "label": f"./labelsTr/{stem}_{n}.nii.gz"}
            for n, part in listed.items()
            if part == "Tr"
        ],
        "test": [f"./imagesTs/{stem}_007.nii.gz"],
    }
    write_json(root / "dataset.json", content)
    return truths


# Folder, training cases and ending. The last case is of the validation part, without label map.
_BRATS_TREES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "brats2018": (
        "MICCAI_BraTS_2018_Data_Training/HGG/{}",
        ("Brats18_CBICA_AAB_1", "Brats18_CBICA_AAM_1"),
        ".nii.gz",
    ),
    "brats2019": (
        "MICCAI_BraTS_2019_Data_Training/LGG/{}",
        ("BraTS19_2013_0_1", "BraTS19_2013_8_1"),
        ".nii.gz",
    ),
    "brats2020": (
        "MICCAI_BraTS2020_TrainingData/{}",
        ("BraTS20_Training_001", "BraTS20_Training_355", "BraTS20_Validation_001"),
        ".nii",
    ),
    "brats2021": (
        "RSNA_ASNR_MICCAI_BraTS2021_TrainingData/{}",
        ("BraTS2021_00002", "BraTS2021_00001"),
        ".nii.gz",
    ),
    "brats2024-gli": (
        "training_data1_v2/{}",
        ("BraTS-GLI-00005-100", "BraTS-GLI-00005-101", "BraTS-GLI-00020-100"),
        ".nii.gz",
    ),
    "brats2024-ped": (
        "BraTS-PEDs2024_Training/{}",
        ("BraTS-PED-00001-000", "BraTS-PED-00030-000"),
        ".nii.gz",
    ),
    "brats2024-men-rt": (
        "BraTS-MEN-RT-Train-v2/{}",
        ("BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0002-1"),
        ".nii.gz",
    ),
}


def _brats_tree(name: str) -> tuple[str, tuple[str, ...], str]:
    task = name.rpartition("-")[2].upper()
    cases = (f"BraTS-{task}-00002-000", f"BraTS-{task}-00002-001", f"BraTS-{task}-00013-000")
    folder = f"ASNR-MICCAI-BraTS2023-{task}-Challenge-TrainingData/{{}}"
    return _BRATS_TREES.get(name, (folder, cases, ".nii.gz"))


def _brats(folder: Path, *, edition: brats.Edition) -> Truths:
    """Training cases, one of validation without label map, one folder with one sequence only."""
    layout, names, ending = _brats_tree(edition.name)
    truths = {}
    old = {new: number for number, new in edition.renumber.items()}
    for number, name in enumerate(names):
        case = folder / layout.format(name)
        pictures = tuple(mr(number * 10 + n) for n in range(len(edition.files)))
        for suffix, picture in zip(edition.files, pictures, strict=True):
            write(case / f"{name}{suffix}{ending}", picture, "LPS")
        label = None if name == names[-1] else anatomy(edition.labels)
        if label is not None:
            stored = label.copy()
            for new, value in old.items():
                stored[label == new] = value
            stem = edition.repaired.get(name, f"{name}{edition.label}")
            write(case / f"{stem}{ending}", stored, "LPS")
        split = "Ts" if label is None else "Tr"
        subject = _brats_subject(name)
        role = "test" if label is None else "train"
        truths[name] = Truth(pictures, label, subject, split, role)
    if len(edition.files) > 1:
        half = names[0][:-1] + "8"
        write(folder / layout.format(half) / f"{half}{edition.files[0]}{ending}", mr(99), "LPS")
    return truths


def _brats_subject(name: str) -> str:
    """A name's last number is the time point, except where a patient has one only."""
    return (
        name if name.startswith(("BraTS20_", "BraTS2021")) else name.rpartition("-")[0] or name[:-2]
    )


def _miniature_of_edition(edition: brats.Edition) -> Miniature:
    says = ["labelled cases found"]
    says += ["a sequence is missing: left out (1)"] if len(edition.files) > 1 else []
    says += ["label values are renumbered: 4 -> 3"] if edition.renumber else []
    says += ["label map found as W39_1998.09.19_Segm.nii (1): BraTS20_Training_355"] * bool(
        edition.repaired
    )
    return Miniature(edition.name, partial(_brats, edition=edition), tuple(says))


def _miniature_of_task(task: msd.Task) -> Miniature:
    says = (
        "listed cases that are not here, left out (1): ./imagesTr/",
        "files skipped: a companion file",
        f"2 labelled cases found, the archive holds {task.training}",
    )
    return Miniature(msd.facts_of(task).name, partial(_decathlon, task=task), says)


_FEW = ("mask files are missing", "masks without an image, left out (1): s0999")
_META = ("release v2", "cases of meta.csv that are not here (1): s0500")

FAVOURITE_SETS: tuple[Miniature, ...] = (
    Miniature(
        "kits23",
        _kits23,
        (
            "label maps without an image, left out (1): case_00400",
            "3 files of single raters",
            "files skipped: a companion file",
            "no voxel of cyst (2)",
        ),
    ),
    Miniature(
        "word",
        _word,
        ("label maps of LiTS images, which are not here (1): liver_5", "3 labelled cases found"),
    ),
    Miniature("flare22", _flare22, ("2 labelled cases found, the archive holds 100",)),
    Miniature(
        "totalsegmentator",
        partial(_totalsegmentator, labels=CT_V2, name="ct", root="Totalsegmentator_dataset_v201"),
        (*_FEW, *_META),
    ),
    Miniature(
        "totalsegmentator_mr",
        partial(_totalsegmentator, labels=MR_V2, name="mri", root="TotalsegmentatorMRI_v200"),
        (*_FEW, *_META),
    ),
    *(
        _miniature_of_task(task)
        for task in msd.TASKS
        if task.name not in ("Hippocampus", "Pancreas")
    ),
    *map(_miniature_of_edition, brats.EDITIONS),
)
