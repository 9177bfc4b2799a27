"""CHAOS, MR part: liver, kidneys, spleen in T1 in phase, T1 out of phase and T2, 20 patients.

    Train_Sets/MR/<id>/T1DUAL/DICOM_anon/{InPhase,OutPhase}/*.dcm, T1DUAL/Ground/*.png
    Train_Sets/MR/<id>/T2SPIR/DICOM_anon/*.dcm, T2SPIR/Ground/*.png
    Test_Sets/MR/<id>/...                                                  without usable Ground

The n-th mask by file name is of the n-th slice by file name, with rows and columns as DICOM has
them; the slices are then put in the order of their positions. The two phases share their masks.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset_conversion.facts import AuthorSplit, PaperRole, SetFacts
from dataset_conversion.raw_set import Split
from dataset_conversion.recipes import dicom_order, read_dicom_series, volume_of
from dataset_conversion.scan import Deviation, FoundCase, PublicSet, Recipe, Scan
from dataset_conversion.source_tree import SourceTree, natural_key
from iris_cli.dataset.sides import suggest_mirror_pairs
from iris_cli.errors import DataRefused
from iris_cli.volume.reading import Volume

LABELS: dict[str, int | list[int]] = {
    "liver": 1,
    "right kidney": 2,
    "left kidney": 3,
    "spleen": 4,
}
GREY_LEVELS = {1: (55, 70), 2: (110, 135), 3: (175, 200), 4: (240, 255)}
"""Lowest and highest grey level of each label value in the PNG masks."""

FACTS = SetFacts(
    name="chaos_mr",
    title="CHAOS: liver, kidneys, spleen (MR T1 in and out of phase, T2)",
    channels=("MR",),
    labels=LABELS,
    licence="CC BY-NC-SA 4.0 (as a mirror with the licence file states it)",
    page="https://zenodo.org/records/3431873",
    layout="Train_Sets/MR/<id>/{T1DUAL,T2SPIR}/{DICOM_anon/.../*.dcm,Ground/*.png}",
    sources=(
        "MIC-DKFZ/nnUNet (version 1): Task037_038_Chaos_Challenge.py",
        "yhygao/universal-medical-image-segmentation: chaos_t1dcm2nii.py, chaos_t2dcm2nii.py",
        "zhaoziheng/SAT-DS: preprocess_CHAOS_MRI",
        "function2-llx/MMMM: CHAOS.py",
    ),
    subjects="<id> is the subject of its three images",
    citation="Kavur A. E. et al., CHAOS Challenge, Medical Image Analysis 69 (2021)",
    paper=PaperRole.TRAINED,
    expected={"labelled": 60, "unlabelled": 60},
    defects=(
        "masks have grey levels in ranges, not one level for each organ",
        "published converters disagree on slice order and flips: decided by position, and checked "
        "by the liver, which lies on the patient's right",
        "patient 35 of the test part has one slice more in one phase",
    ),
    mirror_pairs=suggest_mirror_pairs(LABELS),
    right_of=(("liver", "spleen"),),
    author_split=AuthorSplit(
        validate=frozenset({"22"}),
        test=frozenset({"5", "31", "32", "36"}),
        source="yhygao/universal-medical-image-segmentation: list of CHAOS",
    ),
)

_CONTRASTS = {
    ("T1DUAL", "InPhase"): "t1_in",
    ("T1DUAL", "OutPhase"): "t1_out",
    ("T2SPIR", ""): "t2",
}


def read_ground(files: Sequence[Path], *, slices: int) -> Volume:
    """The masks of a series as a label map; files: `slices` DICOM files, then as many masks.

    raises DataRefused for another number of masks, another size, a grey level of no organ.
    """
    dicom, masks = files[:slices], files[slices:]
    if len(masks) != slices:
        raise DataRefused(
            "there are not as many masks as slices",
            file=masks[0].parent,
            found=f"{len(masks)} masks",
            expected=f"{slices} masks",
        )
    image = read_dicom_series(dicom)
    mask_of = dict(zip(map(str, dicom), masks, strict=True))
    stack = np.stack([_read_mask(mask_of[name]) for name in dicom_order(dicom)])
    if stack.shape != image.native.grid.shape_zyx:
        raise DataRefused(
            "masks and slices are of different size",
            file=masks[0].parent,
            found=stack.shape,
            expected=image.native.grid.shape_zyx,
        )
    return volume_of(stack, image.native.grid, masks[0].parent)


def _read_mask(path: Path) -> np.ndarray:
    # SimpleITK, because it is there for the DICOM files anyway.
    import SimpleITK

    try:
        grey = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    except RuntimeError as error:
        raise DataRefused("this PNG file cannot be read", file=path) from error
    values = np.full(256, 255, np.uint8)
    values[0] = 0
    for value, (lowest, highest) in GREY_LEVELS.items():
        values[lowest : highest + 1] = value
    labels: np.ndarray = values[grey]
    if (labels == 255).any():
        levels = np.unique(grey[labels == 255]).tolist()
        raise DataRefused("grey levels of no organ", file=path, found=levels, expected=GREY_LEVELS)
    return labels


def scan(tree: SourceTree) -> Scan:
    series = _groups(
        tree,
        r"(?P<part>Train|Test)_Sets/MR/(?P<id>\d+)/(?P<sequence>T1DUAL|T2SPIR)/DICOM_anon/"
        r"((?P<phase>InPhase|OutPhase)/)?[^/]+\.dcm",
    )
    masks = _groups(
        tree,
        r"(?P<part>Train|Test)_Sets/MR/(?P<id>\d+)/(?P<sequence>T1DUAL|T2SPIR)/"
        r"(?P<phase>)Ground/[^/]+\.png",
    )
    tree.match(r"(Train|Test)_Sets/CT/.*")
    cases, incomplete = [], []
    for (part, number, sequence, phase), files in series.items():
        if (sequence, phase) not in _CONTRASTS:
            continue
        name = f"{number}_{_CONTRASTS[sequence, phase]}"
        image = Recipe(read_dicom_series, files)
        ground = masks.get((part, number, sequence, ""))
        if part == "Test":
            cases.append(FoundCase(name, (image,), None, number, Split.TEST))
        elif ground is None:
            incomplete.append(name)
        else:
            label = Recipe(functools.partial(read_ground, slices=len(files)), (*files, *ground))
            cases.append(FoundCase(name, (image,), label, number))
    deviations = [Deviation("series without masks, left out", tuple(incomplete))]
    return Scan(FACTS, tuple(cases), tuple(deviations if incomplete else ()))


def _groups(tree: SourceTree, pattern: str) -> dict[tuple[str, ...], tuple[Path, ...]]:
    """Files by part, patient, sequence and phase, each group in the order of file names."""
    found = sorted(
        ((match["part"], match["id"], match["sequence"], match["phase"] or ""), path)
        for path, match in tree.match(pattern)
    )
    return {
        key: tuple(sorted((path for _, path in group), key=lambda path: natural_key(path.name)))
        for key, group in itertools.groupby(found, key=lambda item: item[0])
    }


CHAOS_MR = PublicSet(FACTS, scan)
