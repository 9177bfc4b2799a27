"""The Medical Segmentation Decathlon: `TaskNN_Name/` with a dataset.json of nnU-Net's version 1.

    imagesTr/liver_001.nii.gz    4-D where there are several channels: one file each is written
    labelsTr/liver_001.nii.gz, imagesTs/liver_002.nii.gz, dataset.json

- `dataset.json` is the list of cases; what it lists and the folder lacks is left out and said, as
  is what the folder has and the list does not.
- Subjects: a number is a subject, except in Task04 Hippocampus, where cases 2k-1 and 2k are the
  two sides of one. The archive does not say so; it was found from the data (the medians of such
  pairs differ by 3 %, those of other neighbours by 24 %). The official test images, published
  without label maps, are the other side of training subjects in part: this is said, and such a
  test case stands as a subject of its own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dataset_conversion.facts import SetFacts
from dataset_conversion.family import Member, Members, SetFamily
from dataset_conversion.raw_set import Split
from dataset_conversion.recipes import read_frame
from dataset_conversion.scan import Deviation, FoundCase, PublicSet, Recipe, Scan, Source
from dataset_conversion.source_tree import SourceTree, natural_key
from iris_cli.dataset.building import TransferMode, scratch_folder
from iris_cli.dataset.dataset_json import DatasetJson, channels, is_version_1, parse_dataset_json
from iris_cli.dataset.layout import check_case_name
from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.archive import extract_tar, safe_relative_path
from iris_cli.files.schema import read_json
from iris_cli.volume.reading import Volume, volume_name

DATASET_JSON = "dataset.json"


@dataclass(frozen=True)
class Task:
    """What is known of one task: values are those of its dataset.json, counts of its lists."""

    number: int
    name: str
    title: str
    channels: tuple[str, ...]
    labels: Mapping[str, int | list[int]]
    training: int
    test: int
    defects: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        return f"Task{self.number:02d}_{self.name}"


def _values(*names: str) -> dict[str, int | list[int]]:
    return {name: value for value, name in enumerate(names, start=1)}


TASKS = (
    Task(
        1,
        "BrainTumour",
        "glioma in MR",
        ("FLAIR", "T1w", "t1gd", "T2w"),
        _values("edema", "non-enhancing tumor", "enhancing tumour"),
        484,
        266,
        duplicates=("cases of BraTS 2016 and 2017, and so of every later edition",),
    ),
    Task(2, "Heart", "left atrium in MR", ("MRI",), _values("left atrium"), 20, 10),
    Task(
        3,
        "Liver",
        "liver and tumour in CT",
        ("CT",),
        _values("liver", "cancer"),
        131,
        70,
        duplicates=("the cases of LiTS, with corrected spacings; liver_28 to 47 are 3D-IRCADb",),
    ),
    Task(
        4,
        "Hippocampus",
        "hippocampus in MR",
        ("MRI",),
        _values("Anterior", "Posterior"),
        260,
        130,
        defects=(
            "cases 2k-1 and 2k are two sides of one subject, found from the data",
            "official test images show subjects of the training images in part",
        ),
    ),
    Task(5, "Prostate", "zones of the prostate in MR", ("T2", "ADC"), _values("PZ", "TZ"), 32, 16),
    Task(6, "Lung", "lung tumour in CT", ("CT",), _values("cancer"), 63, 32),
    Task(
        7,
        "Pancreas",
        "pancreas and tumour in CT",
        ("CT",),
        _values("pancreas", "cancer"),
        281,
        139,
        defects=("numbers have gaps: training and test share one sequence",),
        duplicates=("FLARE 2022 took its 50 labelled scans from here",),
    ),
    Task(
        8,
        "HepaticVessel",
        "vessels and tumour of the liver in CT",
        ("CT",),
        _values("Vessel", "Tumour"),
        303,
        140,
    ),
    Task(9, "Spleen", "spleen in CT", ("CT",), _values("spleen"), 41, 20),
    Task(
        10,
        "Colon",
        "colon cancer in CT",
        ("CT",),
        _values("colon cancer primaries"),
        126,
        64,
        duplicates=("CTPelvic1K sub-set 3 is of these images",),
    ),
)


def facts_of(task: Task) -> SetFacts:
    """The facts of one task."""
    several = "each image is 4-D: one file per channel" if len(task.channels) > 1 else ""
    return SetFacts(
        name=f"msd_{task.name.lower()}",
        title=f"Medical Segmentation Decathlon, Task {task.number:02d}: {task.title}",
        channels=task.channels,
        labels=task.labels,
        licence="CC BY-SA 4.0",
        page="http://medicaldecathlon.com",
        layout=f"{task.folder}/imagesTr/<case>.nii.gz, labelsTr/<case>.nii.gz, imagesTs/, "
        f"{DATASET_JSON}",
        sources=(
            "nnU-Net v2: convert_MSD_dataset.py",
            "OpenMEDLab: MSD pages",
            "MMMM: MSD.py",
            "SAT-DS: preprocess_MSD_*",
        ),
        subjects="cases 2k-1 and 2k are one subject"
        if task.name == "Hippocampus"
        else "a number is a subject",
        citation="Antonelli M. et al., The Medical Segmentation Decathlon, Nature "
        "Communications 13:4128 (2022)",
        expected={"labelled": task.training, "unlabelled": task.test},
        defects=(
            "hidden ._ companions in the archive: skipped and said",
            *([several] if several else []),
            *task.defects,
        ),
        duplicates=task.duplicates,
    )


def public_set(number: int, facts: SetFacts | None = None) -> PublicSet:
    """The converter of one task; `facts` where more is known of it."""
    task = next(task for task in TASKS if task.number == number)
    facts = facts or facts_of(task)
    return PublicSet(facts, functools.partial(_scan_task, facts=facts))


def scan_listed(
    tree: SourceTree, content: Mapping[str, Any], facts: SetFacts, *, numbered: bool
) -> Scan:
    """The cases that a dataset.json of version 1 lists.

    numbered: files are `<case>_0000.nii.gz`, one per channel, as nnU-Net's version 1 stores them;
    otherwise `<case>.nii.gz`, 4-D where there are several channels.
    """
    root = tree.match(DATASET_JSON)[0][0].parent
    listed = _Listed(root, len(facts.channels), numbered)
    cases: dict[str, FoundCase] = {}
    absent: list[str] = []
    for key, split in (("training", Split.TRAINING), ("test", Split.TEST)):
        for entry in _entries(content, key, root):
            case = listed.case(entry, split)
            if case is None:
                absent.append(str(entry.get("image")))
            else:
                cases.setdefault(case.name, case)
    deviations = [Deviation("listed cases that are not here, left out", tuple(absent))]
    deviations = deviations if absent else []
    used = {path for case in cases.values() for path in _paths(case)}
    others = [
        tree.relative(path)
        for path, _ in tree.match(r"(?:images|labels)(?:Tr|Ts|Val)/[^/]+\.nii(?:\.gz)?")
        if path not in used
    ]
    if others:
        deviations.append(Deviation(f"files that {DATASET_JSON} does not list", tuple(others)))
    found, said = _separated(sorted(cases.values(), key=lambda case: natural_key(case.name)))
    return Scan(facts, tuple(found), (*deviations, *said))


def read_version_1(tree: SourceTree, what: str) -> dict[str, Any]:
    """The only dataset.json of a source, which must be in version 1's form."""
    found = tree.match(DATASET_JSON)
    if len(found) != 1:
        raise UsageError(
            f"this is no {what}",
            file=tree.root,
            found=f"{len(found)} files {DATASET_JSON}",
            expected=f"TaskNN_Name with {DATASET_JSON}, imagesTr and labelsTr",
            fix="give the folder of one task",
        )
    path = found[0][0]
    content = read_json(path)
    if not isinstance(content, dict) or not is_version_1(content):
        raise DataRefused(
            "dataset.json is not in the Decathlon's form",
            file=path,
            expected='"modality" and "labels" from value to name',
            fix="a raw folder of nnU-Net's version 2 needs no conversion",
        )
    return content


def facts_in(content: Mapping[str, Any], tree: SourceTree, facts: SetFacts) -> SetFacts:
    """Facts with channels, labels and licence as the source states them."""
    path = tree.match(DATASET_JSON)[0][0]
    parsed: DatasetJson = parse_dataset_json(content, path)
    labels = {name: value for name, value in parsed.labels.items() if value != 0}
    licence = content.get("licence") or content.get("license") or facts.licence
    return replace(
        facts,
        channels=tuple(channel.name for channel in channels(parsed, path)),
        labels=labels,
        licence=str(licence),
    )


def subject_of(case: str) -> str:
    """The subject of a case: its own name, except for the two sides of a hippocampus."""
    number = re.fullmatch(r"hippocampus_(\d+)", case)
    if number is None:
        return case
    return f"hippocampus_subject_{(int(number[1]) + 1) // 2:03d}"


def read_channel(files: Sequence[Path], *, channel: int, count: int) -> Volume:
    """One channel of a 4-D file that must have `count` of them."""
    import nibabel

    image: Any = nibabel.load(files[0])
    if len(image.shape) != 4 or image.shape[3] != count:
        raise DataRefused(
            "an image does not hold the channels that dataset.json declares",
            file=files[0],
            found=f"shape {image.shape}",
            expected=f"4-D with {count} channels",
        )
    return read_frame(files, frame=channel)


def _scan_task(tree: SourceTree, *, facts: SetFacts) -> Scan:
    content = read_version_1(tree, "task of the Decathlon")
    stated = facts_in(content, tree, facts)
    scan = scan_listed(tree, content, stated, numbered=False)
    known = {str(name).lower(): value for name, value in facts.labels.items()}
    if known and known != {name.lower(): value for name, value in stated.labels.items()}:
        tables = f"{dict(stated.labels)}, not {dict(facts.labels)}"
        table = Deviation(f"{DATASET_JSON} has another label table: {tables}")
        scan = replace(scan, deviations=(table, *scan.deviations))
    return scan


@dataclass(frozen=True)
class _Listed:
    """Finds the files of the cases that a dataset.json lists."""

    root: Path
    channels: int
    numbered: bool

    def case(self, entry: Mapping[str, Any], split: Split) -> FoundCase | None:
        """The case of an entry; None where a file of it is missing."""
        image = self._path(entry.get("image"))
        images = None if image is None else self._images(image)
        if image is None or images is None:
            return None
        label = self._path(entry.get("label")) or self.root / "labelsTs" / image.name
        labelled = label.is_file()
        if split is Split.TRAINING and not labelled:
            return None
        name = check_case_name(volume_name(image), file=image)
        return FoundCase(
            name, images, label if labelled else None, subject=subject_of(name), split=split
        )

    def _path(self, name: object) -> Path | None:
        if not isinstance(name, str):
            return None
        return self.root / safe_relative_path(name, archive=self.root / DATASET_JSON)

    def _images(self, path: Path) -> tuple[Source, ...] | None:
        if not self.numbered and self.channels > 1:
            recipes = (
                Recipe(functools.partial(read_channel, channel=i, count=self.channels), (path,))
                for i in range(self.channels)
            )
            return tuple(recipes) if path.is_file() else None
        files: tuple[Path, ...] = (path,)
        if self.numbered:
            stem, ending = volume_name(path), path.name[len(volume_name(path)) :]
            names = (f"{stem}_{i:04d}{ending}" for i in range(self.channels))
            files = tuple(path.with_name(name) for name in names)
        return files if all(file.is_file() for file in files) else None


def _paths(case: FoundCase) -> Iterator[Path]:
    for source in (*case.images, *([case.label] if case.label else [])):
        yield from source.files if isinstance(source, Recipe) else (source,)


def _entries(content: Mapping[str, Any], key: str, root: Path) -> list[dict[str, Any]]:
    """The cases of a list; test cases may be listed as bare paths."""
    entries = content.get(key, [])
    if not isinstance(entries, list):
        raise DataRefused(f'"{key}" is not a list', file=root / DATASET_JSON)
    return [entry if isinstance(entry, dict) else {"image": entry} for entry in entries]


def _separated(cases: Sequence[FoundCase]) -> tuple[list[FoundCase], list[Deviation]]:
    """Test cases of training subjects as subjects of their own: the official split has them."""
    trained = {case.person for case in cases if case.split is Split.TRAINING}
    shared = [c.name for c in cases if c.split is Split.TEST and c.person in trained]
    found = [replace(c, subject=c.name) if c.name in shared else c for c in cases]
    if not shared:
        return found, []
    message = "official test images of training subjects: no score on unseen subjects"
    return found, [Deviation(message, tuple(shared))]


@contextmanager
def _open(source: Path, target: Path, mode: TransferMode) -> Iterator[Members]:
    """The extracted folder, or the archive, extracted beside `target` for the time of the block."""
    if source.is_dir():
        yield Members((_member(source, target),))
        return
    if not source.is_file():
        raise UsageError("no such file or folder", file=source, fix="check the path")
    if mode is TransferMode.LINK:
        raise UsageError(
            "links into an archive are not possible", file=source, fix="extract it, or use --copy"
        )
    with scratch_folder(target) as folder:
        extract_tar(source, folder)
        yield Members((replace(_member(folder, target), origin=source),))


def _member(source: Path, target: Path) -> Member:
    """The task that a folder holds: by the names of its files, which every task has its own."""
    content = read_version_1(SourceTree(source), "task of the Decathlon")
    stem = next((_stem(entry) for entry in _entries(content, "training", source)), "")
    task = next((task for task in TASKS if STEMS[task.number] == stem), None)
    if task is None:
        raise DataRefused(
            "none of the ten tasks has cases of this name",
            file=source,
            found=stem or "no training case",
            expected=", ".join(f"{STEMS[task.number]}_NNN" for task in TASKS),
            fix="iris convert nnunet_v1 takes other folders of this form",
        )
    return Member(public_set(task.number), source, target)


STEMS = {
    1: "brats",
    2: "la",
    3: "liver",
    4: "hippocampus",
    5: "prostate",
    6: "lung",
    7: "pancreas",
    8: "hepaticvessel",
    9: "spleen",
    10: "colon",
}


def _stem(entry: Mapping[str, Any]) -> str:
    return volume_name(str(entry.get("image"))).rpartition("_")[0].lower()


MSD = SetFamily(
    "msd",
    "a task of the Medical Segmentation Decathlon (01 to 10): its .tar, or the extracted folder",
    _open,
)

MSD_TASKS = tuple(public_set(task.number) for task in TASKS)
