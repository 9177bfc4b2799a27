"""R1: four processes on one folder of 60 cases, killed at random and started again.

Every case is computed once by those that live, and the folder is that of one quiet run.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.faults.lines import (
    Crowd,
    finish,
    predicted_content,
    strays,
    write_model,
    write_scenes,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CASES = 60
KILLS = 24
EDGE = 24


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    names = [f"case_{number:02d}" for number in range(CASES)]
    write_scenes(folder / "queries", folder / "truth", names, edge=EDGE, spacing_mm=3.0)
    write_scenes(
        folder / "refs" / "images", folder / "refs" / "labels", ["r"], edge=EDGE, spacing_mm=3.0
    )
    model = write_model(folder, s0=3.0)
    # Finer than the cases are: so that a case takes long enough to be killed in.
    spacing = ("--spacing", "1.5")
    task = str(folder / "x.task.pt")
    finish(["encode-task", str(folder / "refs"), "-o", task, "-m", str(model), *spacing])
    return folder


def line(inputs: Path, out: Path, *more: str) -> list[str]:
    words = ["predict", "-t", str(inputs / "x.task.pt"), "-m", str(inputs / "tiny")]
    return [*words, "-i", str(inputs / "queries"), "-o", str(out), *more]


@pytest.fixture(scope="module")
def quiet(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The folder of one run in peace."""
    out = tmp_path_factory.mktemp("quiet") / "out"
    finish(line(inputs, out))
    content = predicted_content(out)
    assert len([name for name in content if name.endswith(".nii.gz")]) == CASES
    assert len(set(map(str, content.values()))) > CASES, "cases are to differ from one another"
    shutil.rmtree(out)
    return content


class Once:
    """Sees that a case that is done is not computed again."""

    def __init__(self, out: Path) -> None:
        self._folder = out / ".iris"
        self._seen: dict[str, int] = {}
        self.again: set[str] = set()

    def __call__(self) -> int:
        """How many cases are done."""
        for path in self._folder.glob("*.json"):
            if path.name.startswith("."):
                continue
            try:
                state = path.stat().st_mtime_ns
            except OSError:  # taken away in this moment, which is what must not be
                self.again.add(path.stem)
                continue
            if self._seen.setdefault(path.stem, state) != state:
                self.again.add(path.stem)
        return len(self._seen)


@pytest.mark.parametrize(
    ("processes", "more", "victims"),
    [(4, (), "process"), (2, ("-j", "2"), "both")],
    ids=["four processes", "workers"],
)
def test_processes_that_are_killed_on_one_folder_give_what_one_quiet_run_gives(
    processes: int,
    more: tuple[str, ...],
    victims: str,
    inputs: Path,
    quiet: dict[str, Any],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    once = Once(out)
    crowd = Crowd(line(inputs, out, *more), processes, once, out / ".iris" / "claims")
    crowd.run(CASES, KILLS, seed=16, victims=victims)
    assert once() == CASES
    print(f"killed: {dict(crowd.kills)}; exit codes: {crowd.exit_codes}")
    assert crowd.kills["at work"] >= KILLS // 4
    assert not once.again, "a case that was done was computed again"
    assert predicted_content(out) == quiet
    assert strays(out) == []
