"""IVDM3Seg, the paper's CSI sets: intervertebral discs in four Dixon MR contrasts of 16 scans.

    <nn>/<nn>_{fat,inn,opp,wat}.nii, <nn>/<nn>_Labels.nii              form A
    {train,valid}/<nn>/<nn>_<contrast>.nii, train/labels/<nn>_Labels.nii   form B
    dataset/<nn>_<contrast>.nii, label/<nn>_Labels.nii                 form C

Each contrast is a set of its own: the paper trains on one and holds the others out.
"""

from __future__ import annotations

import functools

from dataset_conversion.facts import LabelGrid, PaperRole, SetFacts
from dataset_conversion.scan import Deviation, FoundCase, PublicSet, Scan, missing
from dataset_conversion.source_tree import SourceTree

CONTRASTS = {"wat": "water", "inn": "in phase", "opp": "opposed phase", "fat": "fat"}


def _facts(contrast: str) -> SetFacts:
    return SetFacts(
        name=f"csi_{contrast}",
        title=f"IVDM3Seg (CSI): intervertebral discs (Dixon MR, {CONTRASTS[contrast]})",
        channels=(f"MR Dixon {CONTRASTS[contrast]}",),
        labels={"intervertebral disc": 1},
        licence="agreement form of the challenge",
        page="https://ivdm3seg.weebly.com/data.html",
        layout=f"<nn>/<nn>_{contrast}.nii and <nn>_Labels.nii, in one of three known trees",
        sources=(
            "openmedlab/Awesome-Medical-Dataset: IVDM3Seg.md",
            "Zheng G. et al., chapter 10.1007/978-3-030-13736-6_14",
        ),
        subjects="a scan number; 16 scans are of 8 persons, and which pairs are one is not public",
        paper=PaperRole.TRAINED if contrast == "wat" else PaperRole.HELD_OUT,
        expected={"labelled": 16},
        defects=(
            "the label map of scan 16 is on another grid than the image: resampled",
            "two scans of a person cannot be told: a split by scan may have one on both sides",
        ),
        duplicates=("csi_wat, csi_inn, csi_opp and csi_fat are the same scans with one mask",),
        label_grid=LabelGrid.RESAMPLE,
    )


def scan(tree: SourceTree, *, facts: SetFacts, contrast: str) -> Scan:
    every = "|".join(CONTRASTS)
    scans = {
        match["scan"]
        for _, match in tree.match(rf"(?P<scan>\d{{2}})_(?P<contrast>{every})\.nii(\.gz)?")
    }
    images = tree.match(
        rf"((?P<part>valid)/)?((?P<scan>\d{{2}})/)?(?P<key>\d{{2}})_{contrast}\.nii(\.gz)?"
    )
    labels = tree.by_key(r"(?P<key>\d{2})_Labels\.nii(\.gz)?")
    found = {match["key"] for _, match in images}
    cases = [
        FoundCase(
            name=f"{match['key']}_{contrast}",
            images=(path,),
            label=labels[match["key"]],
            subject=f"ivdm3seg_{match['key']}",
            role="validate" if match["part"] else None,
        )
        for path, match in images
        if match["key"] in labels
    ]
    deviations = [
        *missing(f"scans without the contrast {contrast}", found, {*scans, *labels}),
        *missing("scans without a label map, left out", labels, found),
        Deviation("persons are not known: scans of one person may be in different roles"),
    ]
    return Scan(facts, tuple(cases), tuple(deviations))


def _set(contrast: str) -> PublicSet:
    facts = _facts(contrast)
    return PublicSet(facts, functools.partial(scan, facts=facts, contrast=contrast))


CSI_SETS = tuple(map(_set, CONTRASTS))
