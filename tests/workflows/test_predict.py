"""Folders to label maps: names, receipts, failures, references on the way, dry runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from iris_cli.errors import DataRefused, EnvironmentProblem, Stopped, UsageError
from iris_cli.execution.jobs import CaseResult
from iris_cli.execution.parts import Part
from iris_cli.execution.receipts import read_receipt
from iris_cli.execution.signals import StopRequest
from iris_cli.inference import memory
from iris_cli.inference.job import PredictPayload, predict_case
from iris_cli.inference.memory import Limits
from iris_cli.network import precision
from iris_cli.task.combining import rename as renamed
from iris_cli.task.task_file import Task, read_task, write_task
from iris_cli.volume.grid import Grid
from iris_cli.volume.reading import read_labels
from iris_cli.volume.writing import write_image, write_labels
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from iris_cli.workflows.predict import PredictSettings, dry_run, predict
from iris_cli.workflows.status import output_status
from tests.workflows.conftest import GRID, scene


@pytest.fixture
def settings(model_folder: Path) -> PredictSettings:
    return PredictSettings(model=str(model_folder))


@pytest.fixture
def task(references: Path, model_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "boxes.task.pt"
    encode_task(ReferenceSource(references), path, model=model_folder)
    return path


def contents(folder: Path) -> dict[str, object]:
    found = {}
    for path in sorted((folder / ".iris").glob("*.json")):
        receipt = read_receipt(path)
        assert receipt is not None
        found[path.stem] = receipt.content
    return found


def test_a_folder_becomes_label_maps_with_receipts_and_legend(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = predict(queries, out, task=task, settings=settings)
    assert report.exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        ".iris",
        "a.nii.gz",
        "b.nii.gz",
        "c.nii.gz",
        "labels.ctbl",
        "labels.json",
        "labels.txt",
        "statistics.csv",
    ]
    assert json.loads((out / "labels.json").read_text()) == {"background": 0, "left": 1, "right": 2}
    assert sorted(path.name for path in (out / ".iris").iterdir()) == ["a.json", "b.json", "c.json"]
    assert [row["status"] for row in report.case_rows()] == ["done"] * 3
    assert json.loads(json.dumps(report.to_json()))["exit_code"] == 0


def test_the_same_line_again_keeps_everything(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(queries, out, task=task, settings=settings)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    first = contents(out)
    (out / "b.nii.gz").unlink()
    report = predict(queries, out, task=task, settings=settings)
    assert [o.status for o in report.run.outcomes] == ["kept", "done", "kept"]
    assert contents(out) == first
    for path, changed in before.items():
        assert (path.stat().st_mtime_ns == changed) == (path.name != "b.nii.gz")


def test_parts_make_what_one_run_makes(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    predict(queries, whole, task=task, settings=settings)
    shares = []
    for index in range(2):
        part = dataclasses.replace(settings, part=Part(index, 2, "SLURM_ARRAY_TASK_ID"))
        report = predict(queries, shared, task=task, settings=part)
        assert report.exit_code == 0
        shares.append(report.share)
    assert [(s.cases, s.others, s.missing) for s in shares] == [(2, 1, 1), (1, 2, 0)]
    assert report.to_json()["part"]["cases_of_other_parts"] == 2
    assert contents(shared) == contents(whole)
    for path in whole.iterdir():
        if path.is_file():
            assert path.read_bytes() == (shared / path.name).read_bytes(), path.name


def test_more_parts_than_cases_leave_one_without_work(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    part = dataclasses.replace(settings, part=Part(3, 4, "--part-id"))
    report = predict(queries, tmp_path / "out", task=task, settings=part)
    assert (report.exit_code, report.run.outcomes) == (0, ())
    assert report.share.missing == 3


def test_workers_on_several_devices_make_what_one_run_makes(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    predict(queries, tmp_path / "one", task=task, settings=settings)
    spread = dataclasses.replace(settings, devices=("cpu", "cpu"), workers=2)
    report = predict(queries, tmp_path / "two", task=task, settings=spread)
    assert report.exit_code == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_devices_that_choose_differently_compute_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: device.index == 0)
    both = PredictSettings(devices=("cuda:0", "cuda:1"))
    assert both.precision_of_all == "fp32"
    assert dataclasses.replace(both, devices=("cuda:0",)).precision_of_all == "bf16"


def test_two_runs_and_workers_give_the_same_bytes(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    outs = []
    for name, workers in (("x", 0), ("y", 0), ("z", 1)):
        out = tmp_path / name
        chosen = dataclasses.replace(settings, workers=workers)
        predict(queries, out, task=task, settings=chosen)
        files = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        outs.append((files, contents(out)))
    assert outs[1] == outs[0]
    assert outs[2] == outs[0]


def test_a_failing_case_does_not_stop_the_rest(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    (queries / "b.nii.gz").write_bytes(b"not a volume")
    out = tmp_path / "out"
    report = predict(queries, out, task=task, settings=settings)
    assert report.exit_code == 3
    assert [o.status for o in report.run.outcomes] == ["done", "failed", "done"]
    assert "b.nii.gz" in str(report.to_json()["failed"]["b"]["file"])
    assert not (out / "b.nii.gz").exists()
    assert (out / "labels.json").exists()


def test_where_every_case_is_refused_the_exit_code_is_four(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    for path in queries.iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    report = predict(queries, tmp_path / "out", task=task, settings=settings)
    assert report.exit_code == 4
    assert list((tmp_path / "out").glob("*.nii.gz")) == []


def test_references_in_place_of_a_task_give_the_same_labels(
    queries: Path, task: Path, references: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    predict(queries, tmp_path / "x", task=task, settings=settings)
    source = ReferenceSource(references)
    predict(queries / "a.nii.gz", tmp_path / "y", references=source, settings=settings)
    encoded = read_task(tmp_path / "y" / ".iris" / "references.task.pt")
    assert encoded.fingerprint() == read_task(task).fingerprint()
    assert contents(tmp_path / "y")["a"] == contents(tmp_path / "x")["a"]
    with pytest.raises(UsageError, match="task or references"):
        predict(queries, tmp_path / "z", settings=settings)
    with pytest.raises(UsageError, match="task or references"):
        predict(queries, tmp_path / "z", task=task, references=source, settings=settings)


def test_options_that_the_profile_cannot_serve_are_refused_before_references_are_encoded(
    queries: Path, references: Path, mass_folder: Path, tmp_path: Path
) -> None:
    asked = PredictSettings(model=str(mass_folder), skip_empty=True)
    source, out = ReferenceSource(references), tmp_path / "out"
    with pytest.raises(UsageError, match="works every window") as caught:
        predict(queries, out, references=source, settings=asked)
    assert caught.value.found == "--skip-empty"
    assert not out.exists()


def test_picked_classes_alone_are_written(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    chosen = dataclasses.replace(settings, classes=("right",))
    predict(queries / "a.nii.gz", tmp_path / "out", task=task, settings=chosen)
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == {
        "background": 0,
        "right": 2,
    }
    assert set(np.unique(read_labels(tmp_path / "out" / "a.nii.gz").array)) <= {0, 2}
    wrong = dataclasses.replace(settings, classes=("rigth",))
    with pytest.raises(UsageError, match="did you mean 'right'"):
        predict(queries, tmp_path / "out", task=task, settings=wrong)


def test_lists_and_channels_name_their_outputs(
    task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    image = write_image(tmp_path / "in" / "case_7_0000.nii.gz", scene(3)[0], GRID)
    (tmp_path / "list.txt").write_text("# one\nin/case_7_0000.nii.gz\n")
    for inputs in (image, tmp_path / "list.txt", [image, image]):
        report = predict(inputs, tmp_path / "out", task=task, settings=settings)
        assert [o.name for o in report.run.outcomes] == ["case_7"]
    other = write_image(tmp_path / "else" / "case_7_0000.nii.gz", scene(4)[0], GRID)
    with pytest.raises(DataRefused, match="two volumes"):
        predict([image, other], tmp_path / "out", task=task, settings=settings)
    with pytest.raises(UsageError, match="nothing to segment"):
        predict([], tmp_path / "out", task=task, settings=settings)


def test_an_output_never_replaces_its_query(
    queries: Path, task: Path, settings: PredictSettings
) -> None:
    before = (queries / "a.nii.gz").read_bytes()
    with pytest.raises(UsageError, match="replace the volume itself"):
        predict(queries / "a.nii.gz", queries, task=task, settings=settings)
    assert (queries / "a.nii.gz").read_bytes() == before


@pytest.mark.parametrize("single", [False, True])
def test_an_output_among_the_queries_is_refused_before_anything_is_written(
    references: Path, settings: PredictSettings, tmp_path: Path, single: bool
) -> None:
    folder = tmp_path / "in"
    ending = "nii.gz" if single else "mha"
    image = write_image(folder / f"a.{ending}", scene(3)[0], GRID)
    inputs = image if single else folder
    with pytest.raises(UsageError, match=r"replace the volume|the input folder"):
        predict(inputs, folder, references=ReferenceSource(references), settings=settings)
    assert list(folder.iterdir()) == [image]


def test_a_task_of_another_model_is_refused_before_anything_runs(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    read = read_task(task)
    model = read.header.model.model_copy(update={"fingerprint": "0" * 64, "name": "elder"})
    header = read.header.model_copy(update={"model": model})
    write_task(task, Task(header, read.tokens))
    with pytest.raises(DataRefused, match="elder"):
        predict(queries, tmp_path / "out", task=task, settings=settings)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_known_name_must_be_named(
    queries: Path, task: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="'tiny' 1, which neither ships") as caught:
        predict(queries, tmp_path / "out", task=task)
    assert "--model" in str(caught.value.fix)


def test_a_dry_run_tells_windows_time_and_memory_and_writes_nothing(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    write_image(queries / "d.nii.gz", np.zeros((40, 40, 40), np.float32), GRID_40)
    (queries / "e.nii.gz").write_bytes(b"nothing")
    estimate = dry_run(queries, tmp_path / "out", task=task, settings=settings)
    assert not (tmp_path / "out").exists()
    by_case = {case.case: case for case in estimate.cases}
    assert by_case["a"].windows == 1
    assert by_case["d"].windows == 8
    assert by_case["d"].seconds == pytest.approx(8 * estimate.seconds_per_window)
    assert by_case["d"].memory_mb > by_case["a"].memory_mb > 0
    assert by_case["e"].problem
    # While one is computed, the next is read and the last written.
    largest = sorted((case.memory_mb for case in estimate.cases), reverse=True)
    volumes = sorted((case.volume_mb for case in estimate.cases), reverse=True)
    writing = max(case.writing_mb for case in estimate.cases)
    # Labels of one byte, twice: as they are written, and as they are read again.
    assert writing == pytest.approx(2 * 40**3 / 2**20)
    assert estimate.memory_mb == pytest.approx(largest[0] + volumes[1] + volumes[2] + writing)
    counted = dataclasses.replace(settings, limits=Limits(ram=2**32))
    alone = dry_run(queries, tmp_path / "out", task=task, settings=counted)
    assert alone.memory_mb == pytest.approx(max(case.memory_mb for case in alone.cases))
    assert estimate.seconds > 0
    assert json.loads(json.dumps(estimate.to_json()))["classes"] == {"left": 1, "right": 2}


GRID_40 = GRID.crop((0, 0, 0), (40, 40, 40))


def test_a_full_disk_is_exit_code_five(
    queries: Path,
    task: Path,
    settings: PredictSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from iris_cli.inference import products

    def full(*arguments: object, **options: object) -> None:
        raise EnvironmentProblem("the disk is full")

    monkeypatch.setattr(products, "write_labels", full)
    report = predict(queries, tmp_path / "out", task=task, settings=settings)
    assert report.exit_code == 5
    assert list((tmp_path / "out").glob("*.nii.gz")) == []


def test_files_left_out_as_other_channels_are_in_the_report(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "channels"
    folder.mkdir()
    for name in ("left_0000", "left_0001", "right_0000", "right_0001"):
        (folder / f"{name}.nii.gz").symlink_to(queries / "a.nii.gz")
    estimate = dry_run(folder, tmp_path / "out", task=task, settings=settings)
    assert "2 files are taken as channels other than 0" in estimate.notes[0]
    report = predict(folder, tmp_path / "out", task=task, settings=settings)
    assert report.notes == estimate.notes
    assert report.to_json()["notes"] == list(report.notes)


def rename(task: Path, target: Path, **values: int) -> Path:
    """A copy of a task whose classes have other names and values."""
    read = read_task(task)
    classes = tuple(
        entry.model_copy(update={"name": name, "value": value})
        for entry, (name, value) in zip(read.header.classes, values.items(), strict=True)
    )
    header = read.header.model_copy(update={"classes": classes})
    return write_task(target, Task(header, read.tokens))


@pytest.mark.parametrize("values", [{"aorta": 1, "right": 2}, {"left": 3, "right": 2}])
def test_an_output_folder_with_other_names_for_the_values_is_refused(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path, values: dict[str, int]
) -> None:
    out = tmp_path / "out"
    predict(queries / "a.nii.gz", out, task=task, settings=settings)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = rename(task, tmp_path / "other.task.pt", **values)
    with pytest.raises(DataRefused, match="label maps of another task") as caught:
        predict(queries, out, task=other, settings=settings)
    assert caught.value.found == "left = 1"
    assert "as in this task" in str(caught.value.expected)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_run_on_a_part_keeps_the_names_of_the_rest(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(queries, out, task=task, settings=settings)
    chosen = dataclasses.replace(settings, classes=("right",))
    predict(queries / "a.nii.gz", out, task=task, settings=chosen)
    both = {"background": 0, "left": 1, "right": 2}
    assert json.loads((out / "labels.json").read_text()) == both
    predict(queries, out, task=task, settings=chosen)
    assert json.loads((out / "labels.json").read_text()) == {"background": 0, "right": 2}


def test_the_legend_stands_there_before_the_cases(
    queries: Path,
    task: Path,
    settings: PredictSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from iris_cli.workflows import predict as workflow

    class Interrupted(Exception):
        pass

    def interrupted(*arguments: object, **options: object) -> None:
        raise Interrupted

    monkeypatch.setattr(workflow, "run_cases", interrupted)
    with pytest.raises(Interrupted):
        predict(queries, tmp_path / "out", task=task, settings=settings)
    assert (tmp_path / "out" / "labels.json").exists()


def test_references_are_encoded_again_only_where_something_of_them_changed(
    queries: Path,
    references: Path,
    settings: PredictSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from iris_cli.task import encoding

    encoded = []
    original = encoding._Encoder.encode

    def counted(self: object, item: object) -> object:
        encoded.append(item)
        return original(self, item)  # type: ignore[arg-type]

    monkeypatch.setattr(encoding._Encoder, "encode", counted)

    def run(names: tuple[str, ...] = ()) -> tuple[str, int]:
        encoded.clear()
        source = ReferenceSource(references, names=names)
        report = predict(queries / "a.nii.gz", out, references=source, settings=settings)
        return report.run.outcomes[0].status, len(encoded)

    out = tmp_path / "out"
    assert run() == ("done", 2)
    task = out / ".iris" / "references.task.pt"
    first = task.read_bytes()
    assert run() == ("kept", 0)
    assert task.read_bytes() == first
    # A region has the same entry in the header as its first value alone.
    assert run(("left=1,2", "right=2")) == ("done", 2)
    assert run() == ("done", 2)
    image, labels = scene(7)
    write_image(references / "images" / "one.nii.gz", image, GRID)
    write_labels(references / "labels" / "one.nii.gz", labels, GRID)
    assert run() == ("done", 2)
    task.write_bytes(task.read_bytes()[:-9])
    assert run() == ("kept", 2)


def test_precision_is_in_the_receipt_and_another_one_is_computed_anew_where_it_is_named(
    queries: Path,
    task: Path,
    settings: PredictSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query, out = queries / "a.nii.gz", tmp_path / "out"
    single = dataclasses.replace(settings, precision="fp32")
    predict(query, out, task=task, settings=single)
    assert contents(out)["a"]["inputs"]["parameters"]["precision"] == "fp32"  # type: ignore[index]
    assert contents(out)["a"]["windows"] == {"all": 1, "shared": 0, "skipped": 0}  # type: ignore[index]
    assert predict(query, out, task=task, settings=single).run.outcomes[0].status == "kept"
    auto = dataclasses.replace(settings, precision="auto")
    monkeypatch.setattr(precision, "has_bfloat16", lambda _: True)
    assert predict(query, out, task=task, settings=auto).run.outcomes[0].status == "kept"
    named = dataclasses.replace(settings, precision="bf16")
    assert predict(query, out, task=task, settings=named).run.outcomes[0].status == "done"
    with pytest.raises(UsageError, match="does not compute in fp16"):
        predict(query, out, task=task, settings=dataclasses.replace(settings, precision="fp16"))


def test_a_case_that_does_not_fit_its_limits_fails_with_the_numbers(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    tight = dataclasses.replace(settings, limits=Limits(ram=10**6))
    estimate = dry_run(queries, tmp_path / "out", task=task, settings=tight)
    assert {case.problem for case in estimate.cases} == {
        "this query does not fit the memory it may take"
    }
    report = predict(queries, tmp_path / "out", task=task, settings=tight)
    assert report.exit_code == 5
    assert "at least" in str(report.to_json()["failed"]["a"]["found"])


def test_cases_that_do_not_fit_leave_the_others_to_be_done(
    queries: Path,
    task: Path,
    settings: PredictSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "resident_bytes", lambda: 0)
    small = dry_run(queries, tmp_path / "out", task=task, settings=settings).cases[0].memory_mb
    for name in ("0", "1", "2"):
        large = np.zeros((96, 96, 96), np.float32)
        write_image(queries / f"{name}.nii.gz", large, Grid.from_spacing((96,) * 3, (2.0,) * 3))
    tight = dataclasses.replace(settings, limits=Limits(ram=int((small + 1) * 2**20)))
    report = predict(queries, tmp_path / "out", task=task, settings=tight)
    assert [one.status for one in report.run.outcomes] == ["failed"] * 3 + ["done"] * 3
    assert report.exit_code == 3


def test_lines_that_share_a_folder_keep_the_names_of_one_another(
    queries: Path,
    task: Path,
    settings: PredictSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One begins and ends while another one works."""
    from iris_cli.workflows import predict as workflow

    out = tmp_path / "out"
    other = renamed(read_task(task), {"left": "l", "right": "r"}, {"left": 3, "right": 4})
    others = write_task(tmp_path / "other.task.pt", other)

    def meanwhile(payload: PredictPayload) -> CaseResult:
        monkeypatch.setattr(workflow, "predict_case", predict_case)
        predict(queries / "b.nii.gz", out, task=others, settings=settings)
        return predict_case(payload)

    monkeypatch.setattr(workflow, "predict_case", meanwhile)
    predict(queries / "a.nii.gz", out, task=task, settings=settings)
    legend = json.loads((out / "labels.json").read_text())
    assert legend == {"background": 0, "left": 1, "right": 2, "l": 3, "r": 4}


def test_a_label_map_of_a_case_that_failed_keeps_its_names(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    query, out = queries / "a.nii.gz", tmp_path / "out"
    predict(query, out, task=task, settings=settings)
    before = (out / "a.nii.gz").read_bytes()
    query.write_bytes(b"not a volume")
    picked = dataclasses.replace(settings, classes=("left",))
    assert predict(query, out, task=task, settings=picked).exit_code == 4
    assert (out / "a.nii.gz").read_bytes() == before
    assert json.loads((out / "labels.json").read_text())["right"] == 2


def test_a_task_file_that_is_replaced_during_a_run_fails_what_is_left(
    queries: Path,
    task: Path,
    settings: PredictSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from iris_cli.workflows import predict as workflow

    out = tmp_path / "out"
    first = read_task(task).fingerprint()
    other = renamed(read_task(task), {}, {"left": 2, "right": 5})

    def replacing(payload: PredictPayload) -> CaseResult:
        result = predict_case(payload)
        write_task(task, other)
        return result

    monkeypatch.setattr(workflow, "predict_case", replacing)
    report = predict(queries, out, task=task, settings=settings)
    assert [o.status for o in report.run.outcomes] == ["done", "failed", "failed"]
    assert "replaced" in str(report.run.outcomes[1].error)
    assert contents(out)["a"]["inputs"]["task"] == first  # type: ignore[index]


def test_the_task_of_references_is_used_under_its_fingerprint(
    queries: Path, references: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    source = ReferenceSource(references)
    report = predict(queries / "a.nii.gz", out, references=source, settings=settings)
    frozen = out / ".iris" / f"{report.task.fingerprint()[:12]}.task.pt"
    assert read_task(frozen).fingerprint() == report.task.fingerprint()


def test_files_named_one_by_one_get_the_names_that_a_list_gives(
    task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "numbers"
    files = [write_image(folder / f"img_{i:04d}.nii.gz", scene(i)[0], GRID) for i in range(3)]
    listed = tmp_path / "numbers.txt"
    listed.write_text("".join(f"numbers/{file.name}\n" for file in files))
    for inputs in (files, listed, [files[1], listed, files[0], files[2]]):
        report = dry_run(inputs, tmp_path / "out", task=task, settings=settings)
        assert [case.case for case in report.cases] == ["img_0000", "img_0001", "img_0002"]
    folder = tmp_path / "channels"
    names = [f"{case}_{i:04d}.nii.gz" for case in "ab" for i in range(2)]
    files = [write_image(folder / name, scene(1)[0], GRID) for name in names]
    for inputs in (files, folder):
        report = dry_run(inputs, tmp_path / "out", task=task, settings=settings)
        assert [case.case for case in report.cases] == ["a", "b"]
        assert len(report.notes) == 1


class StopAfter:
    """A progress that asks to stop when so many cases have an outcome."""

    def __init__(self, stop: StopRequest, cases: int) -> None:
        self.stop, self.cases = stop, cases

    def start(self, total: int, label: str) -> None: ...

    def finish(self) -> None: ...

    def advance(self, name: str, status: str) -> None:
        self.cases -= 1
        if self.cases == 0:
            self.stop.request("SIGTERM")


def stopped(queries: Path, out: Path, task: Path, settings: PredictSettings) -> None:
    stop = StopRequest()
    strictly = dataclasses.replace(settings, limits=Limits(ram=2**40))  # one case after the other
    with pytest.raises(Stopped):
        predict(queries, out, task=task, settings=strictly, progress=StopAfter(stop, 1), stop=stop)


def test_trying_failed_cases_again_leaves_those_that_wait_waiting(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    out, again = tmp_path / "out", dataclasses.replace(settings, only_failed=True)
    (queries / "a.nii.gz").write_bytes(b"nothing")
    stopped(queries, out, task, settings)
    assert (set(output_status(out).failed), output_status(out).waiting) == ({"a"}, ("b", "c"))
    estimate = dry_run(queries, out, task=task, settings=again)
    assert [case.case for case in estimate.cases] == ["a"]
    assert predict(queries, out, task=task, settings=again).exit_code == 4
    assert output_status(out).waiting == ("b", "c")
    assert predict(queries, out, task=task, settings=settings).exit_code == 3
    assert not (out / ".iris" / "cases").exists()


def test_a_list_of_a_stopped_line_goes_where_its_inputs_are_gone(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    out, typo = tmp_path / "out", queries / "typo.nii.gz"
    write_image(typo, scene(3)[0], GRID)
    stopped(queries, out, task, settings)
    assert output_status(out).exit_code == 75
    typo.unlink()
    assert predict(queries, out, task=task, settings=settings).exit_code == 0
    assert (output_status(out).waiting, output_status(out).exit_code) == ((), 0)


def test_a_failed_case_of_another_part_is_tried_again_by_the_same_line(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    out, whole = tmp_path / "out", (queries / "a.nii.gz").read_bytes()
    helping = dataclasses.replace(settings, part=Part(1, 2, "SLURM_ARRAY_TASK_ID=2", helps=True))
    (queries / "a.nii.gz").write_bytes(b"nothing")
    for _ in range(2):
        assert predict(queries, out, task=task, settings=helping).exit_code == 3
    (queries / "a.nii.gz").write_bytes(whole)
    assert predict(queries, out, task=task, settings=helping).exit_code == 0
    assert (out / "a.nii.gz").exists()


def test_results_of_another_task_are_named_before_they_are_made_anew(
    queries: Path, task: Path, settings: PredictSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert not predict(queries, out, task=task, settings=settings).notes
    write_task(other := tmp_path / "other.task.pt", renamed(read_task(task), {"left": "one"}))
    (out / "labels.json").unlink()  # which gives the value of `one` another name
    for report in (
        dry_run(queries, out, task=other, settings=settings),
        predict(queries, out, task=other, settings=settings),
    ):
        (note,) = report.notes
        assert "cases here are of another task: they are made anew" in note
    assert not predict(queries, out, task=other, settings=settings).notes
