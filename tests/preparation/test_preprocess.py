"""One case into the store: what is stored, kept, computed again, and refused."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iris_cli.errors import DataRefused
from iris_cli.execution.jobs import CaseJob, run_cases
from iris_cli.preparation import preprocess as room
from iris_cli.preparation.preprocess import PreprocessPayload, preprocess_case
from iris_cli.preparation.profiles import normalise
from iris_cli.preparation.store import list_cases, open_case
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


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_set(tmp_path / "raw", ("a",), channels={"0": "MR T1", "1": "MR T2"})


@pytest.fixture
def payload(raw: Path, tmp_path: Path) -> PreprocessPayload:
    return PreprocessPayload(
        folder=tmp_path / "store",
        set="set",
        case="a",
        subject="s",
        role="train",
        images=(image_file(raw, "a"), image_file(raw, "a", 1)),
        label=label_file(raw, "a"),
        modalities=("other", "other"),
        classes={"one": (1,), "two": (2,), "both": (1, 2)},
        ignore_value=None,
        not_annotated=frozenset(),
        absent_is_background=True,
        spacing_mm=1.0,
    )


def changed(payload: PreprocessPayload, **changes: Any) -> PreprocessPayload:
    return dataclasses.replace(payload, **changes)


def contents(folder: Path) -> dict[str, Any]:
    return {f.name: json.loads(f.read_text())["content"] for f in sorted(folder.glob("*.json"))}


def written(folder: Path) -> dict[str, int]:
    return {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}


def test_every_channel_is_a_view_with_the_label_map(payload: PreprocessPayload) -> None:
    result = preprocess_case(payload)
    assert result.status == "done"
    assert list_cases(payload.folder) == ("a", "a@1") == tuple(result.receipt["views"])
    first, second = (open_case(payload.folder, name) for name in ("a", "a@1"))
    assert first.stored.shape == (24, 16, 20)
    assert second.stored.channel == 1
    np.testing.assert_array_equal(first.label(), second.label())
    assert set(np.unique(first.label())) == {0, 1, 2}
    classes = first.stored.classes
    assert classes["both"].voxels == classes["one"].voxels + classes["two"].voxels > 0
    places = np.array(classes["two"].coordinates)
    assert (first.label()[tuple(places.T)] == 2).all()


def test_image_is_normalised_on_the_native_grid(payload: PreprocessPayload) -> None:
    preprocess_case(changed(payload, images=payload.images[:1], modalities=("other",)))
    stored = open_case(payload.folder, "a").stored
    native = normalise(picture(blobs(0), 0), "other")
    assert stored.statistics == native.statistics
    assert stored.fill == native.fill


def test_a_rerun_keeps_everything(payload: PreprocessPayload) -> None:
    preprocess_case(payload)
    before = written(payload.folder)
    assert preprocess_case(payload).status == "kept"
    assert written(payload.folder) == before


def test_two_runs_have_equal_content(payload: PreprocessPayload, tmp_path: Path) -> None:
    preprocess_case(payload)
    preprocess_case(changed(payload, folder=tmp_path / "again"))
    assert contents(payload.folder) == contents(tmp_path / "again")


@pytest.mark.parametrize(
    "change",
    [
        {"classes": {"one": (1,), "two": (2,)}},
        {"role": "validate"},
        {"subject": "other"},
        {"spacing_mm": 2.0},
        {"not_annotated": frozenset({"two"})},
        {"modalities": ("ct", "ct")},
    ],
)
def test_a_changed_parameter_is_computed_again(
    payload: PreprocessPayload, change: dict[str, Any]
) -> None:
    preprocess_case(payload)
    before = contents(payload.folder)
    assert preprocess_case(changed(payload, **change)).status == "done"
    assert contents(payload.folder)["a.json"] != before["a.json"]


def test_only_the_channel_that_changed_is_computed_again(
    payload: PreprocessPayload,
) -> None:
    preprocess_case(payload)
    before = written(payload.folder)
    write_image(payload.images[1], picture(blobs(0), 99), grid())
    assert preprocess_case(payload).status == "done"
    after = written(payload.folder)
    same = {name for name in before if before[name] == after[name]}
    assert same == {"a.json", "a.image.b2nd", "a.label.b2nd"}


def test_a_changed_label_map_is_computed_again(payload: PreprocessPayload) -> None:
    preprocess_case(payload)
    assert payload.label is not None
    write_labels(payload.label, blobs(5), grid())
    assert preprocess_case(payload).status == "done"
    assert open_case(payload.folder, "a").label().sum() == 2 * blobs(5).astype(int).sum()


def test_a_file_written_anew_with_equal_voxels_is_kept(payload: PreprocessPayload) -> None:
    preprocess_case(payload)
    for path in payload.images:
        os.utime(path, ns=(1, 1))
    assert preprocess_case(payload).status == "kept"


def test_files_with_known_size_and_time_are_not_read_again(
    payload: PreprocessPayload, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess_case(payload)
    monkeypatch.delattr(room, "read_image")
    monkeypatch.delattr(room, "read_labels")
    assert preprocess_case(payload).status == "kept"


@pytest.mark.parametrize("name", ["a.json", "a.image.b2nd", "a.label.b2nd"])
def test_a_missing_or_cut_output_is_computed_again(payload: PreprocessPayload, name: str) -> None:
    preprocess_case(payload)
    before = contents(payload.folder)
    file = payload.folder / name
    file.write_bytes(file.read_bytes()[:-7])
    assert preprocess_case(payload).status == "done"
    assert contents(payload.folder) == before
    assert preprocess_case(payload).status == "kept"


def test_leftovers_of_a_killed_run_are_removed(payload: PreprocessPayload) -> None:
    payload.folder.mkdir()
    leftover = payload.folder / ".a.image.b2nd.999999999-abcdef01.partial.b2nd"
    other = payload.folder / ".b.image.b2nd.999999999-abcdef01.partial.b2nd"
    for file in (leftover, other):
        file.write_bytes(b"torn")
    preprocess_case(payload)
    assert not leftover.exists()
    assert other.exists()  # another case, perhaps in work in another process


def moved(millimetres: float) -> Grid:
    affine = grid().affine.copy()
    affine[1, 3] += millimetres
    return Grid(SHAPE, affine)


def test_a_label_map_on_another_grid_is_refused(payload: PreprocessPayload) -> None:
    assert payload.label is not None
    write_labels(payload.label, blobs(0), moved(0.5))
    with pytest.raises(DataRefused, match="not on the grid of its image") as caught:
        preprocess_case(payload)
    assert caught.value.file == str(payload.label)
    assert "-2.5" in str(caught.value.found)
    assert list_cases(payload.folder) == ()


def test_a_channel_on_another_grid_is_refused(payload: PreprocessPayload) -> None:
    write_image(payload.images[1], picture(blobs(0), 0), moved(5))
    with pytest.raises(DataRefused, match="channel 1 is not on the grid"):
        preprocess_case(payload)


def test_a_grid_that_differs_by_rounding_is_taken_for_the_image_s_and_said(
    payload: PreprocessPayload,
) -> None:
    assert payload.label is not None
    write_labels(payload.label, blobs(0), moved(0.05))
    result = preprocess_case(payload)
    assert any("rounding" in note for note in result.receipt["notes"])
    assert open_case(payload.folder, "a").stored.grid["shape_zyx"] == [24, 16, 20]


def test_a_channel_that_differs_by_rounding_is_stored_on_the_first_one_s_grid(
    payload: PreprocessPayload,
) -> None:
    write_image(payload.images[1], picture(blobs(0), 1), moved(0.05))
    preprocess_case(payload)
    first, second = (open_case(payload.folder, name).stored for name in ("a", "a@1"))
    assert second.grid == first.grid


def test_undeclared_values_are_refused(payload: PreprocessPayload) -> None:
    with pytest.raises(DataRefused, match="no class declares") as caught:
        preprocess_case(changed(payload, classes={"one": (1,)}))
    assert caught.value.found == "[2]"


def test_the_ignore_value_is_legal_and_stored(payload: PreprocessPayload) -> None:
    preprocess_case(changed(payload, classes={"one": (1,)}, ignore_value=2))
    volume = open_case(payload.folder, "a")
    assert volume.stored.ignore_value == 2
    assert 2 in volume.label()
    assert set(volume.stored.classes) == {"one"}


def test_an_absent_class_is_background_or_not_annotated_as_the_set_says(
    payload: PreprocessPayload,
) -> None:
    more = changed(payload, classes={**payload.classes, "absent": (9,)})
    preprocess_case(more)
    stored = open_case(payload.folder, "a").stored
    assert stored.not_annotated == ()
    assert stored.classes["absent"].voxels == 0
    preprocess_case(changed(more, absent_is_background=False))
    assert open_case(payload.folder, "a").stored.not_annotated == ("absent",)


def test_a_class_that_vanishes_by_resampling_is_not_learned_as_absent(
    payload: PreprocessPayload,
) -> None:
    assert payload.label is not None
    label = blobs(0)
    label[0, 0, 0] = 3
    write_labels(payload.label, label, grid())
    classes = {**payload.classes, "dot": (3,)}
    result = preprocess_case(changed(payload, classes=classes, spacing_mm=4.0))
    stored = open_case(payload.folder, "a").stored
    assert stored.classes["dot"].voxels == 0
    assert stored.not_annotated == ("dot",)
    assert any("dot" in note for note in result.receipt["notes"])


def test_an_unlabelled_case_has_an_image_only(payload: PreprocessPayload) -> None:
    preprocess_case(changed(payload, role="unlabelled", label=None))
    volume = open_case(payload.folder, "a")
    assert not volume.stored.labelled
    assert volume.stored.classes == {}


def test_a_guessed_modality_is_recorded(payload: PreprocessPayload) -> None:
    hounsfield = np.full(SHAPE, -1000.0)
    hounsfield[:, :, 10:] = 1000.0
    write_image(payload.images[0], hounsfield, grid())
    preprocess_case(changed(payload, modalities=("guess", "guess")))
    assert open_case(payload.folder, "a").stored.modality == "ct"
    assert open_case(payload.folder, "a@1").stored.modality == "other"
    assert open_case(payload.folder, "a").image().min() == -3.0


def _cut_label(payload: PreprocessPayload) -> Path:
    assert payload.label is not None
    payload.label.write_bytes(payload.label.read_bytes()[:-20])
    return payload.label


def _foreign_value(payload: PreprocessPayload) -> Path:
    assert payload.label is not None
    write_labels(payload.label, np.full(SHAPE, 9, np.uint8), grid())
    return payload.label


def _no_numbers(payload: PreprocessPayload) -> Path:
    write_image(payload.images[0], np.full(SHAPE, np.nan, np.float32), grid())
    return payload.images[0]


def _no_folder(payload: PreprocessPayload) -> Path:
    payload.folder.write_text("a file")
    return payload.folder


@pytest.mark.parametrize(
    ("spoil", "stage"),
    [
        (_cut_label, "reading the label map"),
        (_foreign_value, "checking the label map"),
        (_no_numbers, "normalising and resampling the image"),
        (_no_folder, "writing to the store"),
    ],
)
def test_what_fails_comes_with_case_file_and_stage(
    payload: PreprocessPayload, spoil: Callable[[PreprocessPayload], Path], stage: str
) -> None:
    file = spoil(payload)
    (outcome,) = run_cases([CaseJob("a", payload)], preprocess_case).outcomes
    error = outcome.error or {}
    assert (outcome.name, error["stage"]) == ("a", stage)
    assert str(file) in error["file"]


def test_other_voxels_of_equal_size_and_time_are_seen(
    payload: PreprocessPayload, tmp_path: Path
) -> None:
    """`cp -p`, archives and links that are pointed elsewhere bring old times back."""
    volumes = [tmp_path / f"{name}.nii" for name in ("old", "new", "newer")]
    for seed, volume in enumerate(volumes):
        write_image(volume, picture(blobs(0), seed), grid())
        os.utime(volume, ns=(1, 1))
    link = tmp_path / "a.nii"
    link.symlink_to(volumes[0])
    linked = changed(payload, images=(link,), modalities=("other",))
    preprocess_case(linked)
    link.unlink()
    link.symlink_to(volumes[1])
    assert preprocess_case(linked).status == "done"
    volumes[1].write_bytes(volumes[2].read_bytes())
    os.utime(volumes[1], ns=(1, 1))
    assert preprocess_case(linked).status == "done"


def test_a_touched_file_is_read_once_and_then_known(
    payload: PreprocessPayload, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess_case(payload)
    before = contents(payload.folder)
    for path in payload.images:
        os.utime(path, ns=(1, 1))
    assert preprocess_case(payload).status == "kept"
    assert contents(payload.folder) == before
    monkeypatch.delattr(room, "read_image")
    assert preprocess_case(payload).status == "kept"
