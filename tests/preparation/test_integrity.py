"""Integrity: every seeded defect is in one report, with its numbers, and good data give none."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from iris_cli.dataset.raw import read_raw_dataset
from iris_cli.errors import DataRefused
from iris_cli.preparation.findings import Code, IntegrityReport, raise_if_refused
from iris_cli.preparation.integrity import check_dataset
from iris_cli.volume.grid import Grid
from iris_cli.volume.writing import write_image, write_labels
from tests.preparation.raw_sets import (
    SHAPE,
    blobs,
    grid,
    image_file,
    label_file,
    make_set,
    picture,
)


def report_of(folder: Path) -> IntegrityReport:
    return check_dataset(read_raw_dataset(folder, strict=False))


def codes(report: IntegrityReport, case: str | None) -> set[Code]:
    return {finding.code for finding in report.findings if finding.case == case}


def write_float_nifti(path: Path, array_xyz: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(array_xyz.astype(np.float32), np.diag([1.0, 1, 2, 1])), path)


def moved(millimetres: float) -> Grid:
    affine = grid().affine.copy()
    affine[0, 3] += millimetres
    return Grid(SHAPE, affine)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(bytes(data))


def nonfinite(path: Path, voxels: int) -> None:
    array = picture(blobs(0), 0)
    array.reshape(-1)[:voxels] = np.nan
    write_image(path, array, grid())


def labels_with(folder: Path, case: str, value: int) -> None:
    label = blobs(0).astype(np.int32)
    label[0, 0, :5] = value
    write_labels(label_file(folder, case), label, grid())


DEFECTS: dict[str, tuple[Code, Callable[[Path, str], object]]] = {
    "label grid moved": (
        Code.GRID_DIFFERENT,
        lambda f, c: write_labels(label_file(f, c), blobs(0), moved(0.5)),
    ),
    "label spacing": (
        Code.GRID_DIFFERENT,
        lambda f, c: write_labels(label_file(f, c), blobs(0), grid(spacing_xyz=(1, 1, 2.5))),
    ),
    "label shape": (
        Code.GRID_DIFFERENT,
        lambda f, c: write_labels(label_file(f, c), blobs(0)[:-1], grid((11, 16, 20))),
    ),
    "label grid rounded": (
        Code.GRID_ROUNDING,
        lambda f, c: write_labels(label_file(f, c), blobs(0), moved(0.05)),
    ),
    "undeclared value": (Code.UNDECLARED_VALUE, lambda f, c: labels_with(f, c, 7)),
    "negative value": (Code.UNDECLARED_VALUE, lambda f, c: labels_with(f, c, -1)),
    "16-bit value": (Code.UNDECLARED_VALUE, lambda f, c: labels_with(f, c, 40000)),
    "non-integer labels": (
        Code.NON_INTEGER_LABELS,
        lambda f, c: write_float_nifti(label_file(f, c), np.full((20, 16, 12), 0.5)),
    ),
    "empty labels": (
        Code.EMPTY_LABEL,
        lambda f, c: write_labels(label_file(f, c), blobs(0) * 0, grid()),
    ),
    "missing label": (Code.MISSING_LABEL, lambda f, c: label_file(f, c).unlink()),
    "missing image": (
        Code.LABEL_WITHOUT_IMAGE,
        lambda f, c: [image_file(f, c, i).unlink() for i in (0, 1)],
    ),
    "missing channel": (Code.MISSING_CHANNEL, lambda f, c: image_file(f, c, 1).unlink()),
    "channel on another grid": (
        Code.CHANNEL_GRID,
        lambda f, c: write_image(image_file(f, c, 1), picture(blobs(0), 0), moved(3)),
    ),
    "channel of another shape": (
        Code.CHANNEL_GRID,
        lambda f, c: write_image(
            image_file(f, c, 1), picture(blobs(0), 0)[:-2], grid((10, 16, 20))
        ),
    ),
    "truncated image": (Code.UNREADABLE, lambda f, c: truncate(image_file(f, c))),
    "truncated label": (Code.UNREADABLE, lambda f, c: truncate(label_file(f, c))),
    "damaged image": (Code.UNREADABLE, lambda f, c: flip_byte(image_file(f, c))),
    "not a volume": (
        Code.UNREADABLE,
        lambda f, c: image_file(f, c).write_bytes(gzip.compress(b"no header")),
    ),
    "2-D": (Code.NOT_3D, lambda f, c: write_float_nifti(image_file(f, c), np.ones((20, 16)))),
    "4-D": (
        Code.NOT_3D,
        lambda f, c: write_float_nifti(image_file(f, c), np.ones((20, 16, 12, 3))),
    ),
    "some NaN": (Code.NONFINITE, lambda f, c: nonfinite(image_file(f, c), 38)),
    "many NaN": (Code.NONFINITE, lambda f, c: nonfinite(image_file(f, c), 39)),
    "constant image": (
        Code.CONSTANT_IMAGE,
        lambda f, c: write_image(image_file(f, c), np.full(SHAPE, 3.0), grid()),
    ),
    "image twice": (
        Code.DUPLICATE_IMAGE,
        lambda f, c: shutil.copy(image_file(f, "good_1"), image_file(f, c)),
    ),
}
WARNINGS = {"label grid rounded", "empty labels", "some NaN", "constant image"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> IntegrityReport:
    """One set with every defect in a case of its own, beside good cases."""
    folder = tmp_path_factory.mktemp("raw") / "broken"
    names = [name.replace(" ", "_") for name in DEFECTS]
    make_set(
        folder,
        ["good_1", "good_2", "Good_2", *names],
        channels={"0": "MR T1", "1": "MR T2"},
        labels={"one": 1, "two": 2, "never": 5},
        test=("held",),
        iris={"subjects": {"good_1": "same", "held": "same"}},
    )
    for (_, damage), name in zip(DEFECTS.values(), names, strict=True):
        damage(folder, name)
    return report_of(folder)


@pytest.mark.parametrize("defect", list(DEFECTS))
def test_every_defect_is_found_in_one_pass(report: IntegrityReport, defect: str) -> None:
    code, _ = DEFECTS[defect]
    case = defect.replace(" ", "_")
    found = [f for f in report.findings if f.code is code]
    if code is Code.DUPLICATE_IMAGE:
        assert any(case in str(f.found) for f in found)
        return
    assert case in {f.case for f in found}
    severity = next(f.severity for f in found if f.case == case)
    assert severity == ("warning" if defect in WARNINGS else "error")


def test_findings_about_the_whole_set(report: IntegrityReport) -> None:
    by_code = {f.code: f for f in report.findings}
    assert by_code[Code.DUPLICATE_CASE].found == "Good_2, good_2"
    assert "test, train: good_1, held" in str(by_code[Code.SUBJECT_ACROSS_ROLES].found)
    assert "'never'" in by_code[Code.CLASS_NEVER_SEEN].message


def test_differences_of_grids_come_with_their_numbers(report: IntegrityReport) -> None:
    by_case = {f.case: f for f in report.findings if f.code is Code.GRID_DIFFERENT}
    assert "origin (5.5, " in str(by_case["label_grid_moved"].found)
    assert "origin (5, " in str(by_case["label_grid_moved"].expected)
    assert by_case["label_spacing"].found == "spacing (1, 1, 2.5)"
    assert "(20, 16, 11)" in str(by_case["label_shape"].found)
    values = {f.case: f for f in report.findings if f.code is Code.UNDECLARED_VALUE}
    assert values["undeclared_value"].found == "7 (5 voxels)"
    assert values["undeclared_value"].expected == "0, 1, 2, 5"


def test_the_refusal_lists_every_error_of_every_set(report: IntegrityReport) -> None:
    with pytest.raises(DataRefused) as caught:
        raise_if_refused([report])
    text = str(caught.value)
    assert all(f.case in text for f in report.errors if f.case)
    assert f"{len(report.errors)} findings" in text
    assert caught.value.exit_code == 4
    assert len(report.to_rows()) == len(report.findings)
    assert report.to_json()["errors"] == len(report.errors) >= 20


def test_good_data_have_no_findings_and_are_measured(tmp_path: Path) -> None:
    report = report_of(make_set(tmp_path / "good", test=("t",), unlabelled=("u",)))
    assert report.findings == ()
    report.raise_if_refused()
    assert [fact.case for fact in report.facts] == ["a", "b", "c", "d", "e", "u"]
    fact = report.facts[0]
    assert fact.spacing_zyx_mm == (2.0, 1.0, 1.0)
    assert fact.classes["one"].voxels == 6 * 7 * 7
    assert fact.classes["one"].volume_mm3 == 6 * 7 * 7 * 2
    assert fact.classes["two"].extent_mm == (8.0, 4.0, 5.0)
    assert fact.extent_mm == 13.0
    assert fact.guesses == ("other",)
    assert not report.facts[-1].labelled


def test_test_cases_are_checked_but_never_measured(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", test=("held",))
    truncate(folder / "labelsTs" / "held.nii.gz")
    report = report_of(folder)
    assert codes(report, "held") == {Code.UNREADABLE}
    assert "held" not in {fact.case for fact in report.facts}


def test_modality_against_the_declaration_is_a_warning(tmp_path: Path) -> None:
    report = report_of(make_set(tmp_path / "set", ("a",), channels={"0": "CT"}))
    assert [(f.code, f.severity) for f in report.findings] == [(Code.MODALITY, "warning")]


def test_the_same_report_from_workers(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", ("a", "b", "c"))
    truncate(image_file(folder, "b"))
    raw = read_raw_dataset(folder, strict=False)
    assert check_dataset(raw, workers=2) == check_dataset(raw)


@pytest.mark.parametrize("role", ["test", "validate"])
def test_a_copy_of_a_case_in_another_role_is_refused_with_both_names(
    tmp_path: Path, role: str
) -> None:
    folder = make_set(tmp_path / "s", iris={"roles": {"b": role}})
    shutil.copy(image_file(folder, "a"), image_file(folder, "b"))
    report = report_of(folder)
    with pytest.raises(DataRefused, match=rf"a \(train\), b \({role}\)") as caught:
        raise_if_refused([report])
    assert 'one subject under "iris".subjects' in str(caught.value)
