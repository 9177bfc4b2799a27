"""`iris convert pairs`: paired files become a raw folder that nnU-Net accepts."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from dataset_conversion.pairs import PairsOptions
from dataset_conversion.pairs import convert_pairs as convert_with
from iris_cli.dataset.building import TransferMode
from iris_cli.dataset.raw import read_raw_dataset
from iris_cli.errors import DataRefused, SomeCasesFailed, UsageError
from iris_cli.volume.reading import read_image, read_labels
from tests.dataset.nnunet_check import nnunet_complaints
from tests.dataset.trees import SHAPE_XYZ, label_array, touch, write_json, write_volume


@dataclass(frozen=True)
class Done:
    folder: Path
    cases: int
    notes: tuple[str, ...]


def convert_pairs(
    images: Path,
    labels: Path | None,
    target: Path,
    *,
    mode: TransferMode = TransferMode.COPY,
    **options: Any,
) -> Done:
    report = convert_with(images, labels, target, PairsOptions(**options), mode=mode)
    report.run.raise_for_failures()
    notes = tuple(map(str, report.deviations))
    said = tuple(note for note in notes if not note.startswith("no voxel of"))
    return Done(report.folders[0], len(report.run.outcomes), said)


def pair_folders(folder: Path, *values: list[int], suffix: str = "") -> tuple[Path, Path]:
    """images/ and labels/ with one pair for each list of label values."""
    for index, present in enumerate(values):
        write_volume(folder / f"images/case_{index}.nii.gz")
        write_volume(folder / f"labels/case_{index}{suffix}.nii.gz", label_array(present))
    return folder / "images", folder / "labels"


def values_in(path: Path) -> list[int]:
    return np.unique(np.asarray(nibabel.load(path).dataobj)).tolist()


def test_pairs_become_a_folder_that_nnunet_accepts(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [1, 2], [1], [])
    done = convert_pairs(images, labels, tmp_path / "raw/set", names=["liver=1", "tumour=2"])
    assert (done.folder, done.cases, done.notes) == (tmp_path / "raw/set", 3, ())
    assert nnunet_complaints(done.folder) == []
    raw = read_raw_dataset(done.folder)
    assert [case.name for case in raw.cases] == ["case_0", "case_1", "case_2"]
    assert raw.class_names == ("liver", "tumour")


def test_files_that_fit_are_copied_byte_for_byte(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [1])
    folder = convert_pairs(images, labels, tmp_path / "set").folder
    for source, target in (("images", "imagesTr/case_0_0000"), ("labels", "labelsTr/case_0")):
        copied = folder / f"{target}.nii.gz"
        assert copied.read_bytes() == (tmp_path / source / "case_0.nii.gz").read_bytes()
        assert not copied.is_symlink()


def test_files_that_fit_are_linked(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [1])
    folder = convert_pairs(images, labels, tmp_path / "set", mode=TransferMode.LINK).folder
    link = folder / "imagesTr/case_0_0000.nii.gz"
    assert link.is_symlink()
    assert link.resolve() == (images / "case_0.nii.gz").resolve()
    assert nnunet_complaints(folder) == []


def test_flat_pairs_and_plain_files_are_converted(tmp_path: Path) -> None:
    write_volume(tmp_path / "in/x.nii")
    write_volume(tmp_path / "in/x_seg.nii", label_array([1]))
    folder = convert_pairs(tmp_path / "in", None, tmp_path / "set").folder
    assert nnunet_complaints(folder) == []
    one, other = read_image(tmp_path / "in/x.nii"), read_image(folder / "imagesTr/x_0000.nii.gz")
    assert one.content_hash() == other.content_hash()


def test_values_with_gaps_are_made_consecutive_and_said(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [2, 7], [40000 % 256])
    done = convert_pairs(
        images, labels, tmp_path / "set", names=["liver=2", "spleen=7", "aorta=64"]
    )
    assert done.notes == ("label values made consecutive: 2 -> 1, 7 -> 2, 64 -> 3",)
    assert nnunet_complaints(done.folder) == []
    assert values_in(done.folder / "labelsTr/case_0.nii.gz") == [0, 1, 2]
    assert values_in(done.folder / "labelsTr/case_1.nii.gz") == [0, 3]
    content = json.loads((done.folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "liver": 1, "spleen": 2, "aorta": 3}
    assert "64 -> 3" in content["description"]


def test_values_with_gaps_can_be_kept(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [2, 7])
    done = convert_pairs(images, labels, tmp_path / "set", keep_values=True)
    assert done.notes == ("label values have gaps, which nnU-Net refuses",)
    assert values_in(done.folder / "labelsTr/case_0.nii.gz") == [0, 2, 7]
    assert read_raw_dataset(done.folder).class_names == ("2", "7")


def test_regions_and_ignore_are_renumbered_together(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [1, 4, 9, 5])
    table = {"background": 0, "whole": [1, 4, 9], "core": [4, 9], "ignore": 5}
    path = write_json(tmp_path / "l.json", table)
    folder = convert_pairs(images, labels, tmp_path / "set", labels_file=path).folder
    assert nnunet_complaints(folder) == []
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {
        "background": 0,
        "whole": [1, 2, 3],
        "core": [2, 3],
        "ignore": 4,
    }
    assert content["regions_class_order"] == [1, 2]
    array = np.asarray(nibabel.load(folder / "labelsTr/case_0.nii.gz").dataobj)
    assert array.reshape(-1)[1:5].tolist() == [1, 2, 3, 4]


def test_float_stored_labels_are_read(tmp_path: Path) -> None:
    write_volume(tmp_path / "images/a.nii.gz")
    write_volume(tmp_path / "labels/a.nii.gz", label_array([1, 2], np.float32))
    assert (
        nnunet_complaints(
            convert_pairs(tmp_path / "images", tmp_path / "labels", tmp_path / "set").folder
        )
        == []
    )


def test_several_channels_need_equal_numbers_of_files(tmp_path: Path) -> None:
    for case in ("a", "b"):
        for channel in range(2):
            write_volume(tmp_path / f"images/{case}_{channel:04d}.nii.gz")
        write_volume(tmp_path / f"labels/{case}.nii.gz", label_array([1]))
    images, labels = tmp_path / "images", tmp_path / "labels"
    done = convert_pairs(images, labels, tmp_path / "set", channel_names=["T1", "T2"])
    assert nnunet_complaints(done.folder) == []
    assert [channel.name for channel in read_raw_dataset(done.folder).channels] == ["T1", "T2"]
    with pytest.raises(UsageError, match="channel names"):
        convert_pairs(images, labels, tmp_path / "set2", channel_names=["T1"])


def test_cases_on_different_grids_fail_alone_and_are_named(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [1], [1], [1])
    write_volume(labels / "case_0.nii.gz", label_array([1]), spacing=(1, 1, 2))
    write_volume(labels / "case_1.nii.gz", label_array([1]), origin=(5, 0, 0))
    report = convert_with(images, labels, tmp_path / "set")
    assert [outcome.name for outcome in report.run.failed] == ["case_0", "case_1"]
    assert report.exit_code == 3
    with pytest.raises(SomeCasesFailed, match="not on the grid of its image"):
        report.run.raise_for_failures()
    assert [case.name for case in read_raw_dataset(tmp_path / "set").cases] == ["case_2"]


def test_grids_equal_but_for_rounding_get_the_images_grid(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [1, 2])
    write_volume(labels / "case_0.nii.gz", label_array([1, 2]), origin=(0.05, 0, 0))
    done = convert_pairs(images, labels, tmp_path / "set")
    assert "but for rounding" in "".join(done.notes)
    assert nnunet_complaints(done.folder) == []


def test_label_maps_in_another_axis_order_are_written_anew(tmp_path: Path) -> None:
    image = write_volume(tmp_path / "images/a.nii.gz")
    labels = nibabel.Nifti1Image(label_array([1, 2]), nibabel.load(image).affine)
    flipped = labels.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    (tmp_path / "labels").mkdir()
    nibabel.save(flipped, tmp_path / "labels/a.nii.gz")
    done = convert_pairs(tmp_path / "images", tmp_path / "labels", tmp_path / "set")
    assert nnunet_complaints(done.folder) == []
    written = read_labels(done.folder / "labelsTr/a.nii.gz")
    assert np.array_equal(written.array, read_labels(tmp_path / "labels/a.nii.gz").array)
    assert "another axis order" in "".join(done.notes)


def test_a_set_of_several_formats_gets_one(tmp_path: Path) -> None:
    import SimpleITK

    images, labels = pair_folders(tmp_path, [1], [1])
    voxels = SimpleITK.ReadImage(str(images / "case_1.nii.gz"))
    (images / "case_1.nii.gz").unlink()
    SimpleITK.WriteImage(voxels, str(images / "case_1.nrrd"))
    done = convert_pairs(images, labels, tmp_path / "set")
    assert nnunet_complaints(done.folder) == []
    written = read_image(done.folder / "imagesTr/case_1_0000.nii.gz")
    assert written.content_hash() == read_image(images / "case_1.nrrd").content_hash()
    assert "written as .nii.gz" in "".join(done.notes)


def test_values_without_a_name_are_refused(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [1, 3])
    with pytest.raises(DataRefused, match="without a name") as caught:
        convert_pairs(images, labels, tmp_path / "set", names=["liver=1"])
    assert "found     3" in str(caught.value)


def test_names_may_lie_beside_the_label_maps_or_around_both(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [1])
    write_json(tmp_path / "labels.json", {"liver": 1})
    assert read_raw_dataset(convert_pairs(images, labels, tmp_path / "a").folder).class_names == (
        "liver",
    )
    write_json(labels / "labels.json", {"hepar": 1})
    assert read_raw_dataset(convert_pairs(images, labels, tmp_path / "b").folder).class_names == (
        "hepar",
    )


def test_modality_is_kept(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [1])
    folder = convert_pairs(images, labels, tmp_path / "set", modality="ct").folder
    assert json.loads((folder / "dataset.json").read_text())["channel_names"] == {"0": "CT"}
    assert read_raw_dataset(folder).channels[0].modality == "ct"


def test_the_same_line_again_makes_nothing_anew(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [2], [2])
    first = convert_with(images, labels, tmp_path / "set")
    again = convert_with(images, labels, tmp_path / "set")
    assert [[o.status for o in report.run.outcomes] for report in (first, again)] == [
        ["done", "done"],
        ["kept", "kept"],
    ]


def test_an_existing_target_is_left_alone(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [1])
    touch(tmp_path / "set/mine.txt")
    with pytest.raises(UsageError, match="exists already"):
        convert_pairs(images, labels, tmp_path / "set")
    assert os.listdir(tmp_path / "set") == ["mine.txt"]


def test_missing_folders_and_partners_are_said(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [1])
    with pytest.raises(UsageError, match="no such folder"):
        convert_pairs(images, tmp_path / "absent", tmp_path / "set")
    with pytest.raises(UsageError, match="no label maps beside"):
        convert_pairs(images, None, tmp_path / "set")
    (labels / "case_0.nii.gz").unlink()
    with pytest.raises(DataRefused, match="do not go together"):
        convert_pairs(images, labels, tmp_path / "set")


def test_equal_sources_give_equal_files(tmp_path: Path) -> None:
    write_volume(tmp_path / "in/x.nii")
    write_volume(tmp_path / "in/x_seg.nii", label_array([3], np.int16))
    first = convert_pairs(tmp_path / "in", None, tmp_path / "a").folder
    second = convert_pairs(tmp_path / "in", None, tmp_path / "b").folder
    for name in ("imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz", "dataset.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert nibabel.load(first / "labelsTr/x.nii.gz").shape == SHAPE_XYZ
    no_time = (first / "imagesTr/x_0000.nii.gz").read_bytes()[4:8]
    assert no_time == bytes(4)


def outputs_of(folder: Path) -> dict[str, int]:
    return {label.name: label.value for label in read_raw_dataset(folder).classes}


def values_of(folder: Path) -> dict[str, tuple[int, ...]]:
    return {label.name: label.values for label in read_raw_dataset(folder).classes}


def test_outputs_beside_a_region_mean_what_the_label_maps_mean(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [5, 7, 8])
    names = ["tumour=7,8", "liver=5"]
    kept = convert_pairs(images, labels, tmp_path / "kept", names=names, keep_values=True).folder
    assert outputs_of(kept) == {"tumour": 7, "liver": 5}
    closed = convert_pairs(images, labels, tmp_path / "closed", names=names).folder
    assert outputs_of(closed) == {"tumour": 2, "liver": 1}
    assert values_of(closed) == {"tumour": (2, 3), "liver": (1,)}
    assert nnunet_complaints(closed) == []


def test_a_given_order_stays_as_it_is(tmp_path: Path) -> None:
    images, labels = pair_folders(tmp_path, [2, 4, 6])
    table = {"labels": {"whole": [2, 4, 6], "core": [4, 6]}, "regions_class_order": [9, 8]}
    path = write_json(tmp_path / "l.json", table)
    for keep in (False, True):
        target = tmp_path / f"set{keep}"
        folder = convert_pairs(images, labels, target, labels_file=path, keep_values=keep).folder
        assert outputs_of(folder) == {"whole": 9, "core": 8}


def test_overlapping_regions_are_renumbered_without_taking_the_value_of_a_class(
    tmp_path: Path,
) -> None:
    images, labels = pair_folders(tmp_path, [1, 2, 4, 6])
    names = ["liver=6", "one=1,2", "two=1,2", "three=1,2", "other=4"]
    done = convert_pairs(images, labels, tmp_path / "set", names=names)
    outputs = outputs_of(done.folder)
    assert (outputs["liver"], outputs["other"]) == (4, 3)
    assert outputs == {"liver": 4, "one": 1, "two": 2, "three": 5, "other": 3}
    assert done.notes[-1].endswith("one = 1, two = 2, three = 5")


def box_mask(*corner_xyz: slice) -> np.ndarray:
    mask = np.zeros(SHAPE_XYZ, np.uint8)
    mask[corner_xyz] = 1
    return mask


# Of case "a" the lung lies in the body and the wire in both and beside them; "b" has no wire file.
BODY = box_mask(slice(0, 5), slice(None), slice(None))
LUNG = box_mask(slice(1, 3), slice(1, 4), slice(1, 3))
WIRE = box_mask(slice(None), slice(2, 3), slice(1, 2))
NO_LUNG = np.zeros(SHAPE_XYZ, np.uint8)
CLASS_MASKS = {
    "a_0012": {"body": BODY, "lung_left": LUNG, "wire": WIRE},
    "b": {"body": BODY, "lung_left": NO_LUNG},
}


def mask_folders(folder: Path, separator: str, *, channel: str = "") -> tuple[Path, Path]:
    """images/, and labels/ with one file per class: `<case>/<class>` or `<case>_<class>`."""
    for case, masks in CLASS_MASKS.items():
        write_volume(folder / f"images/{case}{channel}.nii.gz")
        for name, mask in masks.items():
            write_volume(folder / f"labels/{case}{separator}{name}.nii.gz", mask)
    return folder / "images", folder / "labels"


@pytest.mark.parametrize("separator", ["/", "_"])
@pytest.mark.parametrize("channel", ["", "_0000"])
def test_one_mask_file_per_class_becomes_regions_voxel_by_voxel(
    tmp_path: Path, separator: str, channel: str
) -> None:
    done = convert_pairs(*mask_folders(tmp_path, separator, channel=channel), tmp_path / "set")
    assert nnunet_complaints(done.folder) == []
    raw = read_raw_dataset(done.folder)
    assert raw.class_names == ("body", "lung_left", "wire")
    assert {case.name: case.not_annotated for case in raw.cases} == {
        "a_0012": frozenset(),
        "b": frozenset({"wire"}),
    }
    values = values_of(done.folder)
    for case, masks in CLASS_MASKS.items():
        written = np.asarray(nibabel.load(done.folder / f"labelsTr/{case}.nii.gz").dataobj)
        for name, mask in masks.items():
            np.testing.assert_array_equal(np.isin(written, values[name]), mask > 0, err_msg=name)
    said = " ".join(done.notes)
    assert "3 classes of one mask file each" in said
    assert "not annotated (1): b" in said
    assert "classes overlap" in said


def test_label_maps_whose_names_decide_what_a_case_is_are_no_masks(tmp_path: Path) -> None:
    for case in ("x_0000", "y"):
        write_volume(tmp_path / f"images/{case}.nii.gz")
        write_volume(tmp_path / f"labels/{case}.nii.gz", label_array([1]))
    folder = convert_pairs(tmp_path / "images", tmp_path / "labels", tmp_path / "set").folder
    assert [case.name for case in read_raw_dataset(folder).cases] == ["x_0000", "y"]


def test_masks_that_do_not_overlap_are_classes_of_one_value(tmp_path: Path) -> None:
    write_volume(tmp_path / "images/a.nii.gz")
    for name, value in (("liver", 1), ("spleen", 2)):
        write_volume(tmp_path / f"labels/a/{name}.nii.gz", label_array([0] * value + [255]))
    folder = convert_pairs(tmp_path / "images", tmp_path / "labels", tmp_path / "set").folder
    assert values_of(folder) == {"liver": (1,), "spleen": (2,)}
    assert "regions_class_order" not in json.loads((folder / "dataset.json").read_text())


def test_a_case_whose_masks_do_not_fit_fails_alone(tmp_path: Path) -> None:
    images, labels = mask_folders(tmp_path, "/")
    write_volume(labels / "a_0012/wire.nii.gz", WIRE, origin=(5, 0, 0))
    report = convert_with(images, labels, tmp_path / "set")
    (failed,) = report.run.failed
    assert (failed.name, report.exit_code) == ("a_0012", 3)
    assert "not on one grid" in (failed.error or {})["problem"]
    write_volume(labels / "a_0012/wire.nii.gz", WIRE)
    again = convert_with(images, labels, tmp_path / "set")
    assert [o.status for o in again.run.outcomes] == ["done", "done"]  # the values are others
    once_more = convert_with(images, labels, tmp_path / "set")
    assert [o.status for o in once_more.run.outcomes] == ["kept", "kept"]


def test_masks_take_the_grid_of_an_image_that_differs_by_rounding(tmp_path: Path) -> None:
    images, labels = mask_folders(tmp_path, "/")
    write_volume(images / "b.nii.gz", origin=(0.05, 0, 0))
    folder = convert_pairs(images, labels, tmp_path / "set").folder
    assert nnunet_complaints(folder) == []


def test_mask_files_need_images_and_bring_their_names(tmp_path: Path) -> None:
    images, labels = mask_folders(tmp_path, "/")
    with pytest.raises(UsageError, match="named by their classes"):
        convert_pairs(images, labels, tmp_path / "set", names=["liver=1"])
    (images / "b.nii.gz").unlink()
    with pytest.raises(DataRefused, match="do not go together") as caught:
        convert_pairs(images, labels, tmp_path / "set")
    assert "without image: b" in str(caught.value.found)
