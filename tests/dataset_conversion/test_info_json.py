"""The converter `info_json`: images/ + labels/ + info.json, with splits.json beside the sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from dataset_conversion.raw_set import Conversion
from dataset_conversion.registry import convert as convert_by_name
from iris_cli.dataset.building import TransferMode
from iris_cli.dataset.raw import RawDataset, read_raw_dataset
from iris_cli.errors import DataRefused, UsageError
from iris_cli.volume.reading import read_grid, read_labels
from tests.dataset.trees import label_array, write_json, write_volume

LABELS = {"0": "background", "1": "liver (as seen)", "2": "left  kidney"}


def convert(source: Path, target: Path, **options: Any) -> Conversion:
    return convert_by_name("info_json", source, target, **options)


def source_set(
    folder: Path,
    cases: tuple[str, ...] = ("a", "b", "c"),
    *,
    labelled: bool = True,
    values: tuple[int, ...] = (1,),
    **info: Any,
) -> Path:
    """A set of small files with an info.json."""
    for case in cases:
        write_volume(folder / f"images/{case}.nii.gz")
        if labelled:
            write_volume(folder / f"labels/{case}.nii.gz", label_array(values))
    content = {"modality": "CT (HU), abdomen", "labels": LABELS, "licence": "CC0", **info}
    write_json(folder / "info.json", content)
    return folder


def converted(source: Path, target: Path) -> RawDataset:
    return read_raw_dataset(convert(source, target).folders[0])


def test_names_labels_and_facts_are_kept(tmp_path: Path) -> None:
    raw = converted(
        source_set(tmp_path / "set", source="somewhere", citation="them"), tmp_path / "raw/set"
    )
    assert [case.name for case in raw.cases] == ["a", "b", "c"]
    assert [(label.name, label.value) for label in raw.classes] == [
        ("liver", 1),
        ("left kidney", 2),
    ]
    assert (raw.channels[0].name, raw.channels[0].modality) == ("CT", "ct")
    assert (raw.licence, raw.source, raw.citation) == ("CC0", "somewhere", "them")


def test_remarks_stay_where_names_would_become_equal(tmp_path: Path) -> None:
    labels = {"0": "background", "1": "thalamus (left)", "2": "thalamus (right)", "3": "unnamed"}
    raw = converted(
        source_set(tmp_path / "set", labels={**labels, "7": "unnamed"}), tmp_path / "raw"
    )
    assert raw.class_names == ("thalamus (left)", "thalamus (right)", "unnamed 3", "unnamed 7")


def test_roles_come_from_splits_json(tmp_path: Path) -> None:
    source = source_set(tmp_path / "set", ("a", "b", "c", "d", "e"))
    write_json(
        tmp_path / "splits.json",
        {"sets": {"set": {"role": "train", "train": ["a"], "validate": ["b"], "test": ["c", "d"]}}},
    )
    done = convert(source, tmp_path / "raw")
    raw = read_raw_dataset(done.folders[0])
    assert {case.name: case.role for case in raw.cases} == {
        "a": "train",
        "b": "validate",
        "c": "test",
        "d": "test",
        "e": "test",
    }
    assert {case.images[0].parent.name for case in raw.cases if case.role == "test"} == {"imagesTs"}
    assert "in no list, not trained on (1): e" in done.notes


def test_examples_of_an_unseen_set_lie_in_the_training_folder_with_their_role(
    tmp_path: Path,
) -> None:
    source = source_set(tmp_path / "set")
    lists = {"test": ["a", "b", "c"], "context": ["a"], "query": ["b", "c"]}
    write_json(tmp_path / "splits.json", {"sets": {"set": lists}})
    raw = converted(source, tmp_path / "raw")
    assert {case.name: (case.role, case.images[0].parent.name) for case in raw.cases} == {
        "a": ("test", "imagesTr"),
        "b": ("test", "imagesTs"),
        "c": ("test", "imagesTs"),
    }


def test_queries_of_a_set_for_validation_lie_in_the_test_folder(tmp_path: Path) -> None:
    source = source_set(tmp_path / "set", ("a", "b"))
    lists = {"validate": ["a", "b"], "context": ["a"], "query": ["b"]}
    write_json(tmp_path / "splits.json", {"sets": {"set": lists}})
    raw = converted(source, tmp_path / "raw")
    assert [(case.role, case.images[0].parent.name) for case in raw.cases] == [
        ("validate", "imagesTr"),
        ("validate", "imagesTs"),
    ]


def test_lists_of_info_json_serve_without_splits_json(tmp_path: Path) -> None:
    source = source_set(tmp_path / "set", cases=("a", "b", "c"))
    content = json.loads((source / "info.json").read_text())
    content["cases"] = {"train": ["a"], "test": ["b"], "test_partial": ["c"]}
    write_json(source / "info.json", content)
    raw = converted(source, tmp_path / "raw")
    assert [case.role for case in raw.cases] == ["train", "test", "test"]


def test_images_without_label_maps_are_unlabelled(tmp_path: Path) -> None:
    source = source_set(tmp_path / "set", labelled=False, labels={})
    raw = converted(source, tmp_path / "raw")
    assert {(case.role, case.label) for case in raw.cases} == {("unlabelled", None)}
    assert raw.classes == ()


def test_not_contoured_becomes_not_annotated(tmp_path: Path) -> None:
    info = {"a": {"not_contoured": ["kidney"]}, "b": {"not_contoured": ["Liver"]}, "c": {}}
    raw = converted(source_set(tmp_path / "set", cases_info=info), tmp_path / "raw")
    assert [set(case.not_annotated) for case in raw.cases] == [{"left kidney"}, {"liver"}, set()]


def test_not_contoured_that_names_no_class_is_refused(tmp_path: Path) -> None:
    source = source_set(tmp_path / "set", cases_info={"a": {"not_contoured": ["spleen"]}})
    with pytest.raises(DataRefused, match="'spleen', which is not one class"):
        convert(source, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_classes_of_one_modality_are_not_annotated_in_the_other(tmp_path: Path) -> None:
    source = source_set(
        tmp_path / "set",
        ("spine_ct", "spine_mr"),
        modality="CT (HU); MR T2-weighted",
        labels={"0": "background", "1": "body", "60": "cord (MR only)"},
    )
    raw = converted(source, tmp_path / "raw")
    assert raw.channels[0].modality is None
    assert [(c.modality, set(c.not_annotated)) for c in raw.cases] == [
        (("ct",), {"cord"}),
        (("other",), set()),
    ]
    assert raw.class_names == ("body", "cord")


def test_subjects_are_stated_known_or_the_case(tmp_path: Path) -> None:
    info = {"a": {"subject": "s1"}, "b": {"subject": "s1"}}
    raw = converted(source_set(tmp_path / "set", cases_info=info), tmp_path / "raw/set")
    assert [case.subject for case in raw.cases] == ["s1", "s1", "c"]
    crops = ("hippocampus_003", "hippocampus_004", "hippocampus_005")
    raw = converted(source_set(tmp_path / "hippocampus", crops), tmp_path / "raw/hippocampus")
    subjects = [case.subject for case in raw.cases]
    assert subjects[0] == subjects[1] != subjects[2]
    raw = converted(source_set(tmp_path / "one", subjects=1), tmp_path / "raw/one")
    assert {case.subject for case in raw.cases} == {"one"}


def test_a_subject_in_two_roles_is_refused(tmp_path: Path) -> None:
    source = source_set(tmp_path / "hippocampus", ("hippocampus_003", "hippocampus_004"))
    lists = {"train": ["hippocampus_003"], "test": ["hippocampus_004"]}
    write_json(tmp_path / "splits.json", {"sets": {"hippocampus": lists}})
    with pytest.raises(DataRefused, match="several roles") as caught:
        convert(source, tmp_path / "raw")
    assert "hippocampus_003 is train, hippocampus_004 is test" in str(caught.value)


def test_instances_become_one_region(tmp_path: Path) -> None:
    source = source_set(
        tmp_path / "set", ("a", "b"), labels={"0": "background", "1..n": "one value per nuclei"}
    )
    write_volume(source / "labels/a.nii.gz", label_array([1, 2, 5]))
    write_volume(source / "labels/b.nii.gz", label_array([2, 900], np.uint16))
    raw = converted(source, tmp_path / "raw")
    assert [(label.name, label.values, label.value) for label in raw.classes] == [
        ("nuclei", (1, 2, 5, 900), 1)
    ]


def test_one_table_per_case_makes_one_raw_set_per_table(tmp_path: Path) -> None:
    labels = {"a, b": {"0": "background", "1": "lesion"}, "c": {"0": "background", "1": "gland"}}
    done = convert(source_set(tmp_path / "set", labels=labels), tmp_path / "raw/set")
    assert [folder.name for folder in done.folders] == ["set_a", "set_c"]
    first, second = map(read_raw_dataset, done.folders)
    assert ([case.name for case in first.cases], first.class_names) == (["a", "b"], ("lesion",))
    assert ([case.name for case in second.cases], second.class_names) == (["c"], ("gland",))


def test_a_folder_of_sets_is_converted_as_a_whole(tmp_path: Path) -> None:
    source_set(tmp_path / "data/one")
    source_set(tmp_path / "data/two")
    write_json(tmp_path / "data/dicom/info.json", {"modality": "CT"})
    done = convert(tmp_path / "data", tmp_path / "raw")
    assert [folder.name for folder in done.folders] == ["one", "two"]
    assert done.notes[0] == "not laid out as images/ + labels/, left out (1): dicom"
    with pytest.raises(UsageError, match="not laid out") as caught:
        convert(tmp_path / "data/dicom", tmp_path / "raw2")
    assert "dcm2niix" in str(caught.value)


def test_a_listed_case_that_is_not_there_is_refused(tmp_path: Path) -> None:
    source = source_set(tmp_path / "set", ("a",))
    write_json(tmp_path / "splits.json", {"set": {"train": ["a", "gone"]}})
    with pytest.raises(DataRefused, match="have no image") as caught:
        convert(source, tmp_path / "raw")
    assert "gone" in str(caught.value)


def test_no_set_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        convert(tmp_path / "absent", tmp_path / "raw")
    with pytest.raises(UsageError, match="neither a set"):
        convert(tmp_path, tmp_path / "raw")


@pytest.mark.parametrize("mode", list(TransferMode))
def test_voxels_and_headers_stay_as_they_are(tmp_path: Path, mode: TransferMode) -> None:
    source = source_set(tmp_path / "set", ("a",))
    for part in ("images", "labels"):
        write_volume(source / f"{part}/a.nii.gz", label_array([1, 2]), spacing=(1e-4, 1e-4, 3e-4))
    folder = convert(source, tmp_path / "raw", mode=mode).folders[0]
    for part, name in (("images", "imagesTr/a_0000"), ("labels", "labelsTr/a")):
        path = folder / f"{name}.nii.gz"
        assert path.read_bytes() == (source / f"{part}/a.nii.gz").read_bytes()
        assert path.is_symlink() == (mode is TransferMode.LINK)


@pytest.mark.real
def test_all_sets_beside_the_checkout_become_raw_sets(shared_data: Path, tmp_path: Path) -> None:
    done = convert(shared_data, tmp_path, mode=TransferMode.LINK)
    raws = {folder.name: read_raw_dataset(folder) for folder in done.folders}
    sets = {folder.name for folder in shared_data.iterdir() if (folder / "images").is_dir()}
    assert {name for name in sets if name not in raws} == {"organs", "nrrd_tumour"}
    splits = json.loads((shared_data / "splits.json").read_text())["sets"]
    for name, raw in raws.items():
        lists = splits.get(name, {})
        roles = {case.name: case.role for case in raw.cases}
        for role in ("train", "validate", "test"):
            if name != "unlabelled":
                assert {roles[case] for case in lists.get(role, [])} <= {role}
    assert len({case.subject for case in raws["hippocampus"].cases}) == 70
    assert len({case.subject for case in raws["cardiac"].cases}) == 5
    assert len({case.subject for case in raws["ms_lesions"].cases}) == 3
    assert len({case.subject for case in raws["spinal_cord"].cases}) == 2


@pytest.mark.real
def test_converted_files_hold_the_voxels_of_the_source(shared_data: Path, tmp_path: Path) -> None:
    """Every file against what nibabel (NRRD: SimpleITK) reads from the source, and its affine."""
    convert(shared_data, tmp_path)
    compared = 0
    for folder in sorted(path.parent for path in tmp_path.glob("*/dataset.json")):
        # A set of several label tables is several folders, `<set>_<first case>`.
        named = [s for s in shared_data.iterdir() if f"{folder.name}_".startswith(f"{s.name}_")]
        images = max(named, key=lambda source: len(source.name)) / "images"
        sources = {path.name.partition(".")[0]: path for path in images.iterdir()}
        for case in read_raw_dataset(folder).cases:
            source = sources[case.name]
            pairs = [(source, case.images[0])]
            if case.label is not None:
                pairs.append((source.parent.parent / "labels" / source.name, case.label))
            for before, after in pairs:
                array, affine = _voxels(before)
                image: Any = nibabel.load(after)
                assert np.array_equal(np.asarray(image.dataobj), array, equal_nan=True), before
                assert np.allclose(image.affine, affine, rtol=1e-5, atol=1e-3), before
                compared += 1
    assert compared > 500


def _voxels(path: Path) -> tuple[Any, Any]:
    if path.name.endswith((".nii", ".nii.gz")):
        image: Any = nibabel.load(path)
        return np.asarray(image.dataobj), image.affine
    nrrd = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(nrrd.GetDirection(), (3, 3)) * np.asarray(nrrd.GetSpacing())
    affine[:3, 3] = nrrd.GetOrigin()
    return SimpleITK.GetArrayFromImage(nrrd).transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.real
def test_label_maps_hold_what_the_tables_say(shared_data: Path, tmp_path: Path) -> None:
    done = convert(shared_data, tmp_path, mode=TransferMode.LINK)
    for folder in done.folders:
        raw = read_raw_dataset(folder)
        for case in raw.cases:
            if case.label is None:
                continue
            labels = read_labels(case.label)
            assert set(np.unique(labels.array).tolist()) <= raw.table.legal_values, case
            assert read_grid(case.images[0]).grid.shape_zyx == labels.native.grid.shape_zyx
            values = {label.name: label.values for label in raw.classes}
            if raw.name in ("openkbp", "cardiac", "spinal_cord"):
                for name in case.not_annotated:
                    assert not np.isin(labels.array, values[name]).any(), (case, name)


def test_the_name_of_a_folder_decides_nothing(tmp_path: Path) -> None:
    cases = ("scan_001", "scan_002")
    raw = converted(source_set(tmp_path / "cardiac", cases), tmp_path / "raw/cardiac")
    assert [case.subject for case in raw.cases] == list(cases)
    raw = converted(source_set(tmp_path / "spinal_cord", cases), tmp_path / "raw/spinal_cord")
    assert raw.class_names == ("liver", "left kidney")
    source = source_set(tmp_path / "plant_cells", ("a",), labels={"1..n": "one value per cell"})
    write_volume(source / "labels/a.nii.gz", label_array([1, 2]))
    raw = converted(source, tmp_path / "raw/plant_cells")
    assert raw.class_names == ("cells",)
    assert raw.cases[0].not_annotated == set()


def test_phases_of_one_heart_are_one_subject(tmp_path: Path) -> None:
    cases = ("scd0000101_ed", "scd0000101_es", "scd0000201_ed")
    raw = converted(source_set(tmp_path / "hearts", cases), tmp_path / "raw")
    assert [case.subject for case in raw.cases] == ["scd0000101", "scd0000101", "scd0000201"]


def test_instances_that_differ_between_cases_are_classes(tmp_path: Path) -> None:
    text = "one value per nucleus (a, b) or per cell (c)"
    source = source_set(tmp_path / "mine", labels={"0": "background", "1..n": text})
    for case in "abc":
        write_volume(source / f"labels/{case}.nii.gz", label_array([1, 2]))
    raw = converted(source, tmp_path / "raw")
    assert raw.class_names == ("nuclei", "cells")
    assert [set(case.not_annotated) for case in raw.cases] == [{"cells"}, {"cells"}, {"nuclei"}]


def test_a_structure_whose_parts_are_told_apart_in_some_cases_is_a_region(tmp_path: Path) -> None:
    labels = {"5": "cord (where white and grey matter are not told apart)"}
    labels |= {"0": "background", "2": "cord white matter", "3": "cord grey matter"}
    raw = converted(source_set(tmp_path / "mine", labels=labels, values=(5,)), tmp_path / "raw")
    assert [(label.name, label.values, label.value) for label in raw.classes] == [
        ("cord", (2, 3, 5), 5),
        ("cord white matter", (2,), 2),
        ("cord grey matter", (3,), 3),
    ]
