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
from iris_cli.preparation.codes import Code
from iris_cli.preparation.findings import (
    DataDefects,
    IntegrityReport,
    raise_if_refused,
    summary_rows,
)
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


def write_header(path: Path, change: Callable[[nib.Nifti1Image], object]) -> None:
    """The same voxels under another header."""
    image = nib.load(path)
    again = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    change(again)
    nib.save(again, path)


def other_affine(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    write_header(path, lambda i: i.set_sform(change(i.affine), 1) or i.set_qform(None, 0))


def both_affine(folder: Path, case: str, affine: np.ndarray) -> None:
    """Image (both channels) and label map of a case under one affine."""
    for path in (image_file(folder, case), image_file(folder, case, 1), label_file(folder, case)):
        other_affine(path, lambda _: affine)


def no_codes(path: Path) -> None:
    write_header(path, lambda i: i.set_sform(None, 0) or i.set_qform(None, 0))


def other_qform(path: Path) -> None:
    write_header(path, lambda i: i.set_qform(i.affine + 3.0 * np.eye(4, k=3), 1))


def sheared(affine: np.ndarray) -> np.ndarray:
    return affine @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def transposed(path: Path) -> None:
    """Axes x and z exchanged, the header left as it was."""
    image = nib.load(path)
    array = np.asarray(image.dataobj).transpose(2, 1, 0)
    nib.save(nib.Nifti1Image(array, image.affine), path)


def stored_otherwise(path: Path) -> None:
    """Voxels and header turned together: the volume lies where it lay."""
    image = nib.load(path)
    axes = nib.orientations.axcodes2ornt("LPS")
    nib.save(image.as_reoriented(axes), path)


def mirrored(path: Path) -> None:
    """Voxels turned round in x, the header left as it was."""
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), path)


LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
FLIP_X = np.diag([-1.0, 1.0, 1.0, 1.0])

Damage = Callable[[Path, str], object]
DEFECTS: dict[str, tuple[Code, Damage]] = {
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
    "label in LPS": (
        Code.GRID_FLIPPED,
        lambda f, c: other_affine(label_file(f, c), lambda affine: LPS @ affine),
    ),
    "label header flipped": (
        Code.GRID_FLIPPED,
        lambda f, c: other_affine(label_file(f, c), lambda affine: affine @ FLIP_X),
    ),
    "label transposed": (Code.GRID_FLIPPED, lambda f, c: transposed(label_file(f, c))),
    "label stored otherwise": (
        Code.GRID_REORIENTED,
        lambda f, c: stored_otherwise(label_file(f, c)),
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
    "label mirrored": (Code.SIDES_SWAPPED, lambda f, c: mirrored(label_file(f, c))),
    "label of another": (
        Code.LABEL_TWICE,
        lambda f, c: shutil.copy(label_file(f, "good_1"), label_file(f, c)),
    ),
    "class not annotated": (Code.UNANNOTATED_PRESENT, lambda f, c: None),
    "missing label": (Code.MISSING_LABEL, lambda f, c: label_file(f, c).unlink()),
    "missing image": (
        Code.LABEL_WITHOUT_IMAGE,
        lambda f, c: [image_file(f, c, i).unlink() for i in (0, 1)],
    ),
    "missing channel": (Code.MISSING_CHANNEL, lambda f, c: image_file(f, c, 1).unlink()),
    "extra channel": (
        Code.EXTRA_CHANNEL,
        lambda f, c: shutil.copy(image_file(f, c), image_file(f, c, 2)),
    ),
    "channel copied": (
        Code.SAME_CHANNELS,
        lambda f, c: shutil.copy(image_file(f, c), image_file(f, c, 1)),
    ),
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
    "no affine": (Code.NO_POSITION, lambda f, c: no_codes(image_file(f, c))),
    "affine of zeros": (
        Code.BAD_GEOMETRY,
        lambda f, c: other_affine(
            image_file(f, c), lambda affine: affine * 0 + np.diag([0.0] * 3 + [1])
        ),
    ),
    "unit affine": (Code.UNIT_AFFINE, lambda f, c: both_affine(f, c, np.eye(4))),
    "sheared": (Code.SHEARED, lambda f, c: both_affine(f, c, sheared(grid().affine))),
    "qform elsewhere": (Code.SFORM_QFORM, lambda f, c: other_qform(image_file(f, c))),
    "micrometres": (
        Code.SPACING_UNITS,
        lambda f, c: both_affine(f, c, np.diag([0.001, 0.001, 0.002, 1.0])),
    ),
    "metres": (Code.SPACING_UNITS, lambda f, c: both_affine(f, c, np.diag([1e3, 1e3, 2e3, 1.0]))),
    "centimetres": (
        Code.SPACING_OUTLIER,
        lambda f, c: both_affine(f, c, np.diag([10.0, 10.0, 20.0, 1.0])),
    ),
    "field of view of 20 m": (
        Code.ODD_EXTENT,
        lambda f, c: both_affine(f, c, np.diag([7.0, 1.0, 300.0, 1.0])),
    ),
    "some NaN": (Code.NAN, lambda f, c: nonfinite(image_file(f, c), 38)),
    "many NaN": (Code.MANY_NAN, lambda f, c: nonfinite(image_file(f, c), 39)),
    "constant image": (
        Code.CONSTANT_IMAGE,
        lambda f, c: write_image(image_file(f, c), np.full(SHAPE, 3.0), grid()),
    ),
    "image is the label map": (
        Code.IMAGE_IS_LABEL,
        lambda f, c: shutil.copy(label_file(f, c), image_file(f, c)),
    ),
    "image twice": (
        Code.IMAGE_TWICE,
        lambda f, c: shutil.copy(image_file(f, "good_1"), image_file(f, c)),
    ),
}


def seeded(folder: Path) -> Path:
    """One set with every defect in a case of its own, beside good cases."""
    names = [name.replace(" ", "_") for name in DEFECTS]
    make_set(
        folder,
        ["good_1", "good_2", "Good_2", "stra\u00dfe", "strasse", *names],
        channels={"0": "MR T1", "1": "MR T2"},
        labels={"left": 1, "right": 2, "never": 5},
        test=("held",),
        iris={
            "subjects": {"good_1": "same", "held": "same", "good_2": "p", "Good_2": "P"},
            "not_annotated": {"class_not_annotated": ["left"]},
        },
    )
    for (_, damage), name in zip(DEFECTS.values(), names, strict=True):
        damage(folder, name)
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> IntegrityReport:
    return report_of(seeded(tmp_path_factory.mktemp("raw") / "broken"))


@pytest.mark.parametrize("defect", list(DEFECTS))
def test_every_defect_is_found_in_one_pass(report: IntegrityReport, defect: str) -> None:
    """R4, twice over: every seeded defect of every case stands in one report, by its code."""
    code, _ = DEFECTS[defect]
    case = defect.replace(" ", "_")
    found = [f for f in report.findings if f.code is code]
    if code in (Code.IMAGE_TWICE, Code.LABEL_TWICE):  # of both cases, under the first one's name
        assert any(case in str(f.found) for f in found)
    else:
        assert case in {f.case for f in found}


def test_good_cases_among_them_have_no_findings_of_their_own(report: IntegrityReport) -> None:
    about_names = {
        Code.NAMES_ALIKE, Code.SUBJECT_ACROSS_ROLES, Code.IMAGE_TWICE, Code.LABEL_TWICE,
    }  # fmt: skip
    for case in ("good_1", "good_2", "Good_2", "held"):
        assert codes(report, case) <= about_names


def test_findings_about_the_whole_set(report: IntegrityReport) -> None:
    by_code = {f.code: f for f in report.findings}
    alike = [f.found for f in report.findings if f.code is Code.NAMES_ALIKE]
    assert alike == ["Good_2, good_2", "strasse, straße"]
    assert by_code[Code.SUBJECTS_ALIKE].found == "P, p"
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
    flipped = {f.case: f.message for f in report.findings if f.code is Code.GRID_FLIPPED}
    assert "the signs of x, y the other way round" in flipped["label_in_LPS"]
    assert "axes run to LAS, the image's to RAS" in flipped["label_header_flipped"]
    assert "its axes are exchanged" in flipped["label_transposed"]
    swapped = {f.case: f.found for f in report.findings if f.code is Code.SIDES_SWAPPED}
    assert "'left' lies 7" in str(swapped["label_mirrored"])
    units = {f.case: f.found for f in report.findings if f.code is Code.SPACING_UNITS}
    assert "1e+03 times the set's" in str(units["metres"])


def test_the_refusal_lists_every_error_of_every_set(report: IntegrityReport) -> None:
    with pytest.raises(DataDefects) as caught:
        raise_if_refused([report])
    text = str(caught.value)
    assert all(f.case in text and f"[{f.code}]" in text for f in report.errors if f.case)
    assert f"{len(report.errors)} findings" in text
    assert "--accept sides-swapped" in text
    assert caught.value.exit_code == 4
    assert caught.value.reports == (report,)
    assert report.to_json()["errors"] == len(report.errors) >= 20
    rows = summary_rows([report])
    assert sum(row[2] for row in rows) == len(report.findings)
    assert [row[1] == "warned" for row in rows] == sorted(row[1] == "warned" for row in rows)


def test_good_data_have_no_findings_and_are_measured(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "good", test=("t",), unlabelled=("u",))
    write_labels(label_file(folder, "d"), blobs(12), grid())  # the boxes of c and d are alike
    report = report_of(folder)
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


def subjects_report(folder: Path, roles: dict[str, str], lost: str = "") -> IntegrityReport:
    """Cases a and b are of one subject; `lost` loses its label map."""
    iris = {"subjects": {"a": "s", "b": "s"}, "roles": roles}
    make_set(folder, ("a", "b", "c"), iris=iris)
    if lost:
        label_file(folder, lost).unlink()
    else:
        shutil.copy(image_file(folder, "a"), image_file(folder, "a", 1))  # extra-channel
    return report_of(folder)


@pytest.mark.parametrize(
    ("roles", "lost", "leaks"),
    [
        ({"a": "train", "b": "validate"}, "", True),
        ({"a": "validate", "b": "unlabelled"}, "", True),
        ({"a": "train", "b": "unlabelled"}, "", False),
        ({}, "a", False),
        ({"b": "validate"}, "a", True),  # accepted, a is trained on as an unlabelled case
        ({"a": "validate", "b": "train"}, "a", False),
    ],
)
def test_a_subject_is_never_scored_and_trained_on_whatever_is_accepted(
    tmp_path: Path, roles: dict[str, str], lost: str, leaks: bool
) -> None:
    accepted = {Code.EXTRA_CHANNEL, Code.MISSING_LABEL}
    found = {f.code for f in subjects_report(tmp_path / "set", roles, lost).errors} - accepted
    assert found == ({Code.SUBJECT_ACROSS_ROLES} if leaks else set())
