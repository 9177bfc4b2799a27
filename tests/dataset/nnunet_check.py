"""What nnU-Net's `verify_dataset_integrity` demands of a raw folder, restated for tests.

Source: MIC-DKFZ/nnUNet, nnunetv2/experiment_planning/verify_dataset_integrity.py (2.8).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK

REQUIRED = ("labels", "channel_names", "numTraining", "file_ending")
ENDINGS = (".nii.gz", ".nrrd", ".mha")


def nnunet_complaints(folder: Path) -> list[str]:
    """Everything nnU-Net would refuse; empty for a folder it accepts."""
    content = json.loads((folder / "dataset.json").read_text())
    complaints = [f"no key {key}" for key in REQUIRED if key not in content]
    ending = content["file_ending"]
    if ending not in ENDINGS:
        complaints.append(f"ending {ending}")
    images = [path.name for path in (folder / "imagesTr").iterdir() if path.name.endswith(ending)]
    cases = sorted({name[: -len(ending) - 5] for name in images})
    if len(cases) != content["numTraining"]:
        complaints.append(f"numTraining {content['numTraining']}, found {len(cases)}")
    values = _values(content["labels"])
    if values != list(range(len(values))):
        complaints.append(f"labels not consecutive: {values}")
    if any(isinstance(value, list) for value in content["labels"].values()):
        names = set(content["labels"]) - {"background", "ignore"}
        if len(content.get("regions_class_order", [])) != len(names):
            complaints.append("regions_class_order")
    for case in cases:
        complaints += _complaints_of_case(folder, case, ending, content, values)
    return complaints


def _values(labels: dict[str, Any]) -> list[int]:
    """All values in order, the ignored one last."""
    values = {v for value in labels.values() for v in np.atleast_1d(value).tolist()}
    ignore = labels.get("ignore")
    return sorted(values - {ignore}) + ([] if ignore is None else [ignore])


def _complaints_of_case(
    folder: Path, case: str, ending: str, content: dict[str, Any], values: list[int]
) -> list[str]:
    label = folder / "labelsTr" / f"{case}{ending}"
    if not label.is_file():
        return [f"no label map {case}"]
    complaints = []
    array, spacing, place = _read(label)
    if not set(np.unique(array).tolist()) <= set(values):
        complaints.append(f"unexpected labels in {case}: {np.unique(array).tolist()}")
    for channel in range(len(content["channel_names"])):
        image = folder / "imagesTr" / f"{case}_{channel:04d}{ending}"
        if not image.is_file():
            return [*complaints, f"no image {image.name}"]
        voxels, image_spacing, image_place = _read(image)
        if voxels.shape != array.shape:
            complaints.append(f"shape of {case}")
        elif not np.allclose(spacing, image_spacing):
            complaints.append(f"spacing of {case}")
        elif not np.allclose(place, image_place):
            complaints.append(f"origin or direction of {case}")
        if np.isnan(voxels).any():
            complaints.append(f"NaN in {case}")
    return complaints


def _read(path: Path) -> tuple[Any, Any, Any]:
    """Voxels, spacing, and origin with direction."""
    if path.name.endswith(".nii.gz"):
        image: Any = nibabel.load(path)
        return np.asarray(image.dataobj), image.header.get_zooms()[:3], image.affine
    image = SimpleITK.ReadImage(str(path))
    place = [*image.GetOrigin(), *image.GetDirection()]
    return SimpleITK.GetArrayFromImage(image), image.GetSpacing(), place
