"""AutoPET (FDG-PET-CT-Lesions): lesions in whole-body PET/CT, 1014 studies of 900 patients.

    PETCT_<10 hex>/<MM-DD-YYYY-text-NNNNN>/{SUV,CTres,CT,PET,SEG}.nii.gz        NIfTI form
    PETCT_<10 hex>/<study>/<series>/*.dcm                                       DICOM form
    {imagesTr,labelsTr}/<tracer>_<patient>_<study>{_0000,_0001,}.nii.gz         challenge form

Cases are `<patient>_<n>`, n counting the studies of a patient by date. `autopet` is PET alone, as
in the paper; `autopet_petct` has the CT on the grid of the PET as a second channel.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from dataset_conversion.facts import LabelGrid, PaperRole, SetFacts
from dataset_conversion.petct_dicom import read_lesions, read_suv, series_by_modality
from dataset_conversion.scan import Deviation, FoundCase, PublicSet, Recipe, Scan, Source
from dataset_conversion.source_tree import SourceTree, natural_key

PET, CT = "PET (SUV)", "CT"


def _facts(name: str, channels: tuple[str, ...], paper: PaperRole) -> SetFacts:
    return SetFacts(
        name=name,
        title=f"AutoPET (FDG-PET-CT-Lesions): lesions ({' and '.join(channels)})",
        channels=channels,
        labels={"lesion": 1},
        licence="as the archive pages state; not verified",
        page="https://doi.org/10.7937/gkr0-xv29",
        layout="PETCT_<hex>/<study>/{SUV,CTres,SEG}.nii.gz, or DICOM series, or the challenge's "
        "imagesTr/<tracer>_<patient>_<study>_000{0,1}.nii.gz",
        sources=(
            "fdat.uni-tuebingen.de: record wf9fy-txq84",
            "autopet.grand-challenge.org",
            "lab-midas/TCIA_processing: tcia_dicom_to_nifti.py",
            "yhygao/universal-medical-image-segmentation: autopet.py",
            "openmedlab/Awesome-Medical-Dataset: AutoPETIII.md",
        ),
        subjects="the patient, who may have several studies",
        citation="Gatidis S. et al., A whole-body FDG-PET/CT Dataset with manually annotated Tumor "
        "Lesions, Scientific Data 9 (2022)",
        paper=paper,
        expected={"labelled": 1014},
        defects=(
            "half of the studies have no lesion: their label maps are empty",
            "channels of the challenge form are CT, PET; here they are PET, CT",
            "published numberings of a patient's studies disagree: here by date",
            "the author's published list has one patient in two parts: it is not used",
        ),
        label_grid=LabelGrid.REFUSE,
    )


Studies = dict[str, dict[str, list[tuple[str, Path]]]]
"""Patient -> study -> (role of the file, file)."""


def scan(tree: SourceTree, *, facts: SetFacts) -> Scan:
    """Whichever form is there; the forms may stand beside each other."""
    with_ct = CT in facts.channels
    cases, deviations = [], []
    for find in (_nifti_studies, _challenge_studies, _dicom_studies):
        studies, build = find(tree)
        for patient, by_study in studies.items():
            for number, study in enumerate(sorted(by_study, key=_by_date)):
                name = f"{patient}_{number}"
                found = build(name, patient, _grouped(by_study[study]), with_ct)
                if isinstance(found, FoundCase):
                    cases.append(found)
                else:
                    deviations.append((found, name))
    by_message: dict[str, list[str]] = defaultdict(list)
    for message, name in deviations:
        by_message[message].append(name)
    said = [Deviation(message, tuple(names)) for message, names in by_message.items()]
    psma = tuple(case.name for case in cases if case.name.startswith("psma"))
    if psma:
        said.append(Deviation("studies of PSMA-PET, which are not in the paper's set", psma))
    return Scan(facts, tuple(cases), tuple(said))


Build = Callable[[str, str, Mapping[str, tuple[Path, ...]], bool], FoundCase | str]
"""(case, patient, files by role, with CT) to the case, or why there is none."""


def _nifti_studies(tree: SourceTree) -> tuple[Studies, Build]:
    studies = _new_studies()
    pattern = (
        r"(?P<patient>PETCT_[0-9a-f]{10})/(?P<study>[^/]+)/(?P<role>SUV|CTres|CT|PET|SEG)\.nii\.gz"
    )
    for path, match in tree.match(pattern):
        studies[match["patient"]][match["study"]].append((match["role"], path))
    return studies, _from_nifti


def _from_nifti(
    name: str, patient: str, files: Mapping[str, tuple[Path, ...]], with_ct: bool
) -> FoundCase | str:
    needed = ("SUV", "CTres") if with_ct else ("SUV",)
    absent = [role for role in (*needed, "SEG") if role not in files]
    if absent:
        return f"study without {', '.join(absent)}, left out"
    images = tuple(files[role][0] for role in needed)
    return FoundCase(name, images, files["SEG"][0], patient)


def _challenge_studies(tree: SourceTree) -> tuple[Studies, Build]:
    studies = _new_studies()
    stem = r"(?P<patient>(fdg|psma)_[0-9a-f]+)_(?P<study>[^/]+?)"
    for role, pattern in (
        ("CTres", rf"imagesTr/{stem}_0000\.nii\.gz"),
        ("SUV", rf"imagesTr/{stem}_0001\.nii\.gz"),
        ("SEG", rf"labelsTr/{stem}\.nii\.gz"),
    ):
        for path, match in tree.match(pattern):
            studies[match["patient"]][match["study"]].append((role, path))
    return studies, _from_nifti


def _dicom_studies(tree: SourceTree) -> tuple[Studies, Build]:
    studies = _new_studies()
    pattern = r"(?P<patient>PETCT_[0-9a-f]{10})/(?P<study>[^/]+)/(?P<series>[^/]+)/[^/]+\.dcm"
    for path, match in tree.match(pattern):
        studies[match["patient"]][match["study"]].append((match["series"], path))
    return studies, _from_dicom


def _from_dicom(
    name: str, patient: str, files: Mapping[str, tuple[Path, ...]], with_ct: bool
) -> FoundCase | str:
    if with_ct:
        return "study in DICOM form: its CT is not on the grid of the PET; use autopet, left out"
    series = series_by_modality(files.values())
    counts = {kind: len(series.get(kind, ())) for kind in ("PT", "SEG")}
    if set(counts.values()) != {1}:
        return f"study with {counts['PT']} series of PT and {counts['SEG']} of SEG, left out"
    (pet,), (lesions,) = series["PT"], series["SEG"]
    label: Source = Recipe(functools.partial(read_lesions, slices=len(pet)), (*pet, *lesions))
    return FoundCase(name, (Recipe(read_suv, pet),), label, patient)


def _new_studies() -> Studies:
    return defaultdict(lambda: defaultdict(list))


def _grouped(files: Iterable[tuple[str, Path]]) -> dict[str, tuple[Path, ...]]:
    groups: dict[str, list[Path]] = defaultdict(list)
    for role, path in files:
        groups[role].append(path)
    return {role: tuple(paths) for role, paths in groups.items()}


def _by_date(study: str) -> tuple[str, list[tuple[int, int, str]]]:
    """MM-DD-YYYY (archive) or YYYY-MM-DD (challenge) at the start of a study's name, then it."""
    american = re.match(r"(\d\d)-(\d\d)-(\d{4})", study)
    date = f"{american[3]}-{american[1]}-{american[2]}" if american else study[:10]
    return date, natural_key(study)


_PET = _facts("autopet", (PET,), PaperRole.TRAINED)
_PETCT = _facts("autopet_petct", (PET, CT), PaperRole.NONE)
AUTOPET = PublicSet(_PET, functools.partial(scan, facts=_PET))
AUTOPET_PETCT = PublicSet(_PETCT, functools.partial(scan, facts=_PETCT))
