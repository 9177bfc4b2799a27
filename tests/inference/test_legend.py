"""Label names and colours beside label maps."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shlex
import threading
import time
from pathlib import Path

import pytest

from iris_cli.errors import DataRefused
from iris_cli.execution.claims import Holder
from iris_cli.inference import legend
from iris_cli.inference.legend import (
    SharedLegend,
    colour,
    itk_snap_table,
    slicer_table,
    write_legend,
)

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


def shared(folder: Path, names: dict[int, str]) -> SharedLegend:
    return SharedLegend(folder, names, folder / ".iris" / "lines")


def table(folder: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((folder / "labels.json").read_text())
    return found


def test_lines_that_begin_together_lose_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has read the names, and before it writes them another one comes."""
    begun, go_on = threading.Event(), threading.Event()
    original = legend.read_legend

    def slowly(folder: Path, names: dict[int, str]) -> dict[int, str]:
        found = original(folder, names)
        if 1 in names and not begun.is_set():
            begun.set()
            go_on.wait(0.5)
        return found

    monkeypatch.setattr(legend, "read_legend", slowly)

    def begin(names: dict[int, str]) -> None:
        with shared(tmp_path, names):
            go_on.set()

    one = threading.Thread(target=begin, args=({1: "liver"},))
    one.start()
    begun.wait()
    begin({2: "spleen"})
    one.join()
    assert table(tmp_path) == {"background": 0, "liver": 1, "spleen": 2}


def test_many_lines_at_once_lose_no_name(tmp_path: Path) -> None:
    def line(value: int) -> None:
        with shared(tmp_path, {value: f"class {value}"}) as one:
            one.finish(lambda: True)

    lines = [threading.Thread(target=line, args=(value,)) for value in range(1, 13)]
    for thread in lines:
        thread.start()
    for thread in lines:
        thread.join()
    assert table(tmp_path) == {"background": 0, **{f"class {n}": n for n in range(1, 13)}}
    assert not (tmp_path / ".iris" / "lines").exists()


def test_names_of_a_line_that_has_no_label_map_yet_stay(tmp_path: Path) -> None:
    with shared(tmp_path, {2: "spleen"}) as other:
        with shared(tmp_path, {1: "liver"}) as one:
            one.finish(lambda: False)
        assert table(tmp_path) == {"background": 0, "liver": 1, "spleen": 2}
        other.finish(lambda: False)
    assert table(tmp_path) == {"background": 0, "spleen": 2}


def test_a_line_that_just_begins_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of its claim is there and still empty while another line ends."""
    write, begins, ends = os.write, threading.Event(), threading.Event()

    def slowly(descriptor: int, data: bytes) -> int:
        if threading.current_thread().name == "late":
            begins.set()
            time.sleep(0.2)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", slowly)

    def late() -> None:
        with shared(tmp_path, {2: "spleen"}):
            ends.wait()

    thread = threading.Thread(target=late, name="late", daemon=True)
    with shared(tmp_path, {1: "liver"}) as one:
        thread.start()
        begins.wait()
        one.finish(lambda: False)
    with shared(tmp_path, {3: "kidney"}) as three:
        three.finish(lambda: False)
    assert table(tmp_path) == {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}
    ends.set()
    thread.join()


def test_a_line_that_was_killed_does_not_keep_its_names(tmp_path: Path) -> None:
    write_legend(tmp_path, {2: "spleen"})
    claims = tmp_path / ".iris" / "lines"
    claims.mkdir(parents=True)
    dead = dataclasses.replace(Holder.this_process(), pid=999999999)
    (claims / "line-0.claim").write_text(json.dumps(dead.__dict__))
    with shared(tmp_path, {1: "liver"}) as one:
        one.finish(lambda: False)
    assert table(tmp_path) == {"background": 0, "liver": 1}
    assert not claims.exists()


def test_a_line_that_gives_a_value_another_name_is_refused_while_the_first_works(
    tmp_path: Path,
) -> None:
    with shared(tmp_path, {1: "liver"}):
        with pytest.raises(DataRefused, match="label maps of another task"):
            shared(tmp_path, {1: "spleen"}).__enter__()
        assert table(tmp_path) == {"background": 0, "liver": 1}
    assert not (tmp_path / ".iris" / "lines").exists()


ODD_NAMES = {1: "Großhirn, links", 2: "a  b\tc", 300: "#1 'quoted'", 65535: "left_kidney"}


def test_slicer_reads_odd_names_by_its_rules() -> None:
    """vtkMRMLColorTableStorageNode: blanks part the fields, # at the start is a comment, and _ in
    a name is shown as a blank."""
    lines = [line for line in slicer_table(ODD_NAMES).splitlines() if not line.startswith("#")]
    fields = [line.split() for line in lines]
    assert [len(line) for line in fields] == [6] * 5
    assert [int(line[0]) for line in fields] == [0, 1, 2, 300, 65535]
    names = {int(line[0]): line[1].replace("_", " ") for line in fields[1:]}
    assert names == {1: "Großhirn, links", 2: "a b c", 300: "#1 'quoted'", 65535: "left kidney"}
    assert all(0 <= int(part) <= 255 for line in fields for part in line[2:])


def test_itk_snap_reads_odd_names_by_its_rules() -> None:
    """Its own header: index, red, green, blue (0-255), alpha (0-1), two flags, name in quotes."""
    lines = [line for line in itk_snap_table(ODD_NAMES).splitlines() if not line.startswith("#")]
    read = {int(line.split()[0]): line.split(maxsplit=7) for line in lines}
    assert list(read) == [0, 1, 2, 300, 65535]
    for value, name in ODD_NAMES.items():
        *_, alpha, shown, mesh, quoted = read[value]
        assert (alpha, shown, mesh) == ("1", "1", "1")
        assert shlex.split(quoted) == [name.replace("\n", " ")]
        assert tuple(map(int, read[value][1:4])) == colour(value)
