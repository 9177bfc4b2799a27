"""References and queries: the layouts users have, names, picks, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from iris_cli.dataset.queries import search_queries
from iris_cli.dataset.raw import read_raw_dataset
from iris_cli.dataset.references import (
    References,
    find_queries,
    find_references,
    find_volumes,
    references_from_pairs,
    references_from_raw,
)
from iris_cli.errors import DataRefused, UsageError
from tests.dataset.trees import raw_tree, touch, write_json


def folder_pair(folder: Path, *names: str) -> Path:
    """images/ + labels/ with equal names."""
    for name in names:
        touch(folder / f"images/{name}.nii.gz")
        touch(folder / f"labels/{name}.nii.gz")
    return folder


def names_of(references: References) -> list[str]:
    return [pair.name for pair in references.pairs]


def class_values(references: References) -> dict[str, tuple[int, ...]]:
    return {label.name: label.values for label in references.classes or ()}


def test_images_and_labels_side_by_side(tmp_path: Path) -> None:
    found = find_references(folder_pair(tmp_path, "b", "a"))
    assert names_of(found) == ["a", "b"]
    assert found.pairs[0].image == tmp_path / "images/a.nii.gz"
    assert found.pairs[0].label == tmp_path / "labels/a.nii.gz"
    assert found.classes is None
    assert found.modality is None


def test_label_maps_may_say_what_they_are(tmp_path: Path) -> None:
    touch(tmp_path / "images/a_0000.nii.gz")
    touch(tmp_path / "labels/a_seg.nrrd")
    assert names_of(find_references(tmp_path)) == ["a"]


@pytest.mark.parametrize("suffix", ["seg", "label", "mask", "SEG"])
def test_flat_pairs(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path / "x.nii.gz")
    touch(tmp_path / f"x_{suffix}.nii.gz")
    found = find_references(tmp_path)
    assert [(pair.image.name, pair.label.name) for pair in found.pairs] == [
        ("x.nii.gz", f"x_{suffix}.nii.gz")
    ]


def test_flat_pairs_keep_images_whose_name_ends_like_a_label_map(tmp_path: Path) -> None:
    for name in ("face_mask", "face_mask_seg"):
        touch(tmp_path / f"{name}.nii.gz")
    assert names_of(find_references(tmp_path)) == ["face_mask"]


def test_an_image_without_label_map_is_refused(tmp_path: Path) -> None:
    folder_pair(tmp_path, "a")
    touch(tmp_path / "images/b.nii.gz")
    touch(tmp_path / "labels/c.nii.gz")
    with pytest.raises(DataRefused, match="do not go together") as caught:
        find_references(tmp_path)
    assert "without label map: b; without image: c" in str(caught.value)


def test_a_folder_without_layout_says_the_layouts(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii.gz")
    with pytest.raises(UsageError, match="no references") as caught:
        find_references(tmp_path)
    assert "imagesTr/ + labelsTr/" in str(caught.value)


def test_a_raw_data_set_brings_its_classes_and_notes(tmp_path: Path) -> None:
    iris = {"not_annotated": {"a": ["tumour"]}, "subjects": {"a": "s"}}
    found = find_references(raw_tree(tmp_path, ["a", "b"], ["t"], iris=iris))
    assert names_of(found) == ["a", "b"]
    assert class_values(found) == {"liver": (1,), "tumour": (2,)}
    assert found.modality == "ct"
    assert found.pairs[0].not_annotated == {"tumour"}
    assert (found.pairs[0].subject, found.pairs[1].subject) == ("s", "b")


def test_named_cases_of_a_raw_data_set_may_be_test_cases(tmp_path: Path) -> None:
    raw = read_raw_dataset(raw_tree(tmp_path, ["a", "b"], ["t"]))
    assert names_of(references_from_raw(raw, cases=["t", "a"])) == ["t", "a"]


def test_a_case_without_label_map_is_no_reference(tmp_path: Path) -> None:
    folder = raw_tree(tmp_path, ["a"], ["t"])
    (folder / "labelsTs/t.nii.gz").unlink()
    with pytest.raises(UsageError, match="no label map"):
        references_from_raw(read_raw_dataset(folder), cases=["t"])


def test_a_task_names_its_channel(tmp_path: Path) -> None:
    folder = raw_tree(tmp_path, ["a"], channels=["CT", "PET"])
    found = find_references(folder, channel=1)
    assert found.pairs[0].image.name == "a_0001.nii.gz"
    assert [image.name for image in found.pairs[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert found.modality == "other"
    with pytest.raises(UsageError, match="no channel 2") as caught:
        find_references(folder, channel=2)
    assert "1 (PET)" in str(caught.value)


def test_a_missing_file_matters_only_for_chosen_cases(tmp_path: Path) -> None:
    folder = raw_tree(tmp_path, ["a", "b"], channels=["T1", "T2"])
    (folder / "imagesTr/b_0001.nii.gz").unlink()
    assert names_of(find_references(folder, cases=["a"])) == ["a"]
    with pytest.raises(DataRefused, match="'b' has no image for channel 1"):
        find_references(folder)


def test_class_names_come_from_the_nearest_source(tmp_path: Path) -> None:
    folder = folder_pair(tmp_path / "refs", "a")
    write_json(folder / "labels.json", {"background": 0, "organ": 1})
    assert class_values(find_references(folder)) == {"organ": (1,)}
    write_json(folder / "dataset.json", {"labels": {"background": 0, "liver": 1}})
    assert class_values(find_references(folder)) == {"liver": (1,)}
    other = write_json(tmp_path / "other.json", {"labels": {"0": "background", "1": "hepar"}})
    assert class_values(find_references(folder, labels_file=other)) == {"hepar": (1,)}
    found = find_references(folder, labels_file=other, names=["left=1", "all=1,2"])
    assert class_values(found) == {"left": (1,), "all": (1, 2)}
    assert [label.value for label in found.classes or ()] == [1, 2]


def test_two_names_for_one_value_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="share the label value 1"):
        find_references(folder_pair(tmp_path, "a"), names=["left=1", "right=1"])


def test_without_names_each_value_is_its_own_name(tmp_path: Path) -> None:
    found = find_references(folder_pair(tmp_path, "a"))
    assert class_values(found.with_values([0, 5, 3])) == {"3": (3,), "5": (5,)}
    picked = find_references(folder_pair(tmp_path, "a"), classes=["5"])
    assert class_values(picked.with_values([0, 5, 3])) == {"5": (5,)}
    with pytest.raises(UsageError, match="no class '5'"):
        picked.with_values([3])


def test_named_classes_stay_when_values_are_known(tmp_path: Path) -> None:
    found = find_references(folder_pair(tmp_path, "a"), names=["liver=1"])
    assert found.with_values([1, 2]) is found


def test_classes_and_cases_are_picked(tmp_path: Path) -> None:
    folder = raw_tree(tmp_path, ["a", "b"])
    found = find_references(folder, classes=["tumour"], cases=["b"])
    assert (names_of(found), class_values(found)) == (["b"], {"tumour": (2,)})
    with pytest.raises(UsageError, match="no class 'tumor'"):
        find_references(folder, classes=["tumor"])


def test_an_unknown_case_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no case 'case_3'") as caught:
        find_references(folder_pair(tmp_path, "case_1", "case_2"), cases=["case_3"])
    assert "did you mean" in str(caught.value)


def test_a_labels_file_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = folder_pair(tmp_path / "refs", "a")
    for content in ({}, {"liver": "x"}, {"liver": 1.5}, {"liver": True}):
        with pytest.raises(DataRefused):
            find_references(folder, labels_file=write_json(tmp_path / "l.json", content))


def test_explicit_pairs_of_equal_names_get_their_folders_names(tmp_path: Path) -> None:
    pairs = [
        (touch(tmp_path / f"{name}/image.nii.gz"), touch(tmp_path / f"{name}/label.nii.gz"))
        for name in ("p1", "p2")
    ]
    found = references_from_pairs(pairs, names=["liver=1"])
    assert names_of(found) == ["p1_image", "p2_image"]
    assert class_values(found) == {"liver": (1,)}


def test_explicit_pairs_must_exist_and_be_different(tmp_path: Path) -> None:
    image, label = touch(tmp_path / "a.nii.gz"), touch(tmp_path / "b.nii.gz")
    with pytest.raises(UsageError, match="no such file"):
        references_from_pairs([(image, tmp_path / "absent.nii.gz")])
    with pytest.raises(UsageError, match="two references"):
        references_from_pairs([(image, label), (image, label)])
    with pytest.raises(UsageError, match="no reference"):
        references_from_pairs([])


def test_queries_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.mha", "._b.nii.gz", "notes.txt", ".iris/x.nii.gz"):
        touch(tmp_path / name)
    assert [(q.name, q.path.name) for q in find_queries(tmp_path)] == [
        ("a", "a.mha"),
        ("b", "b.nii.gz"),
    ]


def test_queries_lose_the_channel_of_nnunet(tmp_path: Path) -> None:
    for name in ("a", "b"):
        touch(tmp_path / f"{name}_0000.nii.gz")
        touch(tmp_path / f"{name}_0001.nii.gz")
    assert [(q.name, q.path.name) for q in find_queries(tmp_path, channel=1)] == [
        ("a", "a_0001.nii.gz"),
        ("b", "b_0001.nii.gz"),
    ]


def test_names_with_numbers_are_not_taken_for_channels(tmp_path: Path) -> None:
    for name in ("amos_0507", "amos_0510"):
        touch(tmp_path / f"{name}.nii.gz")
    assert [query.name for query in find_queries(tmp_path)] == ["amos_0507", "amos_0510"]


def test_names_that_could_be_either_are_refused_unless_declared(tmp_path: Path) -> None:
    folder = tmp_path / "imagesTs"
    for index in range(3):
        touch(folder / f"scan_{index:04d}.nii.gz")
    with pytest.raises(UsageError, match="channels of one case, or cases"):
        find_queries(folder)
    raw_tree(tmp_path, [], channels=["T1", "T2", "FLAIR"])
    assert [(q.name, q.path.name) for q in find_queries(folder, channel=2)] == [
        ("scan", "scan_0002.nii.gz")
    ]


def test_a_single_file_is_a_query(tmp_path: Path) -> None:
    path = touch(tmp_path / "x_0000.nii.gz")
    assert [(q.name, q.path) for q in find_queries(path)] == [("x", path)]
    assert find_volumes(touch(tmp_path / "x_0007.mha")) == [tmp_path / "x_0007.mha"]


def test_a_list_names_volumes_relative_to_it(tmp_path: Path) -> None:
    first, second = touch(tmp_path / "a/x.nii.gz"), touch(tmp_path / "b/y.nrrd")
    listed = tmp_path / "list.txt"
    listed.write_text(f"# two\na/x.nii.gz\n\n{second}\n")
    assert find_volumes(listed) == [first, second]
    listed.write_text("a/z.nii.gz\n")
    with pytest.raises(UsageError, match="line of the list") as caught:
        find_volumes(listed)
    assert "'a/z.nii.gz', which does not exist" in str(caught.value)


def test_two_queries_of_one_output_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "x.nii.gz")
    touch(tmp_path / "x.mha")
    with pytest.raises(DataRefused, match="two volumes would have the output 'x'"):
        find_queries(tmp_path)


def test_nothing_to_segment_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        find_queries(tmp_path / "absent.nii.gz")
    with pytest.raises(UsageError, match="no volumes"):
        find_queries(tmp_path)
    touch(tmp_path / "1.dcm")
    with pytest.raises(UsageError) as caught:
        find_queries(tmp_path)
    assert "dcm2niix" in str(caught.value)
    raw_tree(tmp_path / "raw", ["a"])
    with pytest.raises(UsageError) as caught:
        find_queries(tmp_path / "raw")
    assert "imagesTr" in str(caught.value)


def test_a_channel_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii.gz")
    with pytest.raises(UsageError, match="one channel"):
        find_queries(tmp_path, channel=1)


def outputs_of(references: References) -> dict[str, int]:
    return {label.name: label.value for label in references.classes or ()}


def test_classes_beside_overlapping_regions_keep_their_value(tmp_path: Path) -> None:
    folder = folder_pair(tmp_path, "a")
    found = find_references(folder, names=["liver=5", "wt=1,2,3", "tc=1,3"])
    outputs = outputs_of(found)
    assert outputs["liver"] == 5
    assert outputs == {"liver": 5, "wt": 2, "tc": 1}
    assert "wt = 2, tc = 1" in found.notes[0]
    brats = find_references(folder, names=["wt=1,2,3", "tc=2,3", "et=3"])
    assert outputs_of(brats) == {"wt": 1, "tc": 2, "et": 3}
    write_json(folder / "labels.json", {"wt": [1, 2], "tc": [1, 2], "a": 1, "b": 2, "ignore": 3})
    assert outputs_of(find_references(folder)) == {"wt": 4, "tc": 5, "a": 1, "b": 2}
    assert find_references(folder, names=["liver=5", "tumour=7,8"]).notes == ()


def test_references_take_all_of_a_dataset_json_beside_images_and_labels(tmp_path: Path) -> None:
    folder = folder_pair(tmp_path, "a", "b")
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "left": 1, "right": 2, "ignore": 9},
        "iris": {
            "subjects": {"a": "s"},
            "not_annotated": {"a": ["right"]},
            "absent_means": "not_annotated",
            "mirror_pairs": [["left", "right"]],
        },
    }
    write_json(folder / "dataset.json", content)
    found = find_references(folder, cases=["a"])
    assert (found.modality, found.ignore_value, found.absent_means) == ("ct", 9, "not_annotated")
    assert found.mirror_pairs == (("left", "right"),)
    assert (found.pairs[0].subject, found.pairs[0].not_annotated) == ("s", {"right"})
    labels = {"labels": {"left": 1}, "iris": {"modality": "other"}}
    write_json(folder / "dataset.json", labels)
    assert find_references(folder).modality == "other"
    labels["iris"] = {"not_annotated": {"a": ["lefd"]}}
    write_json(folder / "dataset.json", labels)
    with pytest.raises(DataRefused, match="'lefd'"):
        find_references(folder)


def test_the_first_of_numbered_cases_is_no_channel_where_label_maps_have_its_name(
    tmp_path: Path,
) -> None:
    numbered = [f"img_{index:04d}" for index in range(3)]
    found = find_references(folder_pair(tmp_path / "folders", *numbered))
    assert names_of(found) == numbered
    for name in numbered:
        touch(tmp_path / f"flat/{name}.nii.gz")
        touch(tmp_path / f"flat/{name}_seg.nii.gz")
    assert names_of(find_references(tmp_path / "flat")) == numbered


def channel_folder(folder: Path) -> Path:
    for name in ("left", "right"):
        for channel in range(2):
            touch(folder / f"{name}_{channel:04d}.nii.gz")
    return folder


def test_files_left_out_as_other_channels_are_said(tmp_path: Path) -> None:
    folder = channel_folder(tmp_path / "in")
    found = search_queries(folder)
    assert [query.name for query in found.queries] == ["left", "right"]
    (note,) = found.notes
    assert f"2 files are taken as channels other than 0 of {folder}" in note
    assert "left_0001.nii.gz, right_0001.nii.gz" in note
    write_json(tmp_path / "dataset.json", {"channel_names": {"0": "T1", "1": "T2"}})
    assert search_queries(folder).notes == ()


def test_a_list_leaves_out_other_channels_and_says_so(tmp_path: Path) -> None:
    channel_folder(tmp_path / "in")
    listed = tmp_path / "list.txt"
    listed.write_text("in/left_0000.nii.gz\nin/right_0001.nii.gz\n")
    found = search_queries(listed)
    assert [(q.name, q.path.name) for q in found.queries] == [("left", "left_0000.nii.gz")]
    assert "1 file is taken" in found.notes[0]
    assert "right_0001.nii.gz" in found.notes[0]
    with pytest.raises(UsageError, match="no volume is of channel 1"):
        find_queries(tmp_path / "in/left_0000.nii.gz", channel=1)


def test_a_list_of_numbered_cases_is_taken_at_its_word(tmp_path: Path) -> None:
    names = [touch(tmp_path / f"in/scan_{index:04d}.nii.gz").name for index in range(3)]
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"in/{name}\n" for name in names))
    assert len(find_queries(listed)) == 3


def test_a_dataset_json_that_is_no_table_says_nothing_about_queries(tmp_path: Path) -> None:
    touch(tmp_path / "in/a.nii.gz")
    (tmp_path / "dataset.json").write_text("[1]")
    assert [query.name for query in find_queries(tmp_path / "in")] == ["a"]


def test_explicit_pairs_keep_the_channel(tmp_path: Path) -> None:
    pair = (touch(tmp_path / "a.nii.gz"), touch(tmp_path / "b.nii.gz"))
    assert references_from_pairs([pair], channel=1).channel == 1
