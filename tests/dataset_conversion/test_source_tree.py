"""The files of a source: patterns, natural order, what is no data."""

from __future__ import annotations

from pathlib import Path

from dataset_conversion.source_tree import SourceTree
from tests.dataset.trees import touch


def _file(path: Path) -> Path:
    touch(path).write_bytes(b"x")
    return path


def test_it_does_not_matter_to_which_folder_a_user_points(tmp_path: Path) -> None:
    path = _file(tmp_path / "Abdomen/RawData/Training/img/img0001.nii.gz")
    for root in (tmp_path, tmp_path / "Abdomen", path.parents[1], path.parent):
        assert SourceTree(root).by_key(r"Training/img/img(?P<key>\d+)\.nii\.gz") == {"0001": path}
    assert SourceTree(tmp_path).match(r"mg0001\.nii\.gz") == []


def test_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        _file(tmp_path / f"{number}/data.nii.gz")
    assert list(SourceTree(tmp_path).by_key(r"(?P<key>\d+)/data\.nii\.gz")) == ["1", "2", "10"]


def test_optional_first_folders_are_seen(tmp_path: Path) -> None:
    _file(tmp_path / "valid/03/x.nii")
    ((_, match),) = SourceTree(tmp_path).match(r"((?P<part>valid)/)?((?P<n>\d\d)/)?x\.nii")
    assert (match["part"], match["n"]) == ("valid", "03")


def test_what_is_no_data_is_set_aside_and_said(tmp_path: Path) -> None:
    for name in ("a/._x.nii.gz", "a/.DS_Store", "Thumbs.db", "x.nii.gz.part", "y.nii.crdownload"):
        _file(tmp_path / name)
    touch(tmp_path / "a/empty.nii.gz")
    (tmp_path / "a/gone.nii.gz").symlink_to(tmp_path / "nothing")
    _file(tmp_path / "__MACOSX/a/x.nii.gz")
    tree = SourceTree(tmp_path)
    assert tree.files == []
    assert set(tree.skipped.values()) == {
        "a companion file of an archive or a file manager",
        "an unfinished download",
        "an empty file",
    }


def test_a_second_file_of_a_case_is_said(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        _file(tmp_path / folder / "volume-1.nii")
    tree = SourceTree(tmp_path)
    assert tree.by_key(r"volume-(?P<key>\d+)\.nii") == {"1": tmp_path / "one/volume-1.nii"}
    assert tree.skipped == {"two/volume-1.nii": "a second file of 1"}


def test_volumes_that_no_pattern_knows_are_named(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz", "notes.txt"):
        _file(tmp_path / name)
    tree = SourceTree(tmp_path)
    tree.match(r"a\.nii\.gz")
    assert tree.unmatched() == ["b.nii.gz"]


def test_a_link_to_a_folder_above_ends(tmp_path: Path) -> None:
    _file(tmp_path / "a/x.nii.gz")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    assert SourceTree(tmp_path).files == ["a/x.nii.gz"]
