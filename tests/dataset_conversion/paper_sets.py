"""Miniature archives of the paper's nineteen sets, each with the oddities of the real one."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dataset_conversion import amos, bcv, chaos, ctpelvic1k, structseg
from tests.dataset.trees import write_json
from tests.dataset_conversion.miniature import (
    SHAPE,
    Miniature,
    Truth,
    anatomy,
    companion,
    image,
    mr,
    ras_affine,
    write,
    write_dicom,
    write_png,
)

Truths = Mapping[str, Truth]


def _amos(folder: Path) -> tuple[Truths, Truths]:
    """One archive with both modalities; a label map whose origin is not its image's."""
    root = folder / "amos22"
    parts = {"0001": "Tr", "0004": "Va", "0507": "Tr", "0540": "Va", "0061": "Ts", "0600": "Ts"}
    ct: dict[str, Truth] = {}
    mri: dict[str, Truth] = {}
    for number, part in parts.items():
        name, is_mr = f"amos_{number}", int(number) > 500
        picture = mr(int(number)) if is_mr else image(int(number))
        write(root / f"images{part}/{name}.nii.gz", picture, "LAS")
        label = None
        if part != "Ts":
            label = anatomy(amos.LABELS)
            moved = None
            if number == "0001":
                moved = np.diag([-1.0, 1.5, 2.0, 1.0])  # the image's is elsewhere
            write(root / f"labels{part}/{name}.nii.gz", label, "LAS", claimed=moved)
            if is_mr:
                label = np.where(label > 13, 0, label)
        role = {"Tr": "train", "Va": "validate", "Ts": "test"}[part]
        truth = Truth((picture,), label, name, "Ts" if part == "Ts" else "Tr", role)
        (mri if is_mr else ct)[name] = truth
    companion(root / "imagesTr/amos_0001.nii.gz")
    write_json(root / "dataset.json", {"labels": {}, "training": []})
    (root / "labeled_data_meta.csv").write_text("amos_id,Patient's Sex\n1,M\n")
    return ct, mri


def _autopet_studies() -> dict[tuple[str, str], bool]:
    """Patient and study (with two spaces, German words), and whether there is a lesion."""
    return {
        ("PETCT_0011aa22bb", "03-23-2003-NA-PET-CT Ganzkoerper  primaer mit KM-10445"): True,
        ("PETCT_0011aa22bb", "12-29-2002-NA-Unspecified CT ABDOMEN-93772"): False,
        ("PETCT_ffee001122", "01-02-2004-NA-PET-CT Ganzkoerper nativ-1"): True,
    }


def _autopet_truths(pets: list[np.ndarray], cts: list[np.ndarray], channels: int) -> Truths:
    """By date: the December of 2002 comes before the March of 2003."""
    names = ("PETCT_0011aa22bb_1", "PETCT_0011aa22bb_0", "PETCT_ffee001122_0")
    return {
        name: Truth(
            (pets[n], cts[n])[:channels],
            anatomy({"lesion": 1} if n != 1 else {}),
            name[:16],
        )
        for n, name in enumerate(names)
    }


def _autopet_nifti(folder: Path, channels: int) -> Truths:
    root = folder / "FDG-PET-CT-Lesions"
    pets = [np.abs(image(n)).astype(np.float32) / 200 for n in range(3)]
    cts = [image(n + 10) for n in range(3)]
    for n, ((patient, study), has_lesion) in enumerate(_autopet_studies().items()):
        place = root / patient / study
        write(place / "SUV.nii.gz", pets[n], "LAS")
        write(place / "PET.nii.gz", pets[n], "LAS")
        write(place / "CTres.nii.gz", cts[n], "LAS")
        write(place / "CT.nii.gz", np.repeat(cts[n], 2, axis=2), "LAS", spacing=(1, 1.5, 1))
        write(place / "SEG.nii.gz", anatomy({"lesion": 1} if has_lesion else {}), "LAS")
    half = root / "PETCT_9999999999/05-05-2005-NA-PET-CT-5"
    write(half / "SUV.nii.gz", pets[0])
    (half / "SEG.nii.gz.part").write_bytes(b"x")
    (root / "fdg_metadata.csv").write_text("Subject ID\n")
    return _autopet_truths(pets, cts, channels)


def _autopet_challenge(folder: Path, channels: int) -> Truths:
    """Channel 0 is CT and channel 1 PET there; dates are the other way round."""
    pets = [np.abs(image(n)).astype(np.float32) / 200 for n in range(2)]
    cts = [image(n + 10) for n in range(2)]
    stems = (
        "fdg_0011aa22bb_03-23-2003-NA-PET-CT Ganzkoerper  primaer mit KM-10445",
        "psma_95b833d65be26d2f_2018-05-01",
    )
    for n, stem in enumerate(stems):
        write(folder / f"imagesTr/{stem}_0000.nii.gz", cts[n], "LPS")
        write(folder / f"imagesTr/{stem}_0001.nii.gz", pets[n], "LPS")
        write(folder / f"labelsTr/{stem}.nii.gz", anatomy({"lesion": 1}), "LPS")
    write_json(folder / "dataset.json", {"channel_names": {"0": "CT", "1": "CT"}})
    names = ("fdg_0011aa22bb_0", "psma_95b833d65be26d2f_0")
    return {
        name: Truth((pets[n], cts[n])[:channels], anatomy({"lesion": 1}), name[:-2])
        for n, name in enumerate(names)
    }


def _bcv(folder: Path) -> Truths:
    """One direction is wrong in the header; one gallbladder is absent; one copy says Test."""
    root = folder / "Abdomen/RawData"
    truths: dict[str, Truth] = {}
    true = np.diag([-1.0, 1.5, 2.0, 1.0])
    for number in (1, 22, 32):
        label = anatomy(bcv.LABELS, without=["gallbladder"] if number == 22 else ())
        picture = image(number)
        wrong = np.diag([1.0, -1.5, 2.0, 1.0]) if number == 32 else true
        write(root / f"Training/img/img{number:04d}.nii.gz", picture, "LAS", claimed=wrong)
        write(root / f"Training/label/label{number:04d}.nii.gz", label, "LAS", claimed=wrong)
        truths[f"img{number:04d}"] = Truth((picture,), label, f"img{number:04d}")
    write(root / "Training/label/label0033.nii.gz", anatomy(bcv.LABELS), "LAS", claimed=true)
    picture = image(61)
    write(root / "Test/img/img0061.nii.gz", picture, "LAS", claimed=true)
    truths["img0061"] = Truth((picture,), None, "img0061", "Ts", "test")
    return truths


def _brain(folder: Path) -> Truths:
    """Probabilities, with a tie and a voxel of little of everything; uncompressed files."""
    truths: dict[str, Truth] = {}
    parts = {"dlbs_0028401": "train", "dlbs_0028402": "valid", "dlbs_0028403": "test"}
    for number, (name, part) in enumerate([*parts.items(), ("ixi002", "train")]):
        picture = mr(number)
        masks = np.zeros((3, *SHAPE), np.float32)
        masks[:, 2, 2, 2] = 0.2, 0.5, 0.3
        masks[:, 3, 2, 2] = 0.4, 0.4, 0.2  # a tie: grey
        masks[:, 4, 2, 2] = 0.0, 0.0, 0.01  # more background than not, and still brain
        masks[:, 5, 2, 2] = 0.9, 0.1, 0.0
        label = np.zeros(SHAPE, np.uint8)
        label[2:6, 2, 2] = 2, 1, 3, 1
        write(folder / f"{part}/image/{name}_img.nii", picture, "RAS")
        for tissue, mask in zip(("graymatter", "whitematter", "csf"), masks, strict=True):
            write(folder / f"{part}/mask/{name}_probmask_{tissue}.nii", mask, "RAS")
        if name.startswith("dlbs"):
            where = {"train": ("Tr", "train"), "valid": ("Tr", "validate"), "test": ("Ts", "test")}
            truths[name] = Truth((picture,), label, name, *where[part])
    write(folder / "train/image/dlbs_0028404_img.nii", mr())
    write(folder / "train/mask/dlbs_0028404_probmask_csf.nii", masks[2])
    return truths


CHAOS_SPACING = (1.5, 1.5, 3.0)


def _chaos(folder: Path) -> Truths:
    """Patients 1, 10 and 2; slices named from the head in one; T2 has another grid than T1."""
    truths: dict[str, Truth] = {}
    grey = np.array([0, 61, 126, 189, 252], np.uint8)  # 61: in the range of the liver, not 63
    for patient in ("1", "10", "2"):
        root = folder / f"CHAOS_Train_Sets/Train_Sets/MR/{patient}"
        t1, t2 = anatomy(chaos.LABELS), np.pad(anatomy(chaos.LABELS), ((0, 0), (0, 0), (2, 0)))
        pictures = {"in": mr(1), "out": mr(2), "t2": np.pad(mr(3), ((0, 0), (0, 0), (2, 0)))}
        up = patient != "10"
        dual = root / "T1DUAL/DICOM_anon"
        odd, even = "IMG-0004-{:05d}.dcm", "IMG-0005-{:05d}.dcm"
        write_dicom(dual / "InPhase", pictures["in"], names=odd, feet_first=up)
        write_dicom(dual / "OutPhase", pictures["out"], names=even, feet_first=up)
        write_dicom(root / "T2SPIR/DICOM_anon", pictures["t2"], names=odd, feet_first=up)
        for sequence, label in (("T1DUAL", t1), ("T2SPIR", t2)):
            rows = label[::-1, ::-1].transpose(2, 1, 0)
            for number, plane in enumerate(rows if up else rows[::-1], start=1):
                write_png(root / f"{sequence}/Ground/IMG-0004-{number:05d}.png", grey[plane])
        for name, label in (("t1_in", t1), ("t1_out", t1), ("t2", t2)):
            picture = pictures[name.removeprefix("t1_")]
            truths[f"{patient}_{name}"] = Truth((picture,), label, patient)
    test = folder / "CHAOS_Test_Sets/Test_Sets/MR/3/T2SPIR"
    write_dicom(test / "DICOM_anon", mr(4))
    truths["3_t2"] = Truth((mr(4),), None, "3", "Ts", "test")
    (test / "DICOM_anon/.DS_Store").write_bytes(b"x")
    return truths


def _chaos_bad_level(folder: Path) -> Truths:
    """A grey level of no organ: that case fails alone."""
    truths = _chaos(folder)
    ground = folder / "CHAOS_Train_Sets/Train_Sets/MR/2/T2SPIR/Ground/IMG-0004-00001.png"
    write_png(ground, np.full((SHAPE[1], SHAPE[0]), 90))
    return {name: truth for name, truth in truths.items() if name != "2_t2"}


def _kits19(folder: Path) -> Truths:
    """Slices are the first axis; one folder has no image yet; hidden companions."""
    root = folder / "kits19/data"
    truths: dict[str, Truth] = {}
    for number in (0, 160, 210):
        name, picture = f"case_{number:05d}", image(number)
        write(root / name / "imaging.nii.gz", picture, "SPL")
        label = anatomy({"kidney": 1, "tumour": 2}) if number < 210 else None
        if label is not None:
            write(root / name / "segmentation.nii.gz", label.astype(np.float64), "SPL")
        folder_name, role = ("Tr", "train") if number < 210 else ("Ts", "test")
        truths[name] = Truth((picture,), label, name, folder_name, role)
        companion(root / name / "imaging.nii.gz")
    write(root / "case_00001/segmentation.nii.gz", anatomy({"kidney": 1}), "SPL")
    write(root / "case_00002/imaging.nii.gz", image(2), "SPL")
    write_json(root / "kits.json", {})
    return truths


def _lits(folder: Path, flat: bool = False) -> Truths:
    """Identity affine, another affine for a label map, a case without tumour, a test volume."""
    truths: dict[str, Truth] = {}
    identity = np.diag([-1.0, -1.0, 1.0, 1.0])
    for number in (0, 2, 28, 29):
        place = folder if flat else folder / f"Training Batch {1 if number < 28 else 2}"
        picture = image(number)
        label = anatomy({"liver": 1} if number == 2 else {"liver": 1, "tumour": 2})
        header = identity if number >= 28 else None
        moved = np.diag([1.0, 1.5, 2.0, 1.0]) if number == 2 else header
        axes = "LPS" if number >= 28 else "RAS"
        write(place / f"volume-{number}.nii", picture, axes, claimed=header)
        write(place / f"segmentation-{number}.nii", label, axes, claimed=moved)
        truths[f"volume-{number}"] = Truth((picture,), label, f"volume-{number}")
    write(folder / "test/test-volume-0.nii", image(70))
    truths["test-volume-0"] = Truth((image(70),), None, "test-volume-0", "Ts", "test")
    (folder / "volume-5.nii").write_bytes(b"")
    return truths


def _lits_flat(folder: Path) -> Truths:
    return _lits(folder, flat=True)


def _mnms(folder: Path) -> Truths:
    """4-D files, two labelled frames, axes that are not perpendicular, `&` in a file name."""
    root = folder / "OpenDataset"
    labels = {"left ventricle": 1, "myocardium": 2, "right ventricle": 3}
    rows = ["External code,Vendor,VendorName,Centre,ED,ES,Pathology"]
    truths: dict[str, Truth] = {}
    places = {
        "A0S9V9": ("Training/Labeled", "Tr", "train"),
        "B1D2E3": ("Validation", "Tr", "validate"),
        "C4F5G6": ("Testing", "Ts", "test"),
        "D7H8I9": ("Training/Unlabeled", "Ts", "unlabelled"),
        "E1A1A1": ("Testing", "Ts", "test"),  # not in the table
    }
    sheared = ras_affine()
    sheared[0, 1] = 0.3
    for number, (code, (part, where, role)) in enumerate(places.items()):
        frames = np.stack([mr(10 * number + frame) for frame in range(4)], axis=-1)
        masks = np.zeros((*SHAPE, 4), np.uint8)
        masks[..., 1] = masks[..., 3] = anatomy(labels)
        has_label = part != "Training/Unlabeled"
        affine = sheared if part in ("Validation", "Testing") else None
        place = root / part / code
        write(place / f"{code}_sa.nii.gz", frames, affine=affine)
        if has_label:
            write(place / f"{code}_sa_gt.nii.gz", masks, affine=affine)
        if code != "E1A1A1":
            rows.append(f"{code},A,Siemens,1,1,3,HCM")
        for frame in (1, 3):
            truths[f"{code}_frame{frame:02d}"] = Truth(
                (frames[..., frame],), anatomy(labels) if has_label else None, code, where, role
            )
    table = root / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return truths


def _structseg(folder: Path, task: str, classes: tuple[str, ...]) -> Truths:
    """Folders 1, 10 and 2; a label map with another header than its image."""
    labels = {name: value for value, name in enumerate(classes, start=1)}
    truths: dict[str, Truth] = {}
    for number in ("1", "10", "2", "3"):
        picture, label = image(int(number)), anatomy(labels)
        moved = np.diag([1.0, 1.5, 2.0, 1.0]) if number == "10" else None
        write(folder / task / number / "data.nii.gz", picture, "RAS")
        write(folder / task / number / "label.nii.gz", label, "RAS", claimed=moved)
        truths[f"{task}_{number}"] = Truth((picture,), label, f"{task}_{number}")
    write(folder / "Naso_GTV/1/data.nii.gz", image())
    write(folder / task / "4/data.nii.gz", image())
    return truths


def _structseg_head(folder: Path) -> Truths:
    return _structseg(folder, "HaN_OAR", structseg.HEAD_AND_NECK)


def _structseg_thorax(folder: Path) -> Truths:
    return _structseg(folder, "Thoracic_OAR", structseg.THORAX)


def _csi(folder: Path, contrast: str, form: str) -> Truths:
    """Four contrasts, uncompressed; one missing; the label map of scan 16 on another grid."""
    truths: dict[str, Truth] = {}
    for number, scan in enumerate(("01", "03", "16")):
        part = "valid" if scan == "03" else "train"
        for c, name in enumerate(("fat", "inn", "opp", "wat")):
            if (scan, name) == ("03", "opp"):
                continue
            place = {"A": scan, "B": f"{part}/{scan}", "C": "dataset"}[form]
            write(folder / place / f"{scan}_{name}.nii", mr(10 * number + c), "PSR")
        label = anatomy({"intervertebral disc": 1})
        place = {"A": scan, "B": f"{part}/labels", "C": "label"}[form]
        path = folder / place / f"{scan}_Labels.nii"
        if scan == "16":
            # One voxel more to the left and behind: the same place in the patient.
            grown = np.pad(label, ((1, 0), (1, 0), (0, 0)))
            write(path, grown, affine=_moved(ras_affine(), (-1.0, -1.5, 0.0)))
        else:
            write(path, label, "PSR")
        if (scan, contrast) == ("03", "opp"):
            continue
        role = "validate" if (form, scan) == ("B", "03") else "train"
        seed = 10 * number + ("fat", "inn", "opp", "wat").index(contrast)
        truths[f"{scan}_{contrast}"] = Truth((mr(seed),), label, f"ivdm3seg_{scan}", role=role)
    return truths


def _moved(affine: np.ndarray, by: tuple[float, float, float]) -> np.ndarray:
    moved = affine.copy()
    moved[:3, 3] += by
    return moved


def _acdc(folder: Path) -> Truths:
    """4-D files beside the frames, Info.cfg, one patient whose frames it does not name."""
    labels = {"right ventricle": 1, "myocardium": 2, "left ventricle": 3}
    truths: dict[str, Truth] = {}
    for patient, part in ((1, "training"), (2, "training"), (101, "testing")):
        name = f"patient{patient:03d}"
        place = folder / "database" / part / name
        for frame in (1, 12):
            picture = mr(patient + frame)
            write(place / f"{name}_frame{frame:02d}.nii.gz", picture, "LPS")
            write(place / f"{name}_frame{frame:02d}_gt.nii.gz", anatomy(labels), "LPS")
            where = ("Tr", "train") if part == "training" else ("Ts", "test")
            key = f"{name}_frame{frame:02d}"
            truths[key] = Truth((picture,), anatomy(labels), name, *where)
        write(place / f"{name}_4d.nii.gz", np.zeros((*SHAPE, 2), np.int16))
        es = 10 if patient == 2 else 12
        (place / "Info.cfg").write_text(f"ED: 1\nES: {es}\nGroup: DCM\nHeight: 184.0\n")
    return truths


def _segthor(folder: Path) -> Truths:
    """Every label map has the same name; an unexpected value in one, a cut file in another."""
    labels = {"oesophagus": 1, "heart": 2, "trachea": 3, "aorta": 4}
    truths: dict[str, Truth] = {}
    for number in (1, 2, 3, 4):
        name, picture = f"Patient_{number:02d}", image(number)
        label = anatomy(labels)
        write(folder / f"train/{name}/{name}.nii.gz", picture, "LPS")
        stored = np.where(label == 4, 9, label) if number == 3 else label
        write(folder / f"train/{name}/GT.nii.gz", stored.astype(np.uint8), "LPS")
        if number < 3:
            truths[name] = Truth((picture,), label, name)
    cut = folder / "train/Patient_04/Patient_04.nii.gz"
    cut.write_bytes(cut.read_bytes()[:200])
    write(folder / "test/Patient_41.nii.gz", image(41), "LPS")
    truths["Patient_41"] = Truth((image(41),), None, "Patient_41", "Ts", "test")
    return truths


def _msd_pancreas(folder: Path) -> Truths:
    """Hidden companions; a case that is listed and not there."""
    root = folder / "Task07_Pancreas"
    truths: dict[str, Truth] = {}
    for number in ("001", "004"):
        name = f"pancreas_{number}"
        label = anatomy({"pancreas": 1, "cancer": 2})
        picture = image(int(number))
        write(root / f"imagesTr/{name}.nii.gz", picture)
        write(root / f"labelsTr/{name}.nii.gz", label)
        companion(root / f"imagesTr/{name}.nii.gz")
        truths[name] = Truth((picture,), label, name)
    write(root / "imagesTs/pancreas_002.nii.gz", image(2))
    truths["pancreas_002"] = Truth((image(2),), None, "pancreas_002", "Ts", "test")
    listed = [
        {"image": f"./imagesTr/pancreas_{n}.nii.gz", "label": f"./labelsTr/pancreas_{n}.nii.gz"}
        for n in ("001", "004", "005")
    ]
    content = {
        "name": "Pancreas",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "pancreas", "2": "cancer"},
        "training": listed,
        "test": ["./imagesTs/pancreas_002.nii.gz"],
    }
    write_json(root / "dataset.json", content)
    return truths


def _ctpelvic1k(folder: Path, masks: str) -> Truths:
    """An image without mask; hips exchanged in one case; sub-set 7 beside it."""
    truths: dict[str, Truth] = {}
    for number in (1, 2):
        name, picture = f"dataset6_CLINIC_{number:04d}", image(number)
        label = anatomy(ctpelvic1k.LABELS)
        write(folder / f"CTPelvic1K_dataset6_data/{name}_data.nii.gz", picture, "LPS")
        write(folder / f"{masks}/{name}_mask_4label.nii.gz", label, "LPS")
        truths[name] = Truth((picture,), label, name)
    write(folder / "CTPelvic1K_dataset6_data/dataset6_CLINIC_0003_data.nii.gz", image(3))
    metal = "CTPelvic1K_dataset7_mask/CLINIC_metal_0001_mask_4label.nii.gz"
    write(folder / metal, anatomy(ctpelvic1k.LABELS))
    return truths


def _pelvis_in(masks: str) -> Miniature:
    return Miniature(
        "ctpelvic1k",
        lambda folder: _ctpelvic1k(folder, masks),
        says=(
            "images without a label map, left out (1): dataset6_CLINIC_0003",
            "sub-set 7 (CLINIC-metal), left out (1): 0001",
            "also in other sets: whether CLINIC",
        ),
    )


def compressed(path: Path) -> Path:
    """A .nii as .nii.gz beside it, the plain file removed."""
    packed = path.with_name(f"{path.name}.gz")
    with path.open("rb") as plain, gzip.open(packed, "wb") as stream:
        shutil.copyfileobj(plain, stream)
    path.unlink()
    return packed


_AUTOPET_SAYS = ("study without SEG, left out (1): PETCT_9999999999_0", "no voxel of lesion (1)")

PAPER_SETS: tuple[Miniature, ...] = (
    Miniature(
        "amos_ct",
        lambda folder: _amos(folder)[0],
        says=("label geometry copied from the image (1): amos_0001", "a companion file"),
    ),
    Miniature(
        "amos_mr",
        lambda folder: _amos(folder)[1],
        says=(
            "label value 14 is set to background (2): amos_0507, amos_0540",
            "label value 15 is set to background (2)",
            "2 labelled cases found, the archive holds 60",
        ),
    ),
    Miniature(
        "autopet",
        lambda folder: _autopet_nifti(folder, 1),
        says=(*_AUTOPET_SAYS, "an unfinished download (1)"),
    ),
    Miniature(
        "autopet_petct",
        lambda folder: _autopet_nifti(folder, 2),
        says=("study without CTres, SEG, left out (1)",),
    ),
    Miniature(
        "autopet",
        lambda folder: _autopet_challenge(folder, 1),
        says=("studies of PSMA-PET", "2 labelled cases found, the archive holds 1014"),
    ),
    Miniature("autopet_petct", lambda folder: _autopet_challenge(folder, 2)),
    Miniature(
        "bcv",
        _bcv,
        says=(
            "direction of the header was wrong and is set (1): img0032",
            "label maps without an image, left out (1): img0033",
            "no voxel of gallbladder (1): img0022",
            "also in other sets: CTPelvic1K",
        ),
        author={"img0001": "train", "img0022": "test", "img0032": "validate", "img0061": "test"},
    ),
    Miniature(
        "brain_dlbs",
        _brain,
        says=(
            "of other studies than DLBS, left out (1): ixi002",
            "fewer than three masks, left out (1): dlbs_0028404",
            "files without compression",
        ),
    ),
    Miniature(
        "chaos_mr",
        _chaos,
        says=("9 labelled cases found", "a companion file"),
        author={f"{p}_{c}": "train" for p in (1, 10, 2) for c in ("t1_in", "t1_out", "t2")}
        | {"3_t2": "test"},
        spacing=CHAOS_SPACING,
    ),
    Miniature("chaos_mr", _chaos_bad_level, failed=("2_t2",), spacing=CHAOS_SPACING),
    Miniature(
        "kits19",
        _kits19,
        says=(
            "label maps without an image, left out (1): case_00001",
            "images without a label map, left out (1): case_00002",
            "a companion file of an archive or a file manager (3)",
            "also in other sets: KiTS21",
        ),
    ),
    Miniature(
        "lits",
        _lits,
        says=(
            "label geometry copied from the image (1): volume-2",
            "slice distance of 1 mm in the header replaced by the author's; 1 mm in plane is kept"
            " (1): volume-28",
            "spacing of 1 mm in the header is not true; no published repair, kept (1): volume-29",
            "no voxel of tumour (1): volume-2",
            "an empty file (1)",
            "also in other sets: MSD Task03 Liver is LiTS",
        ),
    ),
    Miniature("lits", _lits_flat, says=("3D-IRCADb",)),
    Miniature(
        "mnms",
        _mnms,
        says=("not in the table; frames with a label are taken (1): E1A1A1", "seven validation"),
        author={
            "A0S9V9_frame01": "train",
            "B1D2E3_frame03": "test",
            "C4F5G6_frame01": "test",
            "D7H8I9_frame01": "unlabelled",
        },
    ),
    Miniature(
        "structseg_head_neck",
        _structseg_head,
        says=(
            "label geometry copied from the image (1): HaN_OAR_10",
            "images without a label map, left out (1): HaN_OAR_4",
        ),
        author={"HaN_OAR_1": "test", "HaN_OAR_2": "test", "HaN_OAR_3": "train"},
    ),
    Miniature(
        "structseg_thorax",
        _structseg_thorax,
        says=("label geometry copied",),
        author={"Thoracic_OAR_1": "test", "Thoracic_OAR_2": "train", "Thoracic_OAR_3": "validate"},
    ),
    Miniature(
        "csi_wat",
        lambda folder: _csi(folder, "wat", "A"),
        says=(
            "label map resampled to the grid of its image (largest linear weight) (1): 16_wat",
            "files without compression, written as .nii.gz with equal voxels (3)",
            "also in other sets: csi_wat, csi_inn, csi_opp and csi_fat are the same scans",
            "persons are not known",
        ),
    ),
    Miniature("csi_inn", lambda folder: _csi(folder, "inn", "B")),
    Miniature(
        "csi_opp",
        lambda folder: _csi(folder, "opp", "C"),
        says=("scans without the contrast opp (1): 03",),
    ),
    Miniature("csi_fat", lambda folder: _csi(folder, "fat", "A")),
    Miniature("acdc", _acdc, says=("frames are not ED and ES of Info.cfg (1): patient002",)),
    Miniature("segthor", _segthor, failed=("Patient_03", "Patient_04")),
    Miniature(
        "msd_pancreas",
        _msd_pancreas,
        says=("listed cases that are not here, left out (1): ./imagesTr/pancreas_005", "companion"),
    ),
    _pelvis_in("ipcai2021_dataset6_Anonymized"),
    _pelvis_in("CTPelvic1K_dataset6_Anonymized_mask"),
    _pelvis_in("CTPelvic1K_dataset6_mask"),
)
