"""Which label map belongs to which image, by name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from iris_cli.dataset.layout import (
    ImageFiles,
    count_channels,
    group_channels,
    list_volumes,
    split_channel,
)
from iris_cli.errors import DataRefused
from iris_cli.volume.reading import volume_name

_LABEL_SUFFIX = re.compile(r"_(seg|label|labels|mask)$", re.IGNORECASE)


def pair_by_name(
    images: Sequence[ImageFiles], labels: Mapping[str, Path], where: Path
) -> list[tuple[ImageFiles, Path]]:
    """Images with the label maps of the same name, or of that name with _seg, _label or _mask.

    labels: label maps by name. raises DataRefused where one has no partner.
    """
    by_case: dict[str, Path] = {}
    image_names = {files.case for files in images}
    for name, path in labels.items():
        case = name if name in image_names else _LABEL_SUFFIX.sub("", name)
        if case in by_case:
            raise DataRefused(
                f"two label maps belong to {case!r}",
                file=path,
                found=f"{by_case[case].name} and {path.name}",
                fix="remove one of them",
            )
        by_case[case] = path
    without_label = sorted(image_names - set(by_case))
    without_image = sorted(set(by_case) - image_names)
    if without_label or without_image or not images:
        raise DataRefused(
            "images and label maps do not go together",
            file=where,
            found=_partnerless(without_label, without_image),
            expected="one label map of the same name for each image",
            fix="rename or remove the files named above",
        )
    return [(files, by_case[files.case]) for files in images]


def flat_pairs(folder: Path) -> list[tuple[ImageFiles, Path]]:
    """Pairs side by side in one folder: x.nii.gz with x_seg, x_label or x_mask."""
    files = list_volumes(folder)
    names = {volume_name(path) for path in files}
    labels = {volume_name(path): path for path in files if _is_label_name(path, names)}
    images = [path for path in files if volume_name(path) not in labels]
    return pair_by_name(group_images(images, labels), labels, folder) if labels else []


def are_label_maps(names: Collection[str], images: Collection[str]) -> bool:
    """Whether any of these names is one that the label map of one of these images may have.

    images: names of the files, with or without the number of a channel.
    """
    parts = [split_channel(image) for image in images]
    cases = {*images, *(part[0] for part in parts if part is not None)}
    return any(name in cases or _LABEL_SUFFIX.sub("", name) in cases for name in names)


def _is_label_name(path: Path, names: set[str]) -> bool:
    """Whether a file is the label map of another one, not an image that is called "a_mask"."""
    stem = _LABEL_SUFFIX.sub("", volume_name(path))
    return stem != volume_name(path) and (stem in names or f"{stem}_0000" in names)


def group_images(images: Sequence[Path], labels: Collection[str] = ()) -> list[ImageFiles]:
    """Group images by case; how many channels there are is read from their names.

    labels: names of the label maps. Where each full name of an image has one, the numbers that
    names end in count cases, not channels.
    """
    names = [volume_name(path) for path in images]
    labelled = {*labels, *(_LABEL_SUFFIX.sub("", name) for name in labels)}
    channels = 1 if labelled.issuperset(names) else count_channels(names)
    return group_channels(images, channels, labelled=labelled)


def _partnerless(without_label: list[str], without_image: list[str]) -> str:
    parts = []
    if without_label:
        parts.append("without label map: " + ", ".join(without_label[:5]))
    if without_image:
        parts.append("without image: " + ", ".join(without_image[:5]))
    return "; ".join(parts) or "no image"
