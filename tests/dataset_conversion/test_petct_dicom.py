"""AutoPET in DICOM form: SUV, lesions by plane, series told apart by modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset_conversion.petct_dicom import suv_factor
from dataset_conversion.registry import run
from iris_cli.dataset.raw import read_raw_dataset
from iris_cli.errors import DataRefused
from tests.dataset_conversion.miniature import SHAPE, anatomy, mr, read_canonical, write_dicom

pydicom: Any = pytest.importorskip("pydicom")

SPACING = (2.0, 2.0, 3.0)
# 350 MBq, one half-life of waiting, 70 kg: 70000 g / 175e6 Bq.
FACTOR = 70_000 / 175e6


def write_study(folder: Path, *, flipped: bool = False, lesion: bool = True) -> None:
    """CT, PET and segmentation of a study; flipped: frames run against the slices of the PET."""
    write_dicom(folder / "1.000000-CT-1", mr(5), modality="CT", spacing=SPACING)
    for path in write_dicom(folder / "2.000000-PET-2", mr(1), modality="PT", spacing=SPACING):
        _complete(path)
    label = anatomy({"lesion": 1}) if lesion else np.zeros(SHAPE, np.uint8)
    _write_segmentation(folder / "3.000000-SEG-3/1-1.dcm", label, flipped)


def _complete(path: Path) -> None:
    header = pydicom.dcmread(path)
    tracer = pydicom.Dataset()
    tracer.RadionuclideTotalDose = "350000000"
    tracer.RadionuclideHalfLife = "6586.2"
    tracer.RadiopharmaceuticalStartTime = "100000.00"
    header.RadiopharmaceuticalInformationSequence = [tracer]
    header.AcquisitionTime = "114946.20"
    header.PatientWeight = "70"
    header.Units = "BQML"
    header.save_as(path)


def _write_segmentation(path: Path, canonical: np.ndarray, flipped: bool) -> None:
    """A binary segmentation object, bits packed; planes that hold something, from the head."""
    stored = canonical[::-1, ::-1].transpose(2, 1, 0)
    planes = [z for z in range(len(stored)) if stored[z].any()][::-1] or [0]
    seg = pydicom.Dataset()
    seg.file_meta = pydicom.dataset.FileMetaDataset()
    seg.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    seg.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    seg.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    seg.Modality = "SEG"
    seg.SOPClassUID, seg.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.3.4"
    seg.NumberOfFrames, seg.Rows, seg.Columns = len(planes), SHAPE[1], SHAPE[0]
    seg.BitsAllocated = seg.BitsStored = seg.SamplesPerPixel = 1
    seg.HighBit = seg.PixelRepresentation = 0
    seg.PhotometricInterpretation = "MONOCHROME2"
    frames = stored[planes]
    frames = frames[:, ::-1, ::-1] if flipped else frames
    packed = np.packbits(frames.ravel(), bitorder="little").tobytes()
    seg.PixelData = packed + b"\0" * (len(packed) % 2)
    shared, orientation = pydicom.Dataset(), pydicom.Dataset()
    orientation.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0] if flipped else [1, 0, 0, 0, 1, 0]
    shared.PlaneOrientationSequence = [orientation]
    seg.SharedFunctionalGroupsSequence = [shared]
    corner = [-4 + 2 * (SHAPE[0] - 1), -5 + 2 * (SHAPE[1] - 1)] if flipped else [-4, -5]
    seg.PerFrameFunctionalGroupsSequence = [_group([*corner, z * SPACING[2]]) for z in planes]
    path.parent.mkdir(parents=True)
    pydicom.dcmwrite(path, seg, enforce_file_format=True)


def _group(position: list[float]) -> Any:
    group, place = pydicom.Dataset(), pydicom.Dataset()
    place.ImagePositionPatient = position
    group.PlanePositionSequence = [place]
    return group


def test_pet_becomes_suv_and_lesions_lie_where_they_were(tmp_path: Path) -> None:
    patient = tmp_path / "FDG-PET-CT-Lesions/PETCT_00aa11bb22"
    write_study(patient / "12-29-2002-NA-PET-CT Ganzkoerper  primaer mit KM-1", lesion=False)
    write_study(patient / "03-23-2003-NA-PET-CT Ganzkoerper nativ-2", flipped=True)
    report = run("autopet", tmp_path, tmp_path / "raw")
    assert report.exit_code == 0, report.run.failed
    raw = read_raw_dataset(tmp_path / "raw")
    assert [case.name for case in raw.cases] == ["PETCT_00aa11bb22_0", "PETCT_00aa11bb22_1"]
    assert {case.subject for case in raw.cases} == {"PETCT_00aa11bb22"}
    for case, lesion in zip(raw.cases, (False, True), strict=True):
        assert case.label is not None
        found, affine = read_canonical(case.images[0])
        assert np.allclose(found, mr(1) * FACTOR, rtol=1e-5)
        labels, label_affine = read_canonical(case.label)
        assert np.array_equal(labels, anatomy({"lesion": 1} if lesion else {}))
        assert np.allclose(affine, label_affine)


def test_both_channels_need_the_nifti_form(tmp_path: Path) -> None:
    write_study(tmp_path / "PETCT_00aa11bb22/12-29-2002-NA-PET-1")
    with pytest.raises(DataRefused, match="nothing here looks like") as caught:
        run("autopet_petct", tmp_path, tmp_path / "raw")
    assert "use autopet" in str(caught.value)


@pytest.mark.parametrize("key", ["PatientWeight", "AcquisitionTime", "Units"])
def test_a_pet_without_what_suv_needs_is_refused(tmp_path: Path, key: str) -> None:
    write_study(tmp_path)
    path = next((tmp_path / "2.000000-PET-2").iterdir())
    assert suv_factor(path) == pytest.approx(FACTOR)
    header = pydicom.dcmread(path)
    delattr(header, key)
    header.save_as(path)
    with pytest.raises(DataRefused):
        suv_factor(path)
