"""File names: which file is which channel of which case."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iris_cli.dataset.layout import (
    check_case_name,
    count_channels,
    group_channels,
    list_volumes,
    split_channel,
)
from iris_cli.errors import DataRefused
from tests.dataset.trees import touch


def paths(*names: str) -> list[Path]:
    return [Path(f"{name}.nii.gz") for name in names]


def test_hidden_files_and_other_files_are_nobodys(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.mha", "._b.nii.gz", ".DS_Store", "notes.txt"):
        touch(tmp_path / name)
    (tmp_path / "folder.nii.gz").mkdir()
    assert [path.name for path in list_volumes(tmp_path)] == ["a.mha", "b.nii.gz"]
    assert [path.name for path in list_volumes(tmp_path, ".nii.gz")] == ["b.nii.gz"]


def test_channel_suffix_is_four_digits_after_a_name() -> None:
    assert split_channel("case_0001") == ("case", 1)
    assert split_channel("case_001") is None
    assert split_channel("_0001") is None
    assert split_channel("a_0002_0000") == ("a_0002", 0)


def test_suffixed_names_are_grouped_by_case() -> None:
    groups = group_channels(paths("b_0001", "b_0000", "a_0000", "a_0001"), 2)
    assert [(g.case, list(g.by_channel)) for g in groups] == [("a", [0, 1]), ("b", [0, 1])]


def test_plain_names_of_a_single_channel_are_case_names() -> None:
    groups = group_channels(paths("amos_0507", "amos_0510"), 1)
    assert [g.case for g in groups] == ["amos_0507", "amos_0510"]


def test_a_mixture_of_names_is_refused() -> None:
    with pytest.raises(DataRefused, match="which channel") as caught:
        group_channels(paths("a_0000", "b"), 1)
    assert "b.nii.gz" in str(caught.value)


def test_label_maps_decide_what_a_name_ending_in_0000_is() -> None:
    images = paths("scan_0000", "scan_0017")
    assert [g.case for g in group_channels(images, 1, labelled={"scan_0000", "scan_0017"})] == [
        "scan_0000",
        "scan_0017",
    ]


def test_every_odd_name_is_collected_and_the_others_are_grouped() -> None:
    odd: list[DataRefused] = []
    groups = group_channels(paths("a_0000", "a_0001", "b", "c_0007"), 2, odd=odd)
    assert [g.case for g in groups] == ["a"]
    assert [error.found for error in odd] == ["b.nii.gz", "c_0007.nii.gz"]


def test_two_files_of_one_channel_are_refused() -> None:
    with pytest.raises(DataRefused, match="two files are channel 0"):
        group_channels([Path("a.nii.gz"), Path("a.mha")], 1)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["a_0000", "b_0000"], 1),
        (["a_0000", "a_0001", "b_0000", "b_0001"], 2),
        (["amos_0507", "amos_0510"], 1),
        (["a", "b"], 1),
        (["a_0000", "b"], 1),
        (["a_0000", "b_0001"], 1),
        ([], 1),
    ],
)
def test_channels_are_counted_from_names(names: list[str], count: int) -> None:
    assert count_channels(names) == count


@given(
    st.sets(st.text("abc_0123", min_size=1, max_size=6), min_size=2, max_size=5),
    st.integers(1, 4),
)
def test_names_that_were_made_of_case_and_channel_give_both_back(
    cases: set[str], channels: int
) -> None:
    files = paths(*(f"{case}_{index:04d}" for case in cases for index in range(channels)))
    groups = group_channels(files, channels)
    assert [group.case for group in groups] == sorted(cases)
    for group in groups:
        assert [path.name for path in group.by_channel.values()] == [
            f"{group.case}_{index:04d}.nii.gz" for index in range(channels)
        ]


@pytest.mark.parametrize("name", ["../a", "/a", "a/b", "..", "con", "a\\b", "c:a", "a\nb", ""])
def test_case_names_never_leave_their_folder(name: str) -> None:
    with pytest.raises(DataRefused):
        check_case_name(name)
