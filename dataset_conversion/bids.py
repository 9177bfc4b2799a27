"""BIDS: images of subjects and sessions, label maps among the derivatives.

    sub-01/[ses-a/]anat/sub-01[_ses-a][_acq-x]_T1w.nii.gz                         the images
    derivatives/<pipeline>/sub-01/[ses-a/]anat/sub-01[...][_space-T1w][_desc-manual]_dseg.nii.gz
    derivatives/<pipeline>/[desc-manual_]dseg.tsv         index, name; or beside the label map

- The images of a label map are those of its subject and session that agree with its entities and
  lie on its grid; each suffix (T1w, FLAIR) that every case has is a channel.
- Label maps in a template's space have no image here: left out and said. Where an image has
  several segmentations (pipelines, desc), the one that most images have is taken, the rest said.
- Values with gaps are renumbered and said: nnU-Net refuses them.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dataset_conversion.facts import SetFacts
from dataset_conversion.relabelling import described, renumbered
from dataset_conversion.scan import Deviation, FoundCase, PublicSet, Scan
from dataset_conversion.source_tree import SourceTree
from iris_cli.dataset.dataset_json import labels_by_name
from iris_cli.errors import DataRefused
from iris_cli.volume.grid import GridMatch
from iris_cli.volume.reading import read_grid, read_labels, volume_name

FACTS = SetFacts(
    name="bids",
    title="BIDS: images with segmentations (dseg) among the derivatives",
    channels=("the suffixes of the images",),
    labels={},
    licence="",
    page="https://bids-specification.readthedocs.io",
    layout="sub-XX/[ses-YY/]anat/*_<suffix>.nii.gz, derivatives/<pipeline>/sub-XX/[ses-YY/]anat/"
    "*_dseg.nii.gz, dseg.tsv",
    sources=("BIDS specification: common principles, imaging derivatives (segmentations)",),
    subjects="sub-<label>; its sessions share it",
    defects=(
        "label maps in a template's space are left out",
        "of several segmentations of an image one is taken; the others are named",
        "label values with gaps are renumbered",
    ),
)

# What a derivative says of itself and its source does not have.
_DERIVED = ("space", "desc", "label", "seg", "atlas", "res", "den")
_NO_IMAGES = ("dseg", "probseg", "mask", "xfm")


@dataclass(frozen=True, eq=False)
class _Named:
    """A file by its entities, the derivative's own ones apart, and its suffix."""

    path: Path
    entities: frozenset[tuple[str, str]]
    derived: Mapping[str, str]
    suffix: str
    pipeline: str = ""

    @property
    def subject(self) -> str:
        return f"sub-{dict(self.entities)['sub']}"

    @property
    def way(self) -> str:
        """How a segmentation was made: pipeline and description."""
        kind = {key: value for key, value in self.derived.items() if key not in ("space", "res")}
        return "_".join([self.pipeline, *(f"{key}-{value}" for key, value in kind.items())])

    @property
    def case(self) -> str:
        """The entities of the source, in the order of the file's name."""
        parts = self.path.name.split("_")[:-1]
        return "_".join(part for part in parts if part.partition("-")[0] not in _DERIVED)


def scan(tree: SourceTree) -> Scan:
    images, segmentations = _files(tree)
    tables = {path.name: path for path, _ in tree.match(r"[^/]*dseg\.tsv")}
    chosen, said = _one_way(segmentations)
    found = {label: _images_of(label, images) for label in chosen}
    lost = tuple(label.case for label, channels in found.items() if not channels)
    if lost:
        said.append(Deviation("label maps without an image on their grid, left out", lost))
    found = {label: channels for label, channels in found.items() if channels}
    if not found:
        return Scan(FACTS, (), tuple(said))
    suffixes, left = _channels(list(found.values()))
    labels, renumber = _table(list(found), tables)
    if changed := described(renumber):
        said.append(Deviation(changed))
    cases = tuple(
        _case(label, channels, suffixes, renumber if changed else {})
        for label, channels in found.items()
    )
    labelled = {label.subject for label in found}
    alone = tuple(sorted({image.subject for image in images} - labelled))
    if alone:
        said.append(Deviation("subjects without a segmentation, left out", alone))
    names = tuple("CT" if suffix == "ct" else suffix for suffix in suffixes) or ("mixed",)
    return Scan(replace(FACTS, channels=names, labels=labels), cases, (*said, *left))


def _files(tree: SourceTree) -> tuple[list[_Named], list[_Named]]:
    images, segmentations = [], []
    for path, _ in tree.match(r"sub-[^/]+\.nii(?:\.gz)?"):
        parts = Path(tree.relative(path)).parts
        derived = "derivatives" in parts
        file = _named(path, parts[parts.index("derivatives") + 1] if derived else "")
        if file.suffix == "dseg":
            segmentations.append(file)
        elif not derived and file.suffix not in _NO_IMAGES:
            images.append(file)
    return images, segmentations


def _named(path: Path, pipeline: str) -> _Named:
    *parts, suffix = volume_name(path).split("_")
    pairs = [(key, value) for key, _, value in (part.partition("-") for part in parts)]
    return _Named(
        path,
        frozenset(pair for pair in pairs if pair[0] not in _DERIVED),
        {key: value for key, value in pairs if key in _DERIVED},
        suffix,
        pipeline,
    )


def _one_way(segmentations: Sequence[_Named]) -> tuple[list[_Named], list[Deviation]]:
    """The segmentations that were made in the way that most images have."""
    ways = Counter(label.way for label in segmentations)
    if not ways:
        return [], [Deviation("no derivatives/**/*_dseg.nii.gz")]
    best = max(ways, key=lambda way: (ways[way], way))
    others = tuple(f"{way} ({count})" for way, count in sorted(ways.items()) if way != best)
    said = [Deviation(f"segmentations taken: {best}; left out", others)] if others else []
    return [label for label in segmentations if label.way == best], said


def _images_of(label: _Named, images: Sequence[_Named]) -> dict[str, Path]:
    """Images by suffix that agree with the label map's entities and lie on its grid."""
    grid = read_grid(label.path).canonical_grid
    found: dict[str, Path] = {}
    space = label.derived.get("space")
    for image in sorted(images, key=lambda image: len(image.entities)):
        fits = label.entities <= image.entities and space in (None, "orig", image.suffix)
        if not fits or image.suffix in found:
            continue
        if read_grid(image.path).canonical_grid.compare(grid) is not GridMatch.DIFFERENT:
            found[image.suffix] = image.path
    return found


def _channels(found: Sequence[Mapping[str, Path]]) -> tuple[tuple[str, ...], list[Deviation]]:
    """Suffixes that every case has; none where the cases have nothing in common."""
    everywhere = set(found[0]).intersection(*found)
    rare = tuple(sorted({suffix for channels in found for suffix in channels} - everywhere))
    if not everywhere or not rare:
        return tuple(sorted(everywhere)), []
    return tuple(sorted(everywhere)), [Deviation("images that not every case has, left out", rare)]


def _case(
    label: _Named,
    channels: Mapping[str, Path],
    suffixes: Sequence[str],
    renumber: Mapping[int, int],
) -> FoundCase:
    own = sorted(channels)[0]
    return FoundCase(
        label.case,
        tuple(channels[suffix] for suffix in suffixes or (own,)),
        renumbered(label.path, renumber) if renumber else label.path,
        subject=label.subject,
        modality=None if suffixes else own,
    )


def _table(
    labels: Sequence[_Named], tables: Mapping[str, Path]
) -> tuple[dict[str, int | list[int]], dict[int, int]]:
    """Class names with consecutive values, and old -> new; without a table, the values found."""
    path = _table_file(labels[0], tables)
    named = _read_table(path) if path else {value: str(value) for value in _values(labels)}
    new = {old: number for number, old in enumerate(sorted(named), start=1)}
    by_name = labels_by_name({str(old): name for old, name in named.items()}, path or Path())
    return {name: new[old] for name, old in by_name.items()}, new


def _table_file(label: _Named, tables: Mapping[str, Path]) -> Path | None:
    """The table of the label map itself, of its description, or of all."""
    desc = label.derived.get("desc")
    own = f"{volume_name(label.path)}.tsv"
    names = (own, f"desc-{desc}_dseg.tsv", "dseg.tsv")
    return next((tables[name] for name in names if name in tables), None)


def _read_table(path: Path) -> dict[int, str]:
    rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t"))
    try:
        named = {int(row["index"]): row["name"] for row in rows}
    except (KeyError, ValueError, TypeError) as error:
        raise DataRefused(
            "this is no table of a segmentation",
            file=path,
            found=", ".join(rows[0]) if rows else "nothing",
            expected="columns index and name, separated by tabs",
        ) from error
    return {index: name for index, name in named.items() if index != 0}


def _values(labels: Sequence[_Named]) -> list[int]:
    found: set[int] = set()
    for label in labels:
        found |= {int(value) for value in np.unique(read_labels(label.path).array)}
    return sorted(found - {0})


BIDS = PublicSet(FACTS, scan)
