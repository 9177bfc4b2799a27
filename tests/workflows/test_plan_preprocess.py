"""plan and preprocess as a user runs them: one workspace, resumable, nothing of the test cases."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from iris_cli.dataset.raw import read_raw_dataset
from iris_cli.errors import DataRefused, EnvironmentProblem, UsageError
from iris_cli.execution import dask_engine
from iris_cli.execution.dask_engine import DaskEngine
from iris_cli.execution.parts import WHOLE, Part
from iris_cli.execution.schedule import Schedule
from iris_cli.execution.worker import Ran
from iris_cli.planning import crew
from iris_cli.planning.plan import read_plan
from iris_cli.planning.training_sets import sets_for_training
from iris_cli.preparation.case_memory import CASE_S
from iris_cli.preparation.store import list_cases, open_case
from iris_cli.training.catalogue import read_catalogue
from iris_cli.volume.writing import write_labels
from iris_cli.workflows.plan import PlanReport, plan, set_name
from iris_cli.workflows.preprocess import preprocess
from tests.preparation.raw_sets import blobs, grid, image_file, label_file, make_set


def make_workspace(folder: Path) -> Path:
    make_set(folder / "raw" / "boxes", test=("held",), channels={"0": "MR T1", "1": "MR T2"})
    make_set(folder / "raw" / "free", (), labels={}, unlabelled=("u",))
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return make_workspace(tmp_path / "ws")


@pytest.fixture
def all_workers_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as are asked for, however little there is to do."""
    monkeypatch.setattr(crew, "START_S", 1e-6)


def planned(workspace: Path, **options: Any) -> PlanReport:
    return plan(workspace=workspace, preset_name="tiny", **options)


def contents(workspace: Path) -> dict[str, Any]:
    files = sorted((workspace / "preprocessed").rglob("*.json"))
    return {str(f.relative_to(workspace)): json.loads(f.read_text())["content"] for f in files}


def test_plan_writes_what_it_returns(workspace: Path) -> None:
    report = planned(workspace)
    assert report.path == workspace / "plans" / "default.json"
    assert read_plan(report.path) == report.plan
    assert [row["set"] for row in report.set_rows()] == ["boxes", "free"]
    json.dumps(report.to_json())
    assert report.estimate.parameters > 0


def test_preprocess_leaves_test_cases_out(workspace: Path) -> None:
    report = planned(workspace)
    done = preprocess(report.path, workspace=workspace)
    assert done.exit_code == 0
    views = list_cases(done.folders["boxes"])
    assert views == tuple(f"{c}{v}" for c in "abcde" for v in ("", "@1"))
    roles = {open_case(done.folders["boxes"], view).stored.role for view in views}
    assert roles == {"train", "validate"}
    assert list_cases(done.folders["free"]) == ("u",)
    json.dumps(done.to_json())


def test_a_rerun_keeps_all_and_one_lost_receipt_costs_one_case(workspace: Path) -> None:
    report = planned(workspace)
    folder = preprocess(report.path, workspace=workspace).folders["boxes"]
    before = contents(workspace)
    (folder / "c.json").unlink()
    rows = {r["set"]: r for r in preprocess(report.path, workspace=workspace).set_rows()}
    assert (rows["boxes"]["done"], rows["boxes"]["kept"]) == ("1", "4")
    assert contents(workspace) == before
    rows = {r["set"]: r for r in preprocess(report.path, workspace=workspace).set_rows()}
    assert (rows["boxes"]["done"], rows["boxes"]["kept"]) == ("0", "5")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.usefixtures("all_workers_start")
def test_any_number_of_workers_and_any_order_give_the_same_content(
    workspace: Path, tmp_path: Path, workers: int
) -> None:
    report = planned(workspace)
    preprocess(report.path, workspace=workspace)
    other = make_workspace(tmp_path / "other")
    done = preprocess(report.plan, workspace=other, workers=workers, sets=["free", "boxes"])
    assert done.memory.workers == workers
    assert contents(other) == contents(workspace)


def test_parts_of_a_plan_make_what_one_run_makes(workspace: Path) -> None:
    plan = planned(workspace).plan
    preprocess(plan, workspace=workspace)
    expected = contents(workspace)
    shutil.rmtree(workspace / "preprocessed")
    shares = [
        preprocess(plan, workspace=workspace, part=Part(index, 2, "--part-id")).share
        for index in range(2)
    ]
    assert shares[0].missing == shares[0].others > 0
    assert (shares[1].others, shares[1].missing) == (shares[0].cases, 0)
    assert contents(workspace) == expected


@pytest.mark.slow
def test_a_dask_cluster_makes_what_one_process_makes(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    plan = planned(workspace).plan
    preprocess(plan, workspace=workspace)
    other = make_workspace(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    assert preprocess(plan, workspace=Path("other"), dask="local:2").exit_code == 0
    assert contents(other) == contents(workspace)


def test_on_a_dask_cluster_the_memory_of_this_machine_does_not_count(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the work that there is: the cluster has its workers."""
    ran: list[str] = []

    def elsewhere(engine: DaskEngine, schedule: Schedule, *others: object) -> None:
        while (index := schedule.take()) is not None:
            ran.append(schedule.jobs[index].name)
            schedule.record(index, Ran(0.0, None, {"problem": "nobody works here", "exit_code": 3}))

    monkeypatch.setattr(dask_engine, "_distributed", lambda: None)
    monkeypatch.setattr(DaskEngine, "run", elsewhere)
    monkeypatch.setattr(crew, "memory_limit", lambda: 1000)
    report = preprocess(planned(workspace).plan, workspace=workspace, dask="local:2")
    assert len(ran) == len(report.run.outcomes) > 0
    assert (report.memory.workers, report.notes()) == (0, [])


def test_fewer_workers_work_where_all_of_them_would_not_fit(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = planned(workspace)
    few = preprocess(report.plan, workspace=workspace, workers=2).memory
    assert (few.workers, few.note[:14]) == (1, "1 of 2 workers")  # for five small boxes
    shutil.rmtree(workspace / "preprocessed")
    monkeypatch.setattr(crew, "START_S", 1e-6)
    plenty = preprocess(report.plan, workspace=workspace, workers=2).memory
    assert (plenty.workers, plenty.note) == (2, "")
    shutil.rmtree(workspace / "preprocessed")
    tight = preprocess(report.plan, workspace=workspace, workers=2, max_ram=plenty.needed_bytes - 1)
    assert tight.memory.workers == 1
    assert tight.to_json()["notes"] == [tight.memory.note]
    with pytest.raises(EnvironmentProblem, match="more memory than there is"):
        preprocess(report.plan, workspace=workspace, max_ram=1000)


def test_workers_start_for_what_is_to_be_done_here(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part is less than the whole, and what is stored needs no more than a look."""
    report = planned(workspace)
    monkeypatch.setattr(crew, "START_S", CASE_S / crew.WORK_OVER_START)

    def workers(part: Part = WHOLE) -> int:
        return preprocess(report.plan, workspace=workspace, workers=2, part=part).memory.workers

    assert workers(Part(0, 100, "a test")) == 1
    assert workers() == 2
    assert workers() == 1
    for path in (workspace / "preprocessed").glob("[!.]*/*/*.json"):
        receipt = json.loads(path.read_text())
        receipt["content"]["inputs"]["parameters"] = "those of another plan"
        path.write_text(json.dumps(receipt))
    assert workers() == 2


def test_unlabelled_cases_keep_their_label_maps_closed(tmp_path: Path) -> None:
    roles = {"a": "unlabelled"}
    make_set(tmp_path / "raw" / "boxes", ("a", "b"), iris={"roles": roles})
    report = planned(tmp_path)
    folder = preprocess(report.plan, workspace=tmp_path).folders["boxes"]
    assert not open_case(folder, "a").stored.labelled
    assert open_case(folder, "b").stored.labelled


@pytest.mark.parametrize(
    ("labels", "iris"),
    [
        ({"one": 2, "two": 1}, {}),
        ({"one": 1, "two": 2, "ignore": 3}, {}),
        ({"one": 1, "two": 2}, {"absent_means": "not_annotated"}),
    ],
)
def test_views_of_another_label_table_are_not_trained_on(
    tmp_path: Path, labels: dict[str, int], iris: dict[str, str]
) -> None:
    folder = make_set(tmp_path / "raw" / "boxes", ("a", "b"))
    preprocess(planned(tmp_path).plan, workspace=tmp_path)
    make_set(folder, ("a", "b"), labels=labels, iris=iris)
    made = planned(tmp_path).plan
    with pytest.raises(DataRefused, match="was preprocessed with other") as caught:
        read_catalogue(sets_for_training(made, tmp_path))
    assert "iris preprocess" in str(caught.value)
    preprocess(made, workspace=tmp_path)
    assert read_catalogue(sets_for_training(made, tmp_path)).sets[0].class_names == ("one", "two")


def test_one_bad_case_fails_alone(workspace: Path) -> None:
    report = planned(workspace)
    label = label_file(workspace / "raw" / "boxes", "b")
    write_labels(label, blobs(1), grid(spacing_xyz=(1, 1, 3)))
    done = preprocess(report.path, workspace=workspace)
    assert done.exit_code == 3
    assert [o.name for o in done.run.failed] == ["boxes/b"]
    assert "not on the grid" in str(done.to_json()["failed"])
    assert "b" not in list_cases(done.folders["boxes"])
    assert len(list_cases(done.folders["boxes"])) == 8


def test_errors_of_all_sets_are_refused_at_once(workspace: Path) -> None:
    label_file(workspace / "raw" / "boxes", "a").unlink()
    image_file(workspace / "raw" / "free", "u").write_bytes(b"torn")
    with pytest.raises(DataRefused) as caught:
        planned(workspace)
    assert "boxes/a" in str(caught.value)
    assert "free/u" in str(caught.value)
    assert not (workspace / "plans" / "default.json").exists()


def test_held_out_sets_are_recorded_and_not_opened(workspace: Path) -> None:
    image_file(workspace / "raw" / "free", "u").write_bytes(b"torn")
    report = planned(workspace, held_out_sets=["free"])
    assert report.plan.held_out_sets == {"free": "raw/free"}
    assert list(report.plan.sets) == ["boxes"]
    with pytest.raises(UsageError, match="held out"):
        preprocess(report.plan, workspace=workspace, sets=["free"])


def test_a_case_that_becomes_a_test_case_leaves_the_store(workspace: Path) -> None:
    report = planned(workspace)
    preprocess(report.path, workspace=workspace)
    boxes = report.plan.sets["boxes"]
    out = boxes.train[0]
    changed = planned(
        workspace,
        overrides=[
            f"sets.boxes.train={json.dumps(boxes.train[1:])}",
            f"sets.boxes.test={json.dumps([out, *boxes.test])}",
        ],
    )
    folder = preprocess(changed.path, workspace=workspace).folders["boxes"]
    assert not [view for view in list_cases(folder) if view.split("@")[0] == out]


def test_spacing_settings_act_before_spacings_are_chosen(workspace: Path) -> None:
    report = planned(workspace, overrides=["s0=0.5", "training.steps=3"])
    assert report.plan.sets["free"].spacing_mm == 1.0
    assert report.plan.training.steps == 3
    assert report.plan.reasons["s0"] == "set by hand (--set)"


def test_sets_by_name_by_path_and_unknown(workspace: Path) -> None:
    report = planned(workspace, sets=["free", workspace / "raw" / "boxes"])
    assert list(report.plan.sets) == ["free", "boxes"]
    with pytest.raises(UsageError, match="did you mean 'boxes'"):
        planned(workspace, sets=["boxs"])
    with pytest.raises(UsageError, match="no raw data set"):
        planned(workspace / "empty")


def test_copies_of_an_image_are_planned_as_one_subject(tmp_path: Path) -> None:
    raw = make_set(tmp_path / "raw" / "boxes")
    validating = planned(tmp_path).plan.sets["boxes"].validate_[0]
    other = "a" if validating != "a" else "b"
    shutil.copy(image_file(raw, other), image_file(raw, validating))
    report = planned(tmp_path)
    sides = [{other, validating} & set(names) for names in (report.plan.sets["boxes"].train,
             report.plan.sets["boxes"].validate_)]  # fmt: skip
    assert {len(side) for side in sides} == {0, 2}
    pair = " and ".join(sorted((other, validating)))
    assert f"one subject: {pair}" in report.plan.reasons["sets.boxes.train"]
    assert report.integrity[0].warnings


def link_sets(workspace: Path, **targets: Path) -> None:
    (workspace / "raw").mkdir(parents=True, exist_ok=True)
    for name, target in targets.items():
        (workspace / "raw" / name).symlink_to(target, target_is_directory=True)


def test_sets_are_told_apart_by_the_names_of_their_links(tmp_path: Path) -> None:
    one = make_set(tmp_path / "data1" / "nnunet", ("a", "b"))
    two = make_set(tmp_path / "data2" / "nnunet", ("a", "b"))
    link_sets(tmp_path / "ws", Liver=one, Spleen=two)
    assert list(planned(tmp_path / "ws").plan.sets) == ["Liver", "Spleen"]
    held = planned(tmp_path / "ws", held_out_sets=["Spleen"]).plan
    assert list(held.held_out_sets) == ["Spleen"]
    assert list(held.sets) == ["Liver"]


def test_names_of_sets_are_those_of_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link_sets(tmp_path / "ws", Liver=make_set(tmp_path / "data" / "nnunet", ("a", "b")))
    monkeypatch.chdir(tmp_path / "ws" / "raw")
    for folder in (Path("Liver"), tmp_path / "ws" / "raw" / "Liver"):
        assert set_name(folder) == read_raw_dataset(folder).name == "Liver"
    monkeypatch.chdir(tmp_path / "data" / "nnunet")
    assert set_name(Path()) == read_raw_dataset(Path()).name == "nnunet"


@pytest.mark.usefixtures("unread")
def test_two_sets_of_one_name_and_one_set_twice_are_refused(tmp_path: Path) -> None:
    one = make_set(tmp_path / "data1" / "s", ("a",))
    two = make_set(tmp_path / "data2" / "s", ("a",))
    three = make_set(tmp_path / "data3" / "t", ("a",))
    for sets, held in (([one, two], []), ([three], [one, two])):
        with pytest.raises(UsageError, match="same name 's'") as caught:
            planned(tmp_path, sets=sets, held_out_sets=held)
        assert str(one) in str(caught.value)
        assert str(two) in str(caught.value)
    link_sets(tmp_path, copy=one)
    with pytest.raises(UsageError, match="the same folder"):
        planned(tmp_path, sets=["copy", one])


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The integrity pass may not start."""

    def fail(*_: object, **__: object) -> None:
        pytest.fail("the data were read before the command line was checked")

    monkeypatch.setattr("iris_cli.workflows.plan.check_datasets", fail)


@pytest.mark.usefixtures("unread")
def test_a_set_that_is_both_planned_for_and_held_out_is_refused(workspace: Path) -> None:
    link_sets(workspace, alias=workspace / "raw" / "boxes")
    for held in ("boxes", "alias"):
        with pytest.raises(UsageError, match="'boxes' is both planned for and held out"):
            planned(workspace, sets=["boxes", "free"], held_out_sets=[held])


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("override", "fix"),
    [("preset=base", "--preset"), ("name=x", "--name"), ("format=x", "which version"),
     ("held_out_sets.x=y", "--hold-out"), ("validation_sets.x=y", "--validate-on"),
     ("s0=0", "s0=0"), ("s0=-1", "s0=-1")],
)  # fmt: skip
def test_keys_that_are_no_settings_are_refused_before_reading(
    workspace: Path, override: str, fix: str
) -> None:
    with pytest.raises(UsageError) as caught:
        planned(workspace, overrides=[override])
    assert fix in str(caught.value.fix)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    "name", ["../../evil", "a/b", "..", ".hidden", "", "/tmp/x", "a\\b", "a\n"]
)
def test_names_that_leave_the_folder_of_plans_are_refused(workspace: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no plain name"):
        planned(workspace, name=name)


@pytest.mark.usefixtures("unread")
def test_a_folder_as_output_is_refused_before_reading(workspace: Path) -> None:
    with pytest.raises(UsageError, match="this is a folder"):
        planned(workspace, output=workspace)
    (workspace / "plans" / "default.json").mkdir(parents=True)
    with pytest.raises(UsageError, match="this is a folder"):
        planned(workspace)


def test_the_seed_of_training_can_be_set_apart_from_the_split(workspace: Path) -> None:
    made = planned(workspace, seed=3).plan
    assert made.training.seed == 3
    changed = planned(workspace, seed=3, overrides=["training.seed=5"]).plan
    assert changed.training.seed == 5
    assert changed.sets["boxes"].validate_ == made.sets["boxes"].validate_


def test_a_case_that_left_the_raw_folder_is_said(workspace: Path) -> None:
    report = planned(workspace)
    raw = workspace / "raw" / "boxes"
    for file in (image_file(raw, "a"), image_file(raw, "a", 1), label_file(raw, "a")):
        file.unlink()
    with pytest.raises(DataRefused, match="not in the raw set boxes") as caught:
        preprocess(report.path, workspace=workspace)
    assert "a" in str(caught.value.found)


_SCRIPT = """
import sys
from pathlib import Path
from iris_cli.workflows.preprocess import preprocess
print("ready", flush=True)
preprocess(Path(sys.argv[1]) / "plans" / "default.json", workspace=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_killed_at_random_and_run_again_gives_the_same_store(tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    make_set(workspace / "raw" / "boxes", [f"c{i}" for i in range(12)])
    planned(workspace)
    preprocess(workspace / "plans" / "default.json", workspace=workspace)
    expected = contents(workspace)
    for file in (workspace / "preprocessed").rglob("*.*"):
        file.unlink()
    for attempt in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, str(workspace)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.004 * (attempt + 1))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for folder in (workspace / "preprocessed").glob("boxes/*"):
            for view in list_cases(folder):
                open_case(folder, view).label()
    assert preprocess(workspace / "plans" / "default.json", workspace=workspace).exit_code == 0
    assert contents(workspace) == expected
    assert not list((workspace / "preprocessed").rglob(".*"))


_PEAK = """
import sys
from pathlib import Path
from iris_cli.workflows.preprocess import preprocess
workspace = Path(sys.argv[1])
assert preprocess(workspace / "plans" / "default.json", workspace=workspace).exit_code == 0
# Not ru_maxrss, which a child inherits from the process that started it.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux reports it")
@pytest.mark.parametrize("spacing", [0.8, 2.0])
def test_peak_memory_stays_within_its_prediction(tmp_path: Path, spacing: float) -> None:
    large = grid((200, 256, 256), (1.0, 1.0, 1.0))
    make_set(tmp_path / "raw" / "boxes", ("a",), a_grid=large)
    report = planned(tmp_path, overrides=[f"sets.boxes.spacing_mm={spacing}"])
    command = [sys.executable, "-c", _PEAK, str(tmp_path)]
    peak = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert 0.5 * report.preprocess_bytes < peak < 1.15 * report.preprocess_bytes
