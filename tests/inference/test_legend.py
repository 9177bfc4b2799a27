"""Label names and colours beside label maps."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from iris_cli.inference.legend import colour, itk_snap_table, slicer_table, write_legend

NAMES = {7: 'left "big" kidney', 2: "liver"}


def test_slicer_reads_value_name_and_colour() -> None:
    lines = slicer_table(NAMES).splitlines()
    assert lines[1] == "0 background 0 0 0 0"
    assert lines[2].split()[:2] == ["2", "liver"]
    assert lines[3].split()[:2] == ["7", 'left_"big"_kidney']
    assert len(lines[3].split()) == 6


def test_itk_snap_reads_a_quoted_name_last() -> None:
    lines = itk_snap_table(NAMES).splitlines()
    assert lines[-1].endswith("\"left 'big' kidney\"")
    numbers = lines[-1].split('"')[0].split()
    assert [int(number) for number in numbers] == [7, *colour(7), 1, 1, 1]


def test_colours_of_neighbours_differ() -> None:
    colours = [colour(value) for value in range(1, 60)]
    assert len(set(colours)) == 59
    assert all(
        sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 60
        for one, other in itertools.pairwise(colours)
    )


def test_the_files_lie_beside_the_label_maps(tmp_path: Path) -> None:
    paths = write_legend(tmp_path, NAMES)
    assert sorted(path.name for path in paths) == ["labels.ctbl", "labels.json", "labels.txt"]
    table = json.loads((tmp_path / "labels.json").read_text())
    assert table == {"background": 0, "liver": 2, 'left "big" kidney': 7}


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    # Processes of other machines share the folder: nothing tells whether theirs still run.
    live = tmp_path / ".labels.json.999999999-abcd-0000000.partial.json"
    live.write_text("{")
    write_legend(tmp_path, NAMES)
    assert live.exists()
