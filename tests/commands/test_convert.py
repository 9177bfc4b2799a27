"""`iris convert`: names of the registry as commands, dry runs, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataset_conversion.registry import CONVERTERS
from tests.commands.conftest import Iris
from tests.dataset_conversion.miniature import anatomy, image, write
from tests.dataset_conversion.test_runner import write_segthor


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_segthor(tmp_path / "source", range(1, 4))


def test_the_list_names_all_with_licence_page_and_role(iris: Iris) -> None:
    rows = {row["name"]: row for row in json.loads(iris("convert", "list", "--json").out)}
    assert set(rows) == {*CONVERTERS, "pairs"}
    segthor = rows["segthor"]
    assert segthor["labels"] == {"oesophagus": 1, "heart": 2, "trachea": 3, "aorta": 4}
    assert segthor["paper"] == "held out"
    assert segthor["verified"] == "documentation"
    assert segthor["licence"]
    assert segthor["page"].startswith("https://")
    assert segthor["sources"]
    text = iris("convert", "list").out
    assert all(name in text for name in rows)
    assert "licence: challenge agreement" in text


def test_a_set_is_converted_by_its_name(iris: Iris, source: Path, tmp_path: Path) -> None:
    ran = iris("convert", "segthor", source, "-w", tmp_path)
    assert ran.code == 0
    assert f"made {tmp_path / 'raw/segthor'}" in ran.out
    assert "note: 3 labelled cases found, the archive holds 40" in ran.err
    assert (tmp_path / "raw/segthor/dataset.json").is_file()
    assert iris("convert", "segthor", source, "-w", tmp_path, "--link").code == 0
    assert (tmp_path / "raw/segthor/imagesTr/Patient_01_0000.nii.gz").is_symlink()


def test_a_dry_run_writes_nothing(iris: Iris, source: Path, tmp_path: Path) -> None:
    ran = iris("convert", "segthor", source, "-w", tmp_path, "--dry-run", "--json")
    assert ran.code == 0
    said = json.loads(ran.out)
    assert [row["case"] for row in said["cases"]] == ["Patient_01", "Patient_02", "Patient_03"]
    assert {row["role"] for row in said["cases"]} == {"train"}
    assert not (tmp_path / "raw").exists()
    assert "Patient_02" in iris("convert", "segthor", source, "--dry-run").out


def test_a_bad_case_is_exit_three_and_named(iris: Iris, source: Path, tmp_path: Path) -> None:
    (source / "train/Patient_02/GT.nii.gz").write_bytes(b"no volume")
    ran = iris("convert", "segthor", source, "-o", tmp_path / "raw")
    assert ran.code == 3
    assert "failed: Patient_02" in ran.err
    assert "run the same line again" in ran.err
    assert len(list((tmp_path / "raw/imagesTr").iterdir())) == 2


def test_an_unknown_name_gets_the_nearest(iris: Iris, source: Path) -> None:
    ran = iris("convert", "segthro", source)
    assert ran.code == 2
    assert "did you mean 'segthor'?" in ran.err


def test_two_sources_of_one_form_become_two_sets(iris: Iris, tmp_path: Path) -> None:
    for name in ("first.study", "second"):
        write(tmp_path / name / "sub-1/anat/sub-1_T1w.nii.gz", image())
        label = tmp_path / name / "derivatives/mine/sub-1/anat/sub-1_dseg.nii.gz"
        write(label, anatomy({"heart": 1}))
        ran = iris("convert", "bids", tmp_path / name, "-w", tmp_path)
        assert ran.code == 0
        assert (tmp_path / f"raw/{name}/dataset.json").is_file()
    ran = iris("convert", "bids", tmp_path / "second", "-o", tmp_path / "raw/first.study")
    assert ran.code == 2
    assert "another source" in ran.err
    assert len(list((tmp_path / "raw/first.study/imagesTr").iterdir())) == 1
