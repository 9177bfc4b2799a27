"""Training as a user runs it: a begun run keeps its plan, and exports what its scores say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from iris_cli.dataset.phantoms import write_phantom_dataset
from iris_cli.dataset.raw import Case
from iris_cli.errors import DataRefused, Stopped, UsageError
from iris_cli.model.bank import load_bank
from iris_cli.model.model import load_model
from iris_cli.planning.overrides import apply_overrides
from iris_cli.planning.plan import Plan, read_plan, write_plan
from iris_cli.planning.training_sets import read_trained_raw, sets_for_training
from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.checkpoint import BEST, LATEST, read_checkpoint, write_best
from iris_cli.workflows import manifest as manifest_module
from iris_cli.workflows import train as workflow
from iris_cli.workflows import validation as validation_module
from iris_cli.workflows.manifest import predicted_memory
from iris_cli.workflows.models import import_model
from iris_cli.workflows.plan import plan as make_plan
from iris_cli.workflows.preprocess import preprocess
from iris_cli.workflows.train import TrainOptions, TrainReport, export_model, train
from iris_cli.workflows.validation import InContextValidation
from tests.model.released_files import config_of, weights_of, write

NONE = InContextValidation(cases_per_set=0)
STEPS = ("training.steps=2", "training.validate_every_steps=1")


class StopAfter:
    """Asks to stop at the n-th look."""

    def __init__(self, looks: int) -> None:
        self.left = looks
        self.reason = "a test"

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ws")
    roles = {"torso_004": "validate"}
    write_phantom_dataset(folder / "raw" / "p", (1, 2, 3, 4), size=0.6, voxel_mm=9.0, roles=roles)
    report = make_plan(workspace=folder, preset_name="tiny")
    assert preprocess(report.path, workspace=folder).exit_code == 0
    return folder


@pytest.fixture
def plan(workspace: Path) -> Plan:
    return read_plan(workspace / "plans" / "default.json")


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Validation gives these scores by step instead of working."""
    given: dict[int, float] = {}

    def bind(self: InContextValidation, *_: object) -> Any:
        return (lambda _, step: {"score": given[step]}) if self.cases_per_set else None

    monkeypatch.setattr(InContextValidation, "bind", bind)
    return given


def go(folder: Path, workspace: Path, **options: Any) -> TrainReport:
    options.setdefault("overrides", STEPS)
    running = {key: options.pop(key) for key in ("device", "stop") if key in options}
    return train(folder, TrainOptions(workspace, workers=0, **options), **running)


def begun(folder: Path, workspace: Path, looks: int = 0, **options: Any) -> Path:
    with pytest.raises(Stopped):
        go(folder, workspace, stop=StopAfter(looks), **options)
    return folder


def test_a_set_without_training_cases_is_held_out(workspace: Path, plan: Plan) -> None:
    assert [item.name for item in sets_for_training(plan, workspace)] == ["p"]
    held_out = apply_overrides(plan, ["sets.p.train=[]"])
    assert sets_for_training(held_out, workspace) == ()


def begin_with(folder: Path, workspace: Path, overrides: list[str]) -> Path:
    """Give a run folder its plan; returns the plan it was made from."""
    source = workspace / "plans" / "default.json"
    write_plan(folder / "plan.json", workflow._plan_of_run(folder, source, overrides))
    return source


@pytest.mark.parametrize(
    "change",
    ["s0=7", 'sets.p.validate=["torso_001"]', 'sets.p.raw="elsewhere"', "sets.p.spacing_mm=3"],
)
def test_what_changes_the_result_of_a_begun_run_is_refused(
    tmp_path: Path, workspace: Path, change: str
) -> None:
    source = begin_with(tmp_path, workspace, ["sets.p.train=[]"])
    with pytest.raises(DataRefused, match="has begun"):
        workflow._plan_of_run(tmp_path, source, [change])


def test_what_cannot_change_the_result_may_be_set(tmp_path: Path, workspace: Path) -> None:
    source = begin_with(tmp_path, workspace, ["training.steps=3"])
    first = read_plan(tmp_path / "plan.json")
    again = workflow._plan_of_run(tmp_path, source, ["training.log_every=7", "training.steps=3"])
    assert (first.training.steps, again.training.steps, again.training.log_every) == (3, 3, 7)
    assert read_plan(tmp_path / "plan.json") == first  # the run keeps what it was begun with


def test_the_best_is_exported_and_named(
    tmp_path: Path, workspace: Path, scores: dict[int, float]
) -> None:
    scores.update({1: 0.9, 2: 0.1})
    report = go(tmp_path / "run", workspace)
    assert report.to_json()["exported_step"] == 1
    assert "step 1 of 2" in load_model(report.model).card.notes
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["validation"] == {"cases_per_set": 2, "references": [1, 3], "seed": 0}


@pytest.mark.parametrize("later", [NONE, InContextValidation(cases_per_set=1)])
def test_scores_that_do_not_compare_choose_nothing(
    tmp_path: Path, workspace: Path, scores: dict[int, float], later: InContextValidation
) -> None:
    scores.update({1: 0.5, 2: 0.9})
    folder = begun(tmp_path / "run", workspace, looks=1)
    assert read_checkpoint(folder / BEST)["step"] == 1
    report = go(folder, workspace, validation=later)
    assert read_checkpoint(folder / BEST)["step"] == 1
    assert report.exported_step == 2


def test_a_run_goes_on_with_the_validation_it_was_begun_with(
    tmp_path: Path, workspace: Path, scores: dict[int, float]
) -> None:
    scores.update({1: 0.5, 2: 0.4})
    small = InContextValidation(cases_per_set=1)
    folder = begun(tmp_path / "run", workspace, looks=1, validation=small)
    assert go(folder, workspace).exported_step == 1


def test_a_run_of_an_earlier_version_exports_its_best(
    tmp_path: Path, workspace: Path, scores: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores.update({1: 0.9, 2: 0.1})
    folder = go(tmp_path / "run", workspace).folder
    state = read_checkpoint(folder / LATEST)
    del state["chooses_best"], state["bank"]
    best = read_checkpoint(folder / BEST)
    del best["bank"], best["format"]
    write_best(folder, best)
    monkeypatch.setattr(workflow, "read_newest", lambda _: (state, folder / LATEST))
    model = load_model(export_model(folder))
    assert "step 1 of 2" in model.card.notes
    assert load_bank(folder / "model", model) is None


def test_every_process_that_trains_into_a_run_is_noted(tmp_path: Path, workspace: Path) -> None:
    folder = begun(tmp_path / "run", workspace, looks=1, validation=NONE)
    go(folder, workspace)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [session["begun_step"] for session in manifest["sessions"]] == [0, 1]
    for session in manifest["sessions"]:
        assert session["packages"]["torch"] == torch.__version__
        assert session["cpu"]
        assert session["device_name"] is None
    state = read_checkpoint(folder / LATEST)
    assert manifest["data_fingerprint"] == state["data"]
    assert manifest["plan_fingerprint"] == state["plan"]


def test_a_run_begins_without_an_estimate_of_its_memory(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(manifest_module, "estimate_training", fail)
    folder = go(tmp_path / "run", workspace, overrides=STEPS, validation=NONE).folder
    assert predicted_memory(folder) is None


def test_a_run_that_cannot_begin_freezes_no_plan(tmp_path: Path, workspace: Path) -> None:
    nothing = ["sets.p.train=[]"]
    with pytest.raises(DataRefused, match="no set to train on"):
        go(tmp_path / "run", workspace, overrides=nothing)
    assert not (tmp_path / "run" / "plan.json").exists()


def test_nothing_but_training_cases_is_opened(
    tmp_path: Path, workspace: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tripwire: the other cases of the store cannot be read."""
    copy = shutil.copytree(workspace, tmp_path / "ws")
    store = plan.store_folder(copy, "p")
    train_case, validate_case = plan.sets["p"].train[0], plan.sets["p"].validate_[0]
    roles = {"train": plan.sets["p"].train[1:], "test": (train_case,)}
    sets = {"p": plan.sets["p"].model_copy(update=roles)}
    for case in (train_case, validate_case):
        assert list(store.glob(f"{case}*")) or case == validate_case
        for path in store.glob(f"{case}*"):
            shutil.rmtree(path) if path.is_dir() else path.write_bytes(b"not to be read")
    found = read_catalogue(sets_for_training(plan.model_copy(update={"sets": sets}), copy))
    assert [case.name for case in found.sets[0].cases] == list(roles["train"])


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("subjects", {"torso_001": "twin", "torso_002": "twin"}, "iris plan"),
        ("modality", "MR", "iris plan"),
        ("absent_means", "not_annotated", "iris plan"),
        ("held_out_classes", ["liver"], "iris plan"),
        ("roles", {"torso_001": "test", "torso_004": "validate"}, "iris plan"),
        ("not_annotated", {"torso_002": ["liver"]}, "iris preprocess"),
    ],
)
def test_a_raw_set_that_was_edited_is_not_trained_on_as_it_was(
    tmp_path: Path, workspace: Path, key: str, value: Any, line: str
) -> None:
    copy = edited(workspace, tmp_path / "ws", key, value)
    with pytest.raises(DataRefused, match=key) as caught:
        go(tmp_path / "run", copy, validation=NONE)
    assert line in str(caught.value)
    assert not (tmp_path / "run" / "manifest.json").exists()
    if line == "iris plan":
        with pytest.raises(DataRefused, match=key):
            preprocess(copy / "plans" / "default.json", workspace=copy)
        make_plan(workspace=copy, preset_name="tiny")
    preprocess(copy / "plans" / "default.json", workspace=copy)
    made = read_plan(copy / "plans" / "default.json")
    sets = sets_for_training(made, copy, read_trained_raw(made, copy))
    assert len(read_catalogue(sets).sets) == 1


def edited(workspace: Path, copy: Path, key: str, value: Any) -> Path:
    """A copy of the workspace, whose dataset.json says something else."""
    shutil.copytree(workspace, copy)
    file = copy / "raw" / "p" / "dataset.json"
    content = json.loads(file.read_text())
    content.setdefault("iris", {})[key] = value
    file.write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize("gone", [("imagesTr", "labelsTr"), ("labelsTr",)])
def test_a_store_is_trained_on_whose_raw_files_are_gone(
    tmp_path: Path, workspace: Path, gone: tuple[str, ...]
) -> None:
    """What is left of the raw set is dataset.json, which still says what it said."""
    copy = Path(shutil.copytree(workspace, tmp_path / "ws"))
    for folder in gone:
        shutil.rmtree(copy / "raw" / "p" / folder)
    short = ("training.steps=1",)
    assert go(tmp_path / "run", copy, validation=NONE, overrides=short).outcome.steps == 1


@pytest.mark.parametrize("gone", [("imagesTr", "labelsTr"), ("labelsTr",)])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("roles", {"torso_004": "validate", "torso_001": "test"}),
        ("roles", {"torso_004": "validate", "torso_001": "unlabelled"}),
        ("subjects", {"torso_001": "twin"}),
        ("not_annotated", {"torso_002": ["liver"]}),
        ("held_out_classes", ["liver"]),
    ],
)
def test_the_word_of_dataset_json_counts_where_files_are_gone(
    tmp_path: Path, workspace: Path, gone: tuple[str, ...], key: str, value: Any
) -> None:
    copy = edited(workspace, tmp_path / "ws", key, value)
    for folder in gone:
        shutil.rmtree(copy / "raw" / "p" / folder)
    with pytest.raises(DataRefused, match=key):
        go(tmp_path / "run", copy, validation=NONE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("subjects", {"torso_001": "twin"}),
        ("not_annotated", {"torso_002": ["liver"]}),
        ("roles", {"nobody": "test"}),
    ],
)
def test_a_begun_run_goes_on_whatever_becomes_of_dataset_json(
    tmp_path: Path,
    workspace: Path,
    caplog: pytest.LogCaptureFixture,
    key: str,
    value: Any,
) -> None:
    folder = begun(tmp_path / "run", workspace, looks=1, validation=NONE)
    copy = edited(workspace, tmp_path / "ws", key, value)
    assert go(folder, copy, validation=NONE).outcome.steps == 2
    if key != "not_annotated":  # no part of a plan
        (warned,) = [r.getMessage() for r in caplog.records if r.name == workflow.__name__]
        assert key in warned
        assert "goes on as it was begun" in warned


def test_a_begun_run_is_not_continued_on_another_store(tmp_path: Path, workspace: Path) -> None:
    folder = begun(tmp_path / "run", workspace, looks=1, validation=NONE)
    copy = edited(workspace, tmp_path / "ws", "not_annotated", {"torso_002": ["liver"]})
    preprocess(copy / "plans" / "default.json", workspace=copy)
    with pytest.raises(DataRefused, match="data"):
        go(folder, copy, validation=NONE)


def test_without_its_raw_sets_a_store_is_trained_on(tmp_path: Path, workspace: Path) -> None:
    copy = Path(shutil.copytree(workspace, tmp_path / "ws"))
    shutil.rmtree(copy / "raw")
    assert go(tmp_path / "run", copy, validation=NONE).outcome.steps == 2


def test_a_run_without_checkpoint_has_no_model(tmp_path: Path, workspace: Path) -> None:
    begin_with(tmp_path, workspace, [])
    with pytest.raises(UsageError, match="no checkpoint"):
        export_model(tmp_path)


def jobs(settings: InContextValidation, plan: Plan, workspace: Path) -> list[Any]:
    return validation_module._jobs(settings, "p", plan.sets["p"], plan.raw_folder(workspace, "p"))


def test_references_are_training_cases_and_queries_validation_cases(
    workspace: Path, plan: Plan
) -> None:
    found = jobs(InContextValidation(references=(1, 3, 4)), plan, workspace)
    assert [job.count for job in found] == [1, 3]  # there are no four references
    for job in found:
        assert len(job.references) == job.count
        assert {case.name for case in job.references} <= set(plan.sets["p"].train)
        assert {case.name for case in job.queries} <= set(plan.sets["p"].validate_)
    assert jobs(NONE, plan, workspace) == []


def test_a_task_keeps_to_one_modality(workspace: Path) -> None:
    def case(name: str, modality: Any) -> Case:
        return replace(Case(name, (), None, name, "train", (None,)), modality=(modality,))

    pool = [case("a", "ct"), case("b", "other"), case("c", "other")]
    queries = [case("d", "ct"), case("e", "other"), case("f", "ct"), case("g", None)]
    chosen = validation_module._of_one_modality(pool, queries)
    assert [[c.name for c in cases] for cases in chosen] == [["a"], ["d", "f"]]
    assert validation_module._of_one_modality(pool, [case("g", None)]) == ([], [])


def test_a_task_that_fails_is_noted_and_the_others_go_on(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = validation_module._Job.dice

    def dice(self: Any, *args: Any) -> Any:
        if self.count == 1:
            raise DataRefused("a file is gone")
        return plain(self, *args)

    monkeypatch.setattr(validation_module._Job, "dice", dice)
    settings = InContextValidation(references=(1, 2))
    report = go(tmp_path / "run", workspace, overrides=["training.steps=1"], validation=settings)
    text = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    figures = json.loads(text)["validation"]
    assert figures["failed"] == {"p": {"k1": "a file is gone"}}
    assert 0 <= figures["seen"]["p"]["k2"]["mean"] <= 1
    assert "score" not in figures
    assert report.exported_step == 1


def test_a_run_starts_from_registered_weights_by_their_name(
    workspace: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    weights = weights_of()
    content = {"model": weights, "config": config_of()}
    report = import_model(write(tmp_path / "w.pth", content), "released")
    own = tmp_path / "plan.json"
    write_plan(own, plan.model_copy(update={"network": report.card.network}))
    frozen = ('training.freeze=["encoder.*"]', *STEPS)
    options: dict[str, Any] = {"plan": own, "overrides": frozen, "validation": NONE}
    trained = go(tmp_path / "run", workspace, init_from=Path("released"), **options)
    state = load_model(trained.model).network.state_dict()
    name = "encoder.inc.conv1.weight"
    assert torch.equal(state[name], weights[name].half().float())
    with pytest.raises(UsageError, match="no model 'relaesed'"):
        go(tmp_path / "other", workspace, init_from=Path("relaesed"), **options)
    with pytest.raises(DataRefused, match="do not fit"):
        go(tmp_path / "third", workspace, init_from=Path("released"), validation=NONE)
