"""M&Ms 2020: heart in cine MR of several vendors, two labelled frames of 320 subjects.

    OpenDataset/Training/{Labeled,Unlabeled}/<code>/<code>_sa.nii.gz, <code>_sa_gt.nii.gz
    OpenDataset/{Validation,Testing}/<code>/<code>_sa.nii.gz, <code>_sa_gt.nii.gz
    OpenDataset/211230_M&Ms_Dataset_information_diagnosis_opendataset.csv

Images and label maps are 4-D; the frames ED and ES of the table become cases. Without the table
they are the frames that hold a label.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from pathlib import Path

from dataset_conversion.facts import AuthorSplit, PaperRole, SetFacts
from dataset_conversion.raw_set import Split
from dataset_conversion.recipes import labelled_frames, read_frame
from dataset_conversion.scan import Deviation, FoundCase, PublicSet, Recipe, Refused, Scan
from dataset_conversion.source_tree import SourceTree
from iris_cli.dataset.dataset_json import Role
from iris_cli.errors import DataRefused

FACTS = SetFacts(
    name="mnms",
    title="M&Ms 2020: ventricles and myocardium, two frames of each heart (cine MR)",
    channels=("MR cine",),
    labels={"left ventricle": 1, "myocardium": 2, "right ventricle": 3},
    licence="terms of the challenge; not verified",
    page="https://www.ub.edu/mnms",
    layout="OpenDataset/{Training/Labeled,Validation,Testing}/<code>/<code>_sa{,_gt}.nii.gz, "
    "*M&Ms_Dataset_information*.csv",
    sources=(
        "MIC-DKFZ/nnUNet: Dataset114_MNMs.py",
        "yhygao/universal-medical-image-segmentation: mnm_3d.py",
        "openmedlab/Awesome-Medical-Dataset: M&Ms.md",
    ),
    subjects="<code> is the subject of both frames",
    citation="Campello V. M. et al., The M&Ms Challenge, IEEE TMI 40 (2021)",
    paper=PaperRole.TRAINED,
    expected={"labelled": 640},
    defects=(
        "the order of values is the reverse of ACDC: left ventricle first",
        "axes of some headers are not perpendicular, which ITK refuses: read with nibabel",
        "Unlabeled: the frames of the table, or the first one, without label map",
    ),
)

_PARTS: dict[str, tuple[Split, Role]] = {
    "Training/Labeled": (Split.TRAINING, "train"),
    "Training/Unlabeled": (Split.TEST, "unlabelled"),
    "Validation": (Split.TRAINING, "validate"),
    "Testing": (Split.TEST, "test"),
}
_FILE = rf"(?P<part>{'|'.join(_PARTS)})/(?P<code>[A-Z]\d[A-Z]\d[A-Z]\d)/(?P=code)_sa"


def scan(tree: SourceTree) -> Scan:
    frames = _frames_of_table(tree)
    labels = tree.by_key(rf"{_FILE}_gt\.nii(\.gz)?", "code")
    cases: list[FoundCase] = []
    said: dict[str, list[str]] = {}
    refused: list[Refused] = []
    tested = set()
    for path, match in tree.match(rf"{_FILE}\.nii(\.gz)?"):
        code, part = match["code"], match["part"]
        label = None if part == "Training/Unlabeled" else labels.get(code)
        if label is None and part != "Training/Unlabeled":
            said.setdefault("no label map, left out", []).append(code)
            continue
        if code not in frames:
            said.setdefault("not in the table; frames with a label are taken", []).append(code)
        try:
            chosen = frames.get(code) or (labelled_frames(label) if label else (0,))
        except DataRefused as error:
            refused.append(Refused(code, error))
            continue
        cases += [_case(code, part, frame, path, label) for frame in chosen]
        if part in ("Validation", "Testing"):
            tested.add(code)
    deviations = [Deviation(message, tuple(codes)) for message, codes in said.items()]
    deviations.append(
        Deviation("author's split: the seven validation subjects are not known, they train")
    )
    split = AuthorSplit(
        frozenset(),
        frozenset(tested),
        "yhygao/universal-medical-image-segmentation: mnm_3d.py (Validation and Testing test)",
    )
    facts = dataclasses.replace(FACTS, author_split=split)
    return Scan(facts, tuple(cases), tuple(deviations), tuple(refused))


def _case(code: str, part: str, frame: int, image: Path, label: Path | None) -> FoundCase:
    split, role = _PARTS[part]
    mask = label and Recipe(functools.partial(read_frame, frame=frame, label=True), (label,))
    picture = Recipe(functools.partial(read_frame, frame=frame), (image,))
    return FoundCase(f"{code}_frame{frame:02d}", (picture,), mask, code, split, role)


def _frames_of_table(tree: SourceTree) -> dict[str, tuple[int, ...]]:
    """ED and ES by code, counted from 0; empty without a table."""
    frames: dict[str, tuple[int, ...]] = {}
    for path, _ in tree.match(r"\d{6}_M&Ms_Dataset_information[^/]*\.csv"):
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for row in csv.DictReader(stream):
                numbers = [row.get("ED") or "", row.get("ES") or ""]
                if all(number.strip().isdecimal() for number in numbers):
                    stated = sorted({int(number) for number in numbers})
                    frames[(row.get("External code") or "").strip()] = tuple(stated)
    return frames


MNMS = PublicSet(FACTS, scan)
