"""Channels and classes: label tables, regions, modalities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iris_cli.dataset.classes import (
    LONGEST_NAME,
    ClassLabel,
    class_table,
    classes_from_values,
    parse_class_arguments,
    parse_modality,
    pick_classes,
    read_modality,
    sharing_values,
)
from iris_cli.errors import DataRefused, UsageError


def test_background_is_no_class_and_order_is_kept() -> None:
    table = class_table({"background": 0, "spleen": 3, "liver": 1})
    assert table.names == ("spleen", "liver")
    assert table.legal_values == {0, 1, 3}


def test_sixteen_bit_values_with_gaps_are_legal() -> None:
    table = class_table({"background": 0, "cortex": 12175, "stem": 40000})
    assert [label.value for label in table.classes] == [12175, 40000]


def test_regions_get_the_values_of_regions_class_order() -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    table = class_table(labels, regions_class_order=[1, 2, 3])
    assert table.classes == (
        ClassLabel("whole", (1, 2, 3), 1),
        ClassLabel("core", (2, 3), 2),
        ClassLabel("enhancing", (3,), 3),
    )
    assert table.has_overlaps


def test_disjoint_regions_need_no_order() -> None:
    table = class_table({"background": 0, "left": [4, 2], "right": [3, 5]})
    assert [label.value for label in table.classes] == [2, 3]
    assert not table.has_overlaps


def test_overlapping_regions_without_order_are_refused() -> None:
    with pytest.raises(DataRefused, match="share the label value 2") as caught:
        class_table({"background": 0, "whole": [1, 2], "core": 2})
    assert "regions_class_order" in str(caught.value)


@pytest.mark.parametrize("order", [[1], [1, 1], [0, 1], [1, 2, 3]])
def test_regions_class_order_that_does_not_fit_is_refused(order: list[int]) -> None:
    with pytest.raises(DataRefused, match="regions_class_order"):
        class_table({"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=order)


def test_ignore_is_taken_out_and_legal() -> None:
    table = class_table({"background": 0, "liver": 1, "ignore": 2})
    assert (table.names, table.ignore_value) == (("liver",), 2)
    assert table.legal_values == {0, 1, 2}


def test_ignore_that_is_a_class_is_refused() -> None:
    with pytest.raises(DataRefused, match="ignore"):
        class_table({"background": 0, "liver": 1, "ignore": 1})


@pytest.mark.parametrize("value", [-1, 2**31, []])
def test_values_out_of_range_are_refused(value: int | list[int]) -> None:
    with pytest.raises(DataRefused, match="liver"):
        class_table({"background": 0, "liver": value})


def test_two_names_for_one_value_are_refused() -> None:
    with pytest.raises(DataRefused, match="share the label value 1"):
        class_table({"background": 0, "liver": 1, "hepar": 1})


@pytest.mark.parametrize(
    ("text", "modality"),
    [
        ("CT", "ct"),
        ("ct", "ct"),
        ("CT (HU), from PET/CT, no contrast", "ct"),
        ("PET (FDG, SUV)", "other"),
        ("MRI", "other"),
        ("simulated MR T2-weighted-like", "other"),
        ("T1w", "other"),
        ("confocal fluorescence microscopy", "other"),
        ("image", None),
        ("noNorm", None),
        ("octopus", None),
        ("ctrl image", None),
        ("", None),
    ],
)
def test_modality_is_the_first_word_that_names_one(text: str, modality: str | None) -> None:
    assert read_modality(text) == modality


def test_each_value_is_its_own_name_without_a_table() -> None:
    assert classes_from_values([3, 0, 7, 3]) == (
        ClassLabel("3", (3,), 3),
        ClassLabel("7", (7,), 7),
    )


def test_picking_an_unknown_class_names_the_nearest() -> None:
    classes = class_table({"kidney_left": 1, "kidney_right": 2}).classes
    assert [label.name for label in pick_classes(classes, ["kidney_right"])] == ["kidney_right"]
    with pytest.raises(UsageError, match="kidney_lef'") as caught:
        pick_classes(classes, ["kidney_lef"])
    assert "did you mean 'kidney_left'?" in str(caught.value)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=LONGEST_NAME)
        .map(str.strip)
        .filter(lambda name: name and name.isprintable()),
        st.lists(st.integers(1, 999), min_size=1, max_size=4, unique=True),
        max_size=5,
    )
)
def test_class_arguments_are_read_back(table: dict[str, list[int]]) -> None:
    texts = [f"{name}={','.join(map(str, values))}" for name, values in table.items()]
    read = parse_class_arguments(texts)
    assert {k: [v] if isinstance(v, int) else v for k, v in read.items()} == table


@pytest.mark.parametrize("text", ["liver", "=1", "liver=", "liver=x", "liver=-1", "liver=1,"])
def test_malformed_class_argument_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="is not a class"):
        parse_class_arguments([text])


@pytest.mark.parametrize(("text", "modality"), [("CT", "ct"), ("Other", "other"), ("ct", "ct")])
def test_a_modality_may_be_written_in_any_case(text: str, modality: str) -> None:
    assert parse_modality(text) == modality


def test_an_unknown_modality_says_what_to_write() -> None:
    with pytest.raises(UsageError) as caught:
        parse_modality("mr")
    assert caught.value.fix is not None


@pytest.mark.parametrize("name", ["x" * 201, "liver\nright", "liver\x1b[31m", "\u202eliver"])
def test_names_that_no_file_can_carry_are_refused(name: str) -> None:
    with pytest.raises(DataRefused, match="cannot be the name of a class") as refused:
        class_table({"background": 0, name: 1}, file="dataset.json")
    assert refused.value.file == "dataset.json"
    with pytest.raises(UsageError, match="cannot be the name of a class"):
        parse_class_arguments([f"{name}=1"])


def test_the_longest_name_is_accepted() -> None:
    name = "ü" * 200
    assert class_table({name: 1}).names == (name,)
    assert parse_class_arguments([f"{name}=1"]) == {name: 1}


def test_classes_that_share_a_value_go_together() -> None:
    classes = {"liver": (1,), "spleen": (2,), "abdomen": (1, 2), "bone": (3,)}
    assert sharing_values(["liver"], classes) == {"liver", "abdomen"}
    assert sharing_values(["unknown"], classes) == set()
