"""TotalSegmentator's training data, CT and MR: one mask file per class and case.

Both releases of either set are read; which of them it is, the names of the masks tell. Values are
the numbers of the authors' own class map of that release, class names their file names.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from dataset_conversion.facts import SetFacts
from dataset_conversion.raw_set import Split
from dataset_conversion.recipes import merge_masks
from dataset_conversion.scan import Deviation, FoundCase, PublicSet, Recipe, Scan, missing
from dataset_conversion.source_tree import SourceTree
from iris_cli.dataset.dataset_json import Role
from iris_cli.dataset.sides import suggest_mirror_pairs
from iris_cli.errors import DataRefused


def _numbered(text: str) -> dict[str, int | list[int]]:
    """Names in the order of their values. `a_*` is `a_left a_right`, `a_?` is `a_right a_left`."""
    names: list[str] = []
    for name in text.split():
        sides = {"*": ("left", "right"), "?": ("right", "left")}.get(name[-1], ())
        names += [name[:-1] + side for side in sides] or [name]
    return {name: value for value, name in enumerate(names, start=1)}


_LEVELS = [*(f"L{n}" for n in range(5, 0, -1)), *(f"T{n}" for n in range(12, 0, -1))]
_LEVELS += [f"C{n}" for n in range(7, 0, -1)]
_VERTEBRAE = " ".join(f"vertebrae_{level}" for level in _LEVELS)
_RIBS = " ".join(f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13))
_LOBES = (
    "lung_upper_lobe_left lung_lower_lobe_left "
    "lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right"
)
_GLUTEAL = "gluteus_maximus_* gluteus_medius_* gluteus_minimus_* autochthon_* iliopsoas_*"
_UPPER = "spleen kidney_? gallbladder liver stomach"

CT_V1 = _numbered(
    f"{_UPPER} aorta inferior_vena_cava portal_vein_and_splenic_vein pancreas adrenal_gland_? "
    f"{_LOBES} {_VERTEBRAE} esophagus trachea heart_myocardium heart_atrium_left "
    "heart_ventricle_left heart_atrium_right heart_ventricle_right pulmonary_artery brain "
    f"iliac_artery_* iliac_vena_* small_bowel duodenum colon {_RIBS} humerus_* scapula_* "
    f"clavicula_* femur_* hip_* sacrum face {_GLUTEAL} urinary_bladder"
)
CT_V2 = _numbered(
    f"{_UPPER} pancreas adrenal_gland_? {_LOBES} esophagus trachea thyroid_gland small_bowel "
    f"duodenum colon urinary_bladder prostate kidney_cyst_* sacrum vertebrae_S1 {_VERTEBRAE} "
    "heart aorta pulmonary_vein brachiocephalic_trunk subclavian_artery_? "
    "common_carotid_artery_? brachiocephalic_vein_* atrial_appendage_left superior_vena_cava "
    "inferior_vena_cava portal_vein_and_splenic_vein iliac_artery_* iliac_vena_* humerus_* "
    f"scapula_* clavicula_* femur_* hip_* spinal_cord {_GLUTEAL} brain skull {_RIBS} sternum "
    "costal_cartilages"
)
_MR_TRUNK = (
    f"{_UPPER} pancreas adrenal_gland_? lung_* esophagus small_bowel duodenum colon "
    "urinary_bladder prostate sacrum vertebrae intervertebral_discs spinal_cord heart aorta "
    "inferior_vena_cava portal_vein_and_splenic_vein iliac_artery_* iliac_vena_* humerus_*"
)
MR_V1 = _numbered(
    f"{_MR_TRUNK} fibula tibia femur_* hip_* {_GLUTEAL} quadriceps_femoris_* "
    "thigh_medial_compartment_* thigh_posterior_compartment_* sartorius_* brain"
)
MR_V2 = _numbered(f"{_MR_TRUNK} scapula_* clavicula_* femur_* hip_* {_GLUTEAL} brain")

_ROLES: dict[str, tuple[Split, Role]] = {
    "train": (Split.TRAINING, "train"),
    "val": (Split.TRAINING, "validate"),
    "test": (Split.TEST, "test"),
}


@dataclasses.dataclass(frozen=True)
class _Release:
    """One release of a set, and how many cases it holds."""

    version: str
    labels: Mapping[str, int | list[int]]
    cases: int


CT = SetFacts(
    name="totalsegmentator",
    title="TotalSegmentator CT (v1: 104 classes, v2: 117), whole body at 1.5 mm",
    channels=("CT",),
    labels=CT_V2,
    licence="CC BY 4.0",
    page="https://zenodo.org/records/10047292 (v2), https://zenodo.org/records/6802614 (v1)",
    layout="meta.csv (;), sNNNN/ct.nii.gz, sNNNN/segmentations/<class>.nii.gz",
    sources=(
        "wasserth/TotalSegmentator: resources/convert_dataset_to_nnunet.py, "
        "totalsegmentator/map_to_binary.py, resources/class_details.md, issues #24, #92, #193, "
        "#245",
        "OpenMEDLab: TotalSegmentator.md",
    ),
    subjects="a folder is a subject",
    citation="Wasserthal J. et al., Radiology: Artificial Intelligence 5(5):e230024 (2023)",
    expected={"labelled": 1228},
    defects=(
        "v1: ct.nii.gz of s0864 is damaged in the archive: the case fails, the others are made",
        "v2.0.0: s0184, s0224, s0830, s0864 and s0992 have wrong intensities (corrected in v2.0.1)",
        "a 13th rib has the label of the 12th; colon and small bowel are mixed up in places",
        "labels are made by a model and corrected",
        "masks of a case overlap in places: the class with the larger value wins there",
        "a mask file that is missing makes its class not annotated in that case",
    ),
    mirror_pairs=suggest_mirror_pairs(CT_V2),
)
MR = SetFacts(
    name="totalsegmentator_mr",
    title="TotalSegmentator MRI (v1: 56 classes, v2: 50), any sequence",
    channels=("MR",),
    labels=MR_V2,
    licence="CC BY-NC-SA 2.0 as redistributions of v2 state it",
    page="https://zenodo.org/records/14710732 (v2), https://zenodo.org/records/11367005 (v1)",
    layout="meta.csv (;), sNNNN/mri.nii.gz, sNNNN/segmentations/<class>.nii.gz",
    sources=(
        "wasserth/TotalSegmentator: totalsegmentator/map_to_binary.py, issue #511",
        "nnU-Net v2: Dataset227_TotalSegmentatorMRI.py",
    ),
    subjects="a folder is a subject",
    citation="Akinci D'Antonoli T. et al., Radiology 314(2):e241613 (2025)",
    expected={"labelled": 616},
    defects=(
        "v2: all masks of 50 cases are empty (issue #511 lists them); reported case by case",
        "masks of a case overlap in places: the class with the larger value wins there",
        "a mask file that is missing makes its class not annotated in that case",
    ),
    mirror_pairs=suggest_mirror_pairs(MR_V2),
)

_CT_RELEASES = (_Release("v1", CT_V1, 1204), _Release("v2", CT_V2, 1228))
_MR_RELEASES = (_Release("v1", MR_V1, 298), _Release("v2", MR_V2, 616))


def _scan(tree: SourceTree, *, facts: SetFacts, image: str, releases: Sequence[_Release]) -> Scan:
    images = tree.by_key(rf"(?P<key>s\d{{4}})/{image}\.nii\.gz")
    masks: dict[str, dict[str, Path]] = {}
    for path, match in tree.match(r"(s\d{4})/segmentations/(\w+)\.nii\.gz"):
        masks.setdefault(match[1], {})[match[2]] = path
    release = _release(releases, {name for found in masks.values() for name in found}, tree)
    parts = _parts(tree)
    cases = [
        _case(name, path, masks[name], release, parts.get(name))
        for name, path in images.items()
        if name in masks
    ]
    deviations = [
        Deviation(f"release {release.version}: {len(release.labels)} classes"),
        *missing("images without masks, left out", masks, images),
        *missing("masks without an image, left out", images, masks),
        *missing("cases of meta.csv that are not here", images, parts),
        *(missing("cases that meta.csv does not name: they train", parts, images) if parts else ()),
        *_incomplete(masks, release),
    ]
    found = dataclasses.replace(
        facts,
        labels=release.labels,
        mirror_pairs=suggest_mirror_pairs(release.labels),
        expected={"labelled": release.cases},
    )
    return Scan(found, tuple(cases), tuple(deviations))


def _release(releases: Sequence[_Release], names: set[str], tree: SourceTree) -> _Release:
    """The release whose table has all masks; the newest where several do."""
    fitting = [release for release in releases if names <= set(release.labels)]
    if fitting:
        return fitting[-1]
    closest = min(releases, key=lambda release: len(names - set(release.labels)))
    raise DataRefused(
        "masks of classes that no release of this set has",
        file=tree.root,
        found=", ".join(sorted(names - set(closest.labels))[:10]),
        expected=", ".join(f"{r.version}: {len(r.labels)} classes" for r in releases),
        fix="take the other set of the two (CT or MR), or remove masks of other tasks",
    )


def _parts(tree: SourceTree) -> dict[str, str]:
    """Case -> train, val or test, of meta.csv; empty where there is none."""
    found = tree.match(r"meta\.csv")
    if not found:
        return {}
    text = found[0][0].read_text(encoding="utf-8-sig")
    rows = csv.DictReader(text.splitlines(), delimiter=";" if ";" in text else ",")
    return {row["image_id"]: row["split"] for row in rows if row.get("split")}


def _case(
    name: str, image: Path, masks: Mapping[str, Path], release: _Release, part: str | None
) -> FoundCase:
    split, role = _ROLES.get(part or "train", _ROLES["train"])
    present = [label for label in release.labels if label in masks]
    values = tuple(_value(release.labels[label]) for label in present)
    label = Recipe(
        functools.partial(merge_masks, values=values), tuple(masks[label] for label in present)
    )
    absent = tuple(label for label in release.labels if label not in masks)
    return FoundCase(name, (image,), label, split=split, role=role, not_annotated=absent)


def _value(value: int | list[int]) -> int:
    assert isinstance(value, int), "the tables here have no regions"
    return value


def _incomplete(masks: Mapping[str, Mapping[str, Path]], release: _Release) -> list[Deviation]:
    lacking = tuple(name for name, found in masks.items() if set(release.labels) - set(found))
    if not lacking:
        return []
    return [Deviation("mask files are missing; those classes count as not annotated", lacking)]


TOTALSEGMENTATOR_CT = PublicSet(
    CT, functools.partial(_scan, facts=CT, image="ct", releases=_CT_RELEASES)
)
TOTALSEGMENTATOR_MR = PublicSet(
    MR, functools.partial(_scan, facts=MR, image="mri", releases=_MR_RELEASES)
)
