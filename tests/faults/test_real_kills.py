"""200 real volumes, the shipped model, processes and workers killed at random: nothing is lost."""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.lines import Crowd, finish, predicted_content, strays
from tests.faults.test_many_processes import Once

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(7200)]

VOLUMES = 200
REFERENCES = 2
KILLS = 40
SET = "hippocampus"


@pytest.fixture(scope="module")
def inputs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases that may be looked at, again under other names until there are 200 of them."""
    folder, source = tmp_path_factory.mktemp("inputs"), shared_data / SET
    roles = json.loads((shared_data / "splits.json").read_text())["sets"][SET]
    cases = [*roles["train"], *roles["validate"]]
    for case in cases[:REFERENCES]:
        for kind in ("images", "labels"):
            _copy(source / kind / f"{case}.nii.gz", folder / "refs" / kind)
    (folder / "refs" / "labels.json").write_text('{"anterior": 1, "posterior": 2}')
    others = cases[REFERENCES:]
    for number in range(VOLUMES):
        turn, case = divmod(number, len(others))
        path = source / "images" / f"{others[case]}.nii.gz"
        _copy(path, folder / "queries", f"{others[case]}_{'abcdef'[turn]}.nii.gz")
    finish(["encode-task", str(folder / "refs"), "-o", str(folder / "x.task.pt")])
    return folder


def _copy(path: Path, folder: Path, name: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / (name or path.name))


def line(inputs: Path, out: Path, *more: str) -> list[str]:
    words = ["predict", "-t", str(inputs / "x.task.pt"), "-i", str(inputs / "queries")]
    return [*words, "-o", str(out), *more]


def timed() -> Iterator[str]:
    """Wall time since the first call, and computing time of processes that were waited for."""
    began, before = time.monotonic(), _computed()
    while True:
        yield f"{time.monotonic() - began:.0f} s, {_computed() - before:.0f} CPU s"


def _computed() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def quiet(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out, clock = tmp_path_factory.mktemp("quiet") / "out", timed()
    next(clock)
    finish(line(inputs, out))
    print(f"quiet run of {VOLUMES} volumes: {next(clock)}")
    return predicted_content(out)


@pytest.mark.parametrize(
    ("processes", "more", "victims"),
    [(4, (), "process"), (2, ("-j", "2"), "both")],
    ids=["four processes", "workers"],
)
def test_real_volumes_come_out_as_in_a_quiet_run(
    processes: int,
    more: tuple[str, ...],
    victims: str,
    inputs: Path,
    quiet: dict[str, Any],
    tmp_path: Path,
) -> None:
    out, clock = tmp_path / "out", timed()
    once = Once(out)
    next(clock)
    crowd = Crowd(line(inputs, out, *more), processes, once, out / ".iris" / "claims")
    crowd.run(VOLUMES, KILLS, seed=200, victims=victims)
    print(f"{processes} processes {' '.join(more)}: {next(clock)}, killed: {dict(crowd.kills)}")
    assert once() == VOLUMES
    assert crowd.kills["at work"] >= KILLS // 4
    assert not once.again, "a case that was done was computed again"
    assert predicted_content(out) == quiet
    assert strays(out) == []
