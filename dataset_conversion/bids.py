"""BIDS: images of subjects and sessions, label maps among the derivatives.

    sub-01/[ses-a/]anat/sub-01[_ses-a][_acq-x]_T1w.nii.gz                         the images
    derivatives/<pipeline>/sub-01/[ses-a/]anat/sub-01[...][_space-T1w][_desc-manual]_dseg.nii.gz
    derivatives/<pipeline>/[desc-manual_]dseg.tsv         index, name; or nearer the label map

- The images of a label map are those of its subject and session that agree with its entities and
  lie on its grid; each suffix (T1w, FLAIR) that every case has is a channel.
- Label maps in a template's space have no image here: left out and said. Where an image has
  several segmentations (pipelines, desc), the one that most images have is taken, the rest said.
- The table of a label map is the nearest one within its pipeline. Where tables differ, classes
  are told apart by name; those a table lacks are not annotated in its cases.
- Values with gaps are renumbered and said: nnU-Net refuses them.
- Files that are no volume of three axes are set aside and said; a case fails where its label map
  is one, or an image of a suffix that other cases have.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from dataset_conversion.facts import SetFacts
from dataset_conversion.relabelling import described, renumbered
from dataset_conversion.scan import Deviation, FoundCase, PublicSet, Refused, Scan
from dataset_conversion.source_tree import SourceTree
from iris_cli.dataset.dataset_json import labels_by_name
from iris_cli.errors import DataRefused
from iris_cli.volume.grid import Grid, GridMatch
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
    """A file by its entities, the derivative's own ones apart, and its suffix.

    top: folder of the pipeline, or of the whole set.
    """

    path: Path
    entities: frozenset[tuple[str, str]]
    derived: Mapping[str, str]
    suffix: str
    top: Path
    pipeline: str

    @property
    def subject(self) -> str:
        return f"sub-{dict(self.entities)['sub']}"

    def fits(self, image: _Named) -> bool:
        """Whether this label map may be one of the image, by their names."""
        space = self.derived.get("space")
        return self.entities <= image.entities and space in (None, "orig", image.suffix)

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
    tables = [path for path, _ in tree.match(r"[^/]*dseg\.tsv")]
    chosen, said = _one_way(segmentations)
    labelled = {label.subject for label in chosen}
    grids, bad = _grids([*chosen, *(image for image in images if image.subject in labelled)])
    found = {label: _images_of(label, images, grids) for label in chosen if label in grids}
    failed = {label: bad[label] for label in chosen if label in bad} | _incomplete(found, bad)
    found = {label: channels for label, channels in found.items() if label not in failed}
    refused = tuple(Refused(label.case, error) for label, error in failed.items())
    lost = tuple(label.case for label, channels in found.items() if not channels)
    if lost:
        said.append(Deviation("label maps without an image on their grid, left out", lost))
    numbering = _numbering([label for label, channels in found.items() if channels], tables)
    said += [*_set_aside(bad), *numbering.deviations()]
    found = {label: found[label] for label in numbering.new}
    if not found:
        return Scan(FACTS, (), tuple(said), refused)
    suffixes, left = _channels(list(found.values()))
    cases = tuple(_case(label, channels, suffixes, numbering) for label, channels in found.items())
    labelled = {label.subject for label in (*found, *failed)}
    alone = tuple(sorted({image.subject for image in images} - labelled))
    if alone:
        said.append(Deviation("subjects without a segmentation, left out", alone))
    names = tuple("CT" if suffix == "ct" else suffix for suffix in suffixes) or ("mixed",)
    facts = replace(FACTS, channels=names, labels=numbering.labels)
    return Scan(facts, cases, (*said, *left), refused)


def _files(tree: SourceTree) -> tuple[list[_Named], list[_Named]]:
    images, segmentations = [], []
    for path, _ in tree.match(r"sub-[^/]+\.nii(?:\.gz)?"):
        parts = Path(tree.relative(path)).parts
        derived = "derivatives" in parts
        depth = parts.index("derivatives") + 2 if derived else 0
        file = _named(path, tree.root.joinpath(*parts[:depth]), parts[depth - 1] if derived else "")
        if file.suffix == "dseg":
            segmentations.append(file)
        elif not derived and file.suffix not in _NO_IMAGES:
            images.append(file)
    return images, segmentations


def _named(path: Path, top: Path, pipeline: str) -> _Named:
    *parts, suffix = volume_name(path).split("_")
    pairs = [(key, value) for key, _, value in (part.partition("-") for part in parts)]
    return _Named(
        path,
        frozenset(pair for pair in pairs if pair[0] not in _DERIVED),
        {key: value for key, value in pairs if key in _DERIVED},
        suffix,
        top,
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


def _grids(files: Sequence[_Named]) -> tuple[dict[_Named, Grid], dict[_Named, DataRefused]]:
    """The grids of files, and what is wrong with those that are no volume (4-D, damaged)."""
    grids: dict[_Named, Grid] = {}
    bad: dict[_Named, DataRefused] = {}
    for file in files:
        try:
            grids[file] = read_grid(file.path).canonical_grid
        except DataRefused as error:
            bad[file] = error
    return grids, bad


def _set_aside(bad: Mapping[_Named, DataRefused]) -> list[Deviation]:
    names: dict[str, list[str]] = {}
    for file, error in bad.items():
        names.setdefault(f"set aside: {error.problem}", []).append(file.path.name)
    return [Deviation(message, tuple(files)) for message, files in names.items()]


def _incomplete(
    found: Mapping[_Named, Mapping[str, Path]], bad: Mapping[_Named, DataRefused]
) -> dict[_Named, DataRefused]:
    """Label maps whose image of a suffix that others have cannot be read: no channel is lost."""
    used = {suffix for channels in found.values() for suffix in channels}
    return {
        label: error
        for image, error in bad.items()
        for label, channels in found.items()
        if image.suffix in used.difference(channels) and label.fits(image)
    }


def _images_of(
    label: _Named, images: Sequence[_Named], grids: Mapping[_Named, Grid]
) -> dict[str, Path]:
    """Images by suffix that agree with the label map's entities and lie on its grid."""
    found: dict[str, Path] = {}
    for image in sorted(images, key=lambda image: len(image.entities)):
        if not label.fits(image) or image.suffix in found or image not in grids:
            continue
        if grids[image].compare(grids[label]) is not GridMatch.DIFFERENT:
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
    label: _Named, channels: Mapping[str, Path], suffixes: Sequence[str], numbering: _Numbering
) -> FoundCase:
    own = sorted(channels)[0]
    new = numbering.new[label]
    as_it_is = not numbering.differ and described(new) is None
    return FoundCase(
        label.case,
        tuple(channels[suffix] for suffix in suffixes or (own,)),
        label.path if as_it_is else renumbered(label.path, new),
        subject=label.subject,
        modality=None if suffixes else own,
        not_annotated=tuple(
            name for name, value in numbering.labels.items() if value not in new.values()
        ),
    )


@dataclass(frozen=True)
class _Numbering:
    """Class names with consecutive values, and old -> new of every label map.

    differ: whether the label maps have different tables. without: label maps that have none,
    where others do.
    """

    labels: dict[str, int | list[int]]
    new: dict[_Named, dict[int, int]]
    differ: bool
    without: tuple[str, ...] = ()

    def deviations(self) -> list[Deviation]:
        cases: dict[str, list[str]] = {}
        for label, new in self.new.items():
            if changed := described(new):
                cases.setdefault(changed, []).append(label.case)
        said = [
            Deviation(message, tuple(names) if self.differ else ())
            for message, names in cases.items()
        ]
        if self.differ:
            said.append(Deviation("label maps have different tables: numbered by name"))
        if self.without:
            message = "label maps without a table where others have one, left out"
            said.append(Deviation(message, self.without))
        return said


def _numbering(labels: Sequence[_Named], tables: Sequence[Path]) -> _Numbering:
    """Classes of all tables by name, in the order of values; without a table, the values found."""
    files = {label: _table_file(label, tables) for label in labels}
    read = {path: _read_table(path) for path in files.values() if path is not None}
    if read:
        named = {label: read[path] for label, path in files.items() if path is not None}
    else:
        values = {str(value): value for value in _values(labels)}
        named = dict.fromkeys(labels, values)
    lowest: dict[str, int] = {}
    for table in named.values():
        for name, old in table.items():
            lowest[name] = min(old, lowest.get(name, old))
    order = sorted(lowest, key=lambda name: (lowest[name], name))
    numbers = {name: number for number, name in enumerate(order, start=1)}
    new = {
        label: {old: numbers[name] for name, old in sorted(table.items(), key=lambda row: row[1])}
        for label, table in named.items()
    }
    differ = any(one != other for one, other in pairwise(new.values()))
    without = tuple(label.case for label in labels if label not in new)
    return _Numbering(dict(numbers), new, differ, without)


def _table_file(label: _Named, tables: Sequence[Path]) -> Path | None:
    """The table beside the label map or in the nearest folder above it, within its pipeline.

    Its entities are among those of the label map; of several in a folder the one with most of them.
    """
    entities = set(volume_name(label.path).split("_"))
    fitting = [path for path in tables if set(path.stem.split("_")) <= entities]
    folder = label.path.parent
    while True:
        here = [path for path in fitting if path.parent == folder]
        if here:
            return max(here, key=lambda path: path.stem.count("_"))
        if folder in (label.top, folder.parent):
            return None
        folder = folder.parent


def _read_table(path: Path) -> dict[str, int]:
    """Values by class name; a name that several values share gets the value appended."""
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
    return labels_by_name({str(old): name for old, name in named.items() if old != 0}, path)


def _values(labels: Sequence[_Named]) -> list[int]:
    found: set[int] = set()
    for label in labels:
        with suppress(DataRefused):  # of a damaged file, which the conversion of its case names
            found |= {int(value) for value in np.unique(read_labels(label.path).array)}
    return sorted(found - {0})


BIDS = PublicSet(FACTS, scan)
