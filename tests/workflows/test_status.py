"""Where a run or a folder of predictions stands."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from iris_cli.dataset.phantoms import write_phantom_dataset
from iris_cli.dataset.raw import read_raw_dataset
from iris_cli.errors import (
    DataRefused,
    Diverged,
    EnvironmentProblem,
    Interrupted,
    Stopped,
    UsageError,
)
from iris_cli.execution.announced import ANNOUNCED, Announced, announce, withdraw_finished
from iris_cli.execution.claims import STALE_S, Claims, living
from iris_cli.execution.failures import FAILURES, note_outcome
from iris_cli.execution.outcomes import CaseResult, Outcome
from iris_cli.execution.receipts import Receipt, write_receipt
from iris_cli.planning.overrides import apply_overrides
from iris_cli.planning.plan import Plan, RawSet, make_plan, write_plan
from iris_cli.planning.presets import preset
from iris_cli.preparation.integrity import check_datasets
from iris_cli.training.checkpoint import BEST, LATEST, PREVIOUS, write_best, write_checkpoint
from iris_cli.training.claim import CLAIMS, claimed
from iris_cli.training.ending import noted_end
from iris_cli.training.log import METRICS
from iris_cli.workflows import status as module
from iris_cli.workflows.status import output_status, run_status, status


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("ws")
    write_phantom_dataset(folder / "raw" / "p", (1, 2), size=0.6, voxel_mm=12.0)
    raw = read_raw_dataset(folder / "raw" / "p")
    (report,) = check_datasets([raw])
    made = make_plan(
        [RawSet(raw, report)], preset("tiny"), name="p", preset_name="tiny", workspace=folder
    )
    return apply_overrides(made, ["training.steps=20"])


@pytest.fixture
def run(tmp_path: Path, plan: Plan) -> Path:
    write_plan(tmp_path / "run" / "plan.json", plan)
    return tmp_path / "run"


def log(run: Path, *lines: dict[str, Any]) -> None:
    (run / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def save(run: Path, *steps: int) -> None:
    for step in steps:
        write_checkpoint(run, {"step": step, "model": {"w": torch.ones(3)}})


def test_a_run_that_was_never_begun(run: Path) -> None:
    found = run_status(run)
    assert (found.state, found.step, found.exit_code, found.eta_s) == ("never begun", 0, 75, None)


def test_a_stopped_run_says_why_and_how_to_go_on(run: Path) -> None:
    save(run, 5, 10)
    log(run, {"step": 10, "loss": 0.5, "step_s": 3.0, "skipped": 1}, {"step": 10, "validation": {}})
    (run / "manifest.json").write_text(json.dumps({"command": ["iris", "train", "a run"]}))
    with pytest.raises(Stopped), noted_end(run):
        raise Stopped("stopped after 10 of 20 steps: SIGTERM")
    found = run_status(run)
    assert (found.state, found.step, found.steps, found.exit_code) == ("stopped", 10, 20, 75)
    assert "SIGTERM" in found.why
    assert found.eta_s == 30.0
    assert found.next == "iris train 'a run' goes on"
    assert found.validation == (10, {})
    json.dumps(found.to_json())


def test_a_killed_run_is_stopped_where_its_checkpoint_is(run: Path) -> None:
    save(run, 10)
    log(run, {"step": 15, "loss": 0.5, "step_s": 1.0})
    found = run_status(run)
    assert (found.state, found.step) == ("stopped", 10)
    assert "killed" in found.why


def test_a_finished_run_and_one_that_goes_on_after_divergence(run: Path) -> None:
    with pytest.raises(Diverged), noted_end(run):
        raise Diverged("20 steps in a row had a loss that is not finite")
    assert (run_status(run).state, run_status(run).exit_code) == ("diverged", 6)
    with noted_end(run):
        save(run, 20)
    # It was killed in its last validation: there is no model yet.
    assert (run_status(run).state, run_status(run).exit_code) == ("stopped", 75)
    (run / "model").mkdir()
    (run / "model" / "model.json").touch()
    assert (run_status(run).state, run_status(run).exit_code) == ("finished", 0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("a defect"), 1),
        (UsageError("a batch that cannot be shared"), 2),
        (DataRefused("other data"), 4),
        (EnvironmentProblem("no space left"), 5),
    ],
)
def test_a_run_that_failed_says_so_and_is_not_gone_on_with(
    run: Path, error: Exception, code: int
) -> None:
    save(run, 20)
    with pytest.raises(type(error)), noted_end(run):
        raise error
    found = run_status(run)
    assert (found.state, found.exit_code, found.step) == ("failed", code, 20)
    assert str(error) in found.why
    assert found.to_json()["exit_code"] == code


def test_a_run_that_was_interrupted_goes_on(run: Path) -> None:
    with pytest.raises(Interrupted), noted_end(run):
        raise Interrupted("interrupted twice")
    assert (run_status(run).state, run_status(run).exit_code) == ("stopped", 75)


def test_checkpoints_are_verified(run: Path) -> None:
    save(run, 5, 10)
    write_best(run, {"step": 7})
    content = bytearray((run / LATEST).read_bytes())
    content[len(content) // 2] ^= 1
    (run / LATEST).write_bytes(content)
    before = sorted(path.name for path in run.iterdir())
    found = run_status(run)
    assert {c.name: c.step for c in found.checkpoints} == {LATEST: None, PREVIOUS: 5, BEST: 7}
    assert found.step == 5
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_run_in_this_process_is_running(run: Path) -> None:
    save(run, 10)
    log(run, {"step": 14, "loss": 0.5, "step_s": 1.0})
    with claimed(run, lambda: False):
        found = run_status(run)
        assert (found.state, found.step, found.exit_code) == ("running", 14, 0)
        assert str(os.getpid()) in found.why
    assert run_status(run).state == "stopped"


@pytest.mark.parametrize(("age_s", "state"), [(STALE_S / 2, "running"), (STALE_S * 2, "stopped")])
def test_a_run_elsewhere_is_seen_by_its_heartbeat(
    run: Path, age_s: float, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "living", partial(living, watch_s=0.05))
    save(run, 10)
    with Claims(run / CLAIMS) as claims:
        claims.take("run")
        content = json.loads(claims.path("run").read_text())
        claims.path("run").write_text(json.dumps({**content, "host": "node-17"}))
        beat = time.time() - age_s
        os.utime(claims.path("run"), (beat, beat))
        found = run_status(run)
    assert found.state == state
    assert ("node-17" in found.why) == (state == "running")


INPUTS = {"task": "y", "model": "m", "parameters": {"skip_empty": False}}
LINE = Announced(inputs=INPUTS, cases={case: f"{case}.nii" for case in ("a", "b", "c", "d/1", "e")})
OF_LINE = {
    "query": "q",
    "assumed_spacing_xyz": None,
    **INPUTS,
    "parameters": {"skip_empty": False, "precision": "bf16"},
}


def outcome(name: str, *, failed: bool) -> Outcome:
    if not failed:
        return Outcome(name, "done", 1.0, result=CaseResult("done", {}))
    return Outcome(name, "failed", 1.0, {"problem": "no volume", "exit_code": 4, "debug": "..."})


def test_predictions_are_done_failed_or_without_their_label_map(tmp_path: Path) -> None:
    hidden = tmp_path / ".iris"
    for case in ("a", "b"):
        write_receipt(hidden / f"{case}.json", Receipt(case=case, content={"inputs": {}}))
    (tmp_path / "a.nii.gz").touch()
    note_outcome(hidden / FAILURES, outcome("c", failed=True))
    found = status(tmp_path)
    assert found == output_status(tmp_path)
    assert (found.done, found.incomplete, found.exit_code) == (("a",), ("b",), 3)
    assert found.failed == {"c": {"problem": "no volume", "exit_code": 4}}


def test_the_note_of_a_failed_case_goes_when_it_is_done(tmp_path: Path) -> None:
    hidden = tmp_path / ".iris"
    note_outcome(hidden / FAILURES, outcome("c", failed=True))
    note_outcome(hidden / FAILURES, outcome("c", failed=False))
    assert output_status(tmp_path).exit_code == 0


def test_cases_in_work_and_cases_that_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = tmp_path / ".iris"
    announce(hidden / ANNOUNCED, LINE)
    write_receipt(hidden / "a.json", Receipt(case="a", content={"inputs": OF_LINE}))
    (tmp_path / "a.nii.gz").touch()
    for case in ("b", "d/1"):
        note_outcome(hidden / FAILURES, outcome(case, failed=True))
    with Claims(hidden / "claims") as claims:
        assert claims.take("d/1")
        assert claims.take("e")
        claims.path("e").write_text(
            json.dumps({**json.loads(claims.path("e").read_text()), "host": "node-17"})
        )
        found = output_status(tmp_path)
    here, there = found.working
    # It failed before and is tried again.
    assert (here.case, here.pid, set(found.failed)) == ("d/1", os.getpid(), {"b"})
    assert here.age_s is not None
    assert here.age_s < 60
    assert (there.case, there.host) == ("e", "node-17")
    assert (found.done, found.waiting, found.exit_code) == (("a",), ("c",), 3)
    json.dumps(found.to_json())
    # The other host's claim stays behind: its holder cannot be asked, and does not move.
    monkeypatch.setattr(module, "living", lambda paths: {})
    stopped = output_status(tmp_path)
    assert (stopped.waiting, stopped.exit_code) == (("c", "e"), 75)
    withdraw_finished(hidden / ANNOUNCED, lambda announced: True)
    assert output_status(tmp_path).exit_code == 75
    withdraw_finished(hidden / ANNOUNCED, lambda announced: False)
    assert output_status(tmp_path).exit_code == 3
    assert not (hidden / ANNOUNCED).exists()


@pytest.mark.parametrize(
    "said",
    [
        {**OF_LINE, "task": "x"},
        {**OF_LINE, "model": "n"},
        {**OF_LINE, "parameters": {**OF_LINE["parameters"], "probabilities": "uint8"}},
        {},
    ],
)
def test_a_result_of_another_line_is_none_of_this_one(tmp_path: Path, said: dict[str, Any]) -> None:
    hidden = tmp_path / ".iris"
    for case in ("b", "c"):
        write_receipt(hidden / f"{case}.json", Receipt(case=case, content={"inputs": said}))
        (tmp_path / f"{case}.nii.gz").touch()
    assert output_status(tmp_path).exit_code == 0
    announce(hidden / ANNOUNCED, LINE)
    note_outcome(hidden / FAILURES, outcome("b", failed=True))
    found = output_status(tmp_path)
    assert (set(found.failed), found.waiting) == ({"b"}, ("a", "c", "d/1", "e"))
    assert (found.done, found.exit_code) == ((), 75)


def test_what_is_being_written_says_nothing(tmp_path: Path) -> None:
    hidden = tmp_path / ".iris"
    half = ".a.json.999999999-0badcafe-0000000.partial.json"
    write_receipt(hidden / half, Receipt(case="a", content={"inputs": {}}))
    for folder in (FAILURES, ANNOUNCED):
        (hidden / folder).mkdir()
        (hidden / folder / half).write_text(LINE.model_dump_json())
    found = output_status(tmp_path)
    assert (found.done, found.incomplete, found.waiting, found.failed) == ((), (), (), {})


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run nor"):
        status(tmp_path)
