"""Volumes that arrive in a folder: taken once, whole, and again only when they change."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from iris_cli.errors import EnvironmentProblem, IrisError, Stopped, UsageError
from iris_cli.execution.jobs import CaseResult
from iris_cli.execution.signals import StopRequest
from iris_cli.files.publish import process_is_alive
from iris_cli.inference import job
from iris_cli.inference.job import PredictPayload, predict_case
from iris_cli.task.combining import rename
from iris_cli.task.task_file import read_task, write_task
from iris_cli.volume.writing import write_image
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from iris_cli.workflows.predict import PredictReport, PredictSettings
from iris_cli.workflows.watch import Arrivals, Watched, watch
from tests.workflows.conftest import GRID, scene

QUIET = 0.05


def test_a_file_is_taken_once_when_it_has_kept_still(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path, 5.0)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"one")
    (tmp_path / ".b.nii.gz.part").write_bytes(b"one")
    (tmp_path / "notes.txt").write_text("no volume")
    assert arrivals.take(100.0) == []
    assert arrivals.take(104.0) == []
    path.write_bytes(b"longer")
    assert arrivals.take(106.0) == []
    assert arrivals.take(110.0) == []
    assert arrivals.take(111.0) == [path]
    assert arrivals.take(120.0) == []
    os.utime(path, ns=(1, 1))
    assert arrivals.take(121.0) == []
    assert arrivals.take(127.0) == [path]


def test_an_empty_file_is_not_whole_and_a_second_file_of_the_case_counts(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path, 5.0)
    (tmp_path / "a.nii.gz").touch()
    header, voxels = tmp_path / "m[1].mhd", tmp_path / "voxels of m"
    header.write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 1 1 2\nElementType = MET_UCHAR\n"
        f"ElementSpacing = 1 1 1\nElementDataFile = {voxels.name}\n"
    )
    voxels.write_bytes(b"1")
    arrivals.take(0.0)
    voxels.write_bytes(b"12")
    assert arrivals.take(6.0) == []
    assert arrivals.take(12.0) == [header]


def test_of_two_files_of_one_case_the_first_is_kept_and_the_other_waits(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path, 1.0)

    def look(now: float) -> list[str]:
        taken = arrivals.take(now)
        return [path.name for path in taken if arrivals.refuse_twin(path) is None]

    first, other = tmp_path / "s.nii", tmp_path / "s_0000.nii.gz"
    for path in (first, other):
        path.write_bytes(b"one")
    arrivals.take(0.0)
    assert look(2.0) == ["s.nii"]
    arrivals.take(3.0)
    assert look(5.0) == []
    # It changes: once more, and refused once more.
    other.write_bytes(b"longer")
    arrivals.take(6.0)
    assert arrivals.take(8.0) == [other]
    assert arrivals.refuse_twin(other) == first
    # The first gets another name: both are cases of their own now.
    first.rename(tmp_path / "t.nii")
    arrivals.take(9.0)
    assert look(11.0) == ["s_0000.nii.gz", "t.nii"]
    # What has gone and comes again is new.
    content = (tmp_path / "t.nii").read_bytes()
    (tmp_path / "t.nii").unlink()
    arrivals.take(12.0)
    (tmp_path / "t.nii").write_bytes(content)
    arrivals.take(13.0)
    assert look(15.0) == ["t.nii"]


def test_the_name_of_a_case_does_not_hang_on_what_arrives_with_it(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    (queries / "a.nii.gz").rename(queries / "a_0000.nii.gz")
    watching = Watching(StopRequest())
    watching.coming = [[]]  # goes on after the first report
    run(watching, queries, tmp_path / "out", task, settings)
    names = {"a.nii.gz", "b.nii.gz", "c.nii.gz"}
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == names
    assert watching.refused == []


def test_a_folder_that_goes_ends_the_watch(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="has gone"):
        Arrivals(tmp_path / "missing", 5.0).take(0.0)


class Watching:
    """What a watch said, and files that come while it runs."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop, self.statuses, self.refused = stop, [], []
        self.coming: list[list[Path]] = []
        self.folder = Path()

    def report(self, report: PredictReport) -> None:
        self.statuses += [(one.name, one.status) for one in report.run.outcomes]
        self._next()

    def refuse(self, path: Path, error: IrisError) -> None:
        self.refused.append((path.name, error.problem))
        self._next()

    def _next(self) -> None:
        if not self.coming:
            self.stop.request("SIGTERM")
            return
        for path in self.coming.pop(0):
            shutil.copy(path, self.folder / path.name)


def run(
    watching: Watching, folder: Path, out: Path, task: Path, settings: PredictSettings
) -> Watching:
    watching.folder = folder
    watched = Watched(folder, QUIET, watching.report, watching.refuse)
    with pytest.raises(Stopped):
        watch(watched, out, tasks=[task], settings=settings, stop=watching.stop)
    return watching


@pytest.fixture
def task(references: Path, model_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "boxes.task.pt"
    encode_task(ReferenceSource(references), path, model=model_folder)
    return path


@pytest.fixture
def settings(model_folder: Path) -> PredictSettings:
    return PredictSettings(model=str(model_folder))


def test_files_are_segmented_as_they_come_and_a_new_watch_keeps_them(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(queries, source)
    (queries / "b.nii.gz").unlink()
    (queries / "c.nii.gz").write_bytes(b"not a volume")
    watching = Watching(StopRequest())
    watching.coming = [[source / "b.nii.gz"], [source / "c.nii.gz"]]
    run(watching, queries, tmp_path / "out", task, settings)
    assert watching.statuses == [
        ("a", "done"),
        ("c", "failed"),
        ("b", "done"),
        ("c", "done"),
    ]
    assert {p.name for p in (tmp_path / "out").glob("*.nii.gz")} == {
        "a.nii.gz",
        "b.nii.gz",
        "c.nii.gz",
    }
    again = run(Watching(StopRequest()), queries, tmp_path / "out", task, settings)
    assert again.statuses == [(name, "kept") for name in "abc"]


def counting(payload: PredictPayload) -> CaseResult:
    """A case in a worker, which notes its process and how often that has loaded a model."""
    result = predict_case(payload)
    loads = job._load_once.cache_info().misses
    with (payload.output.parent / "loads.txt").open("a") as notes:
        notes.write(f"{os.getpid()} {loads}\n")
    return result


def test_workers_stay_with_their_model_from_one_arrival_to_the_next(
    queries: Path,
    task: Path,
    settings: PredictSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from iris_cli.workflows import predict as workflow

    monkeypatch.setattr(workflow, "predict_case", counting)
    source = tmp_path / "source"
    queries.rename(source)
    queries.mkdir()
    shutil.copy(source / "a.nii.gz", queries)
    watching = Watching(StopRequest())
    watching.coming = [[source / "b.nii.gz"], [source / "c.nii.gz"]]
    one = dataclasses.replace(settings, workers=1)
    run(watching, queries, tmp_path / "out", task, one)
    assert watching.statuses == [(name, "done") for name in "abc"]
    noted = [line.split() for line in (tmp_path / "out" / "loads.txt").read_text().splitlines()]
    assert len({process for process, _ in noted}) == 1
    assert [loads for _, loads in noted] == ["1"] * 3
    assert not process_is_alive(int(noted[0][0])), "the worker outlives the watch"


def test_options_that_the_profile_cannot_serve_are_said_before_anything_arrives(
    queries: Path, references: Path, mass_folder: Path, tmp_path: Path
) -> None:
    settings = PredictSettings(model=str(mass_folder), skip_empty=True)
    watching = Watching(StopRequest())
    watched = Watched(queries, QUIET, watching.report, watching.refuse)
    source = ReferenceSource(references)
    with pytest.raises(UsageError, match="works every window"):
        watch(watched, tmp_path / "out", references=source, settings=settings)


def test_two_files_of_one_output_are_refused_and_the_watch_goes_on(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    other = write_image(tmp_path / "a.mha", scene(9)[0].astype(np.float32), GRID)
    late = write_image(tmp_path / "z.mha", scene(9)[0].astype(np.float32), GRID)
    watching = Watching(StopRequest())
    watching.coming = [[other], [late]]
    run(watching, queries, tmp_path / "out", task, settings)
    assert watching.refused == [("a.mha", "another volume of this name was there before")]
    assert watching.statuses[-1] == ("z", "done")


def test_what_no_file_can_change_is_said_at_once(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    def start(folder: Path, out: Path, tasks: list[Path], settings: PredictSettings) -> None:
        watching = Watching(StopRequest())
        watched = Watched(folder, QUIET, watching.report, watching.refuse)
        watch(watched, out, tasks=tasks, settings=settings, stop=watching.stop)

    out = tmp_path / "out"
    with pytest.raises(UsageError, match="no such folder"):
        start(tmp_path / "missing", out, [task], settings)
    with pytest.raises(UsageError, match="watched one"):
        start(queries, queries, [task], settings)
    with pytest.raises(UsageError, match="needs tasks"):
        start(queries, out, [], settings)
    with pytest.raises(UsageError, match="neither ships"):
        start(queries, out, [task], PredictSettings())
    twin = write_task(tmp_path / "twin.task.pt", rename(read_task(task), {"left": "l"}))
    with pytest.raises(IrisError, match="both have"):
        start(queries, out, [task, twin], settings)
    out.mkdir()
    (out / "labels.json").write_text('{"background": 0, "other": 1}')
    with pytest.raises(IrisError, match="label maps of another task"):
        start(queries, out, [task], settings)
