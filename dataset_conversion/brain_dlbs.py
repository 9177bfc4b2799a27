"""Brain: T1 MR of the Dallas Lifespan Brain Study with tissue probability masks.

    {train,valid,test}/image/<id>_img.nii
    {train,valid,test}/mask/<id>_probmask_{graymatter,whitematter,csf}.nii

The package holds three studies (dlbs, ixi, sald); the paper's set is dlbs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset_conversion.facts import PaperRole, SetFacts
from dataset_conversion.raw_set import Split
from dataset_conversion.scan import Deviation, FoundCase, PublicSet, Recipe, Scan, missing
from dataset_conversion.source_tree import SourceTree
from iris_cli.dataset.dataset_json import Role
from iris_cli.errors import DataRefused
from iris_cli.volume.grid import GridMatch
from iris_cli.volume.reading import Volume, read_image

TISSUES = ("graymatter", "whitematter", "csf")

FACTS = SetFacts(
    name="brain_dlbs",
    title="Brain (DLBS): grey matter, white matter, CSF (T1 MR)",
    channels=("MR T1",),
    labels={"grey matter": 1, "white matter": 2, "cerebrospinal fluid": 3},
    licence="not stated where the package is",
    page="Kaggle: 3D Brain Tissue Segmentation; the study: Dallas Lifespan Brain Study",
    layout="{train,valid,test}/image/<id>_img.nii, mask/<id>_probmask_{graymatter,...}.nii",
    sources=(
        "yhygao/universal-medical-image-segmentation: brain_structure_3d.py, dataset_config.py",
        "public notebooks that read train/image/*_img.nii",
    ),
    subjects="<id> is the subject",
    paper=PaperRole.TRAINED,
    expected={"labelled": 213},
    defects=(
        "masks are probabilities: a voxel with any is the most probable tissue; at a tie grey "
        "comes before white, white before CSF",
        "the masks look made by a model, so scores say how well it is agreed with",
    ),
)

_PARTS: dict[str, tuple[Split, Role]] = {
    "train": (Split.TRAINING, "train"),
    "valid": (Split.TRAINING, "validate"),
    "test": (Split.TEST, "test"),
}


def most_probable(files: Sequence[Path]) -> Volume:
    """The label map of three probability masks, in the order of `TISSUES`.

    raises DataRefused where their grids differ or a value is negative or not finite.
    """
    masks = [read_image(path) for path in files]
    first = masks[0]
    for mask in masks:
        if mask.grid.compare(first.grid) is GridMatch.DIFFERENT:
            raise DataRefused("the masks of a case are on different grids", file=mask.path)
        if not (np.isfinite(mask.array).all() and mask.array.min() >= 0):
            raise DataRefused("this is no mask of probabilities", file=mask.path)
    stack = np.stack([mask.array for mask in masks])
    # argmax takes the first of equal ones.
    labels = np.where(stack.any(axis=0), stack.argmax(axis=0) + 1, 0).astype(np.uint8)
    return Volume(labels, first.grid, first.native, first.path, first.notes)


def scan(tree: SourceTree) -> Scan:
    images = tree.match(r"(?P<part>train|valid|test)/image/(?P<key>[^/]+)_img\.nii(\.gz)?")
    masks = tree.by_key(
        rf"mask/(?P<key>[^/]+)_probmask_(?P<tissue>{'|'.join(TISSUES)})\.nii(\.gz)?",
        "key",
        "tissue",
    )
    cases, others, incomplete = [], [], []
    for path, match in images:
        name = match["key"]
        files = [masks.get(f"{name}_{tissue}") for tissue in TISSUES]
        if not name.startswith("dlbs_"):
            others.append(name)
        elif None in files:
            incomplete.append(name)
        else:
            split, role = _PARTS[match["part"]]
            recipe = Recipe(most_probable, tuple(file for file in files if file))
            cases.append(FoundCase(name, (path,), recipe, split=split, role=role))
    deviations = missing("masks without an image", (m["key"] for _, m in images), _names(masks))
    if incomplete:
        deviations.append(Deviation("fewer than three masks, left out", tuple(incomplete)))
    if others:
        deviations.append(Deviation("of other studies than DLBS, left out", tuple(others)))
    return Scan(FACTS, tuple(cases), tuple(deviations))


def _names(masks: dict[str, Path]) -> set[str]:
    return {key.rpartition("_")[0] for key in masks}


BRAIN_DLBS = PublicSet(FACTS, scan)
