"""In-context validation: who is reference, who is query, what is said of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iris_cli.dataset.phantoms import write_phantom_dataset
from iris_cli.dataset.raw import read_raw_dataset
from iris_cli.errors import DataRefused, Stopped, UsageError
from iris_cli.files.publish import publish_json
from iris_cli.files.schema import read_json
from iris_cli.inference.case import Prediction
from iris_cli.inference.streaming import WindowCounts
from iris_cli.model.model import Model, ModelCard
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.planning.plan import Plan, read_plan
from iris_cli.preparation.codes import Code
from iris_cli.preparation.findings import DataDefects
from iris_cli.volume.reading import read_labels
from iris_cli.workflows import validation as module
from iris_cli.workflows.plan import plan as make_plan
from iris_cli.workflows.validation import InContextValidation, read_unseen_set

SETTINGS = InContextValidation(cases_per_set=2, references=(1, 3))


def phantoms(folder: Path, seeds: tuple[int, ...], **options: Any) -> Path:
    return write_phantom_dataset(folder, seeds, size=0.6, voxel_mm=9.0, **options)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set to train on, and an unseen one with its own lists: contexts 6, 7, queries 8, 9."""
    folder = tmp_path_factory.mktemp("ws")
    roles: dict[str, Any] = {"torso_004": "validate", "torso_005": "validate"}
    phantoms(folder / "raw" / "seen", (1, 2, 3, 4, 5), roles=roles)
    listed: dict[str, Any] = {f"torso_{i:03d}": "validate" for i in (6, 7, 8, 9)}
    phantoms(folder / "raw" / "unseen", (6, 7), queries=(8, 9, 10), roles=listed)
    make_plan(workspace=folder, preset_name="tiny", validation_sets=["unseen"])
    return folder


@pytest.fixture
def plan(workspace: Path) -> Plan:
    return read_plan(workspace / "plans" / "default.json")


def network(plan: Plan) -> IrisNetwork:
    return IrisNetwork(plan.network).eval()


def holding_out(plan: Plan, *classes: str) -> Plan:
    changed = {"held_out_classes": classes}
    sets = {name: item.model_copy(update=changed) for name, item in plan.sets.items()}
    return plan.model_copy(update={"sets": sets})


def test_a_plan_over_all_sets_plans_nothing_for_unseen_ones(plan: Plan) -> None:
    assert plan.validation_sets == {"unseen": "raw/unseen"}
    assert list(plan.sets) == ["seen"]
    assert "validation_sets" in plan.reasons


def test_a_set_is_not_trained_on_and_unseen(workspace: Path) -> None:
    with pytest.raises(UsageError, match="both planned for and an unseen set"):
        make_plan(["seen"], workspace=workspace, preset_name="tiny", validation_sets=["seen"])


def test_a_training_image_in_an_unseen_set_is_found(tmp_path: Path) -> None:
    seen = phantoms(tmp_path / "raw" / "seen", (1, 2))
    unseen = phantoms(tmp_path / "raw" / "unseen", (6, 7))
    for source, copy in (
        ("imagesTr/torso_002_0000", "imagesTr/torso_007_0000"),
        ("labelsTr/torso_002", "labelsTr/torso_007"),
    ):
        shutil.copy(seen / f"{source}.nii.gz", unseen / f"{copy}.nii.gz")
    planned = partial(make_plan, workspace=tmp_path, preset_name="tiny", validation_sets=["unseen"])
    with pytest.raises(DataDefects, match="one of which only validation opens") as caught:
        planned()
    (finding,) = [f for report in caught.value.reports for f in report.errors]
    assert (finding.set, finding.case, finding.code) == (
        "seen", "torso_002", Code.IMAGE_ACROSS_ROLES,
    )  # fmt: skip
    assert finding.found == "seen/torso_002 (train), unseen/torso_007 (train)"
    report = planned(accept=["image-across-roles"])
    assert [one.set for one in report.integrity] == ["seen", "unseen"]
    assert "sets.seen.accepted.image-across-roles" in report.plan.reasons


def test_an_unseen_set_is_checked_like_the_others(tmp_path: Path) -> None:
    phantoms(tmp_path / "raw" / "seen", (1, 2))
    unseen = phantoms(tmp_path / "raw" / "unseen", (6, 7))
    image = unseen / "imagesTr" / "torso_006_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:-20])
    with pytest.raises(DataDefects, match=r"unseen/torso_006.*\[unreadable\]"):
        make_plan(workspace=tmp_path, preset_name="tiny", validation_sets=["unseen"])


def test_an_unseen_set_keeps_to_its_own_lists(plan: Plan, workspace: Path) -> None:
    jobs = [job for job in module._all_jobs(SETTINGS, plan, workspace) if job.unseen]
    assert [job.count for job in jobs] == [1, 2]  # there are no three references
    for job in jobs:
        assert [c.name for c in job.references] == ["torso_006", "torso_007"][: job.count]
        assert [c.name for c in job.queries] == ["torso_008", "torso_009"]


def test_without_lists_references_and_queries_are_of_different_subjects(tmp_path: Path) -> None:
    folder = phantoms(tmp_path / "u", (1, 2, 3, 4))
    content = read_json(folder / "dataset.json")
    content.setdefault("iris", {})["subjects"] = {"torso_001": "a", "torso_002": "a"}
    publish_json(folder / "dataset.json", content)
    raw = read_raw_dataset(folder)
    for seed in range(5):
        context, queries = module._unseen_cases(replace(SETTINGS, seed=seed), raw)
        assert len(context) == 2
        assert not {c.subject for c in context} & {c.subject for c in queries}


def test_a_test_set_is_refused_and_test_cases_are_never_opened(
    tmp_path: Path, workspace: Path, plan: Plan
) -> None:
    roles: dict[str, Any] = dict.fromkeys(("torso_001", "torso_002"), "test")
    with pytest.raises(DataRefused, match="cannot be validated on"):
        read_unseen_set(phantoms(tmp_path / "t", (1, 2), roles=roles))
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    # A tripwire: a test case that cannot be read, in the folder of the queries.
    (image,) = (copy / "raw" / "unseen" / "imagesTs").glob("torso_010*")
    image.write_bytes(b"no volume")
    (copy / "raw" / "unseen" / "labelsTs" / "torso_010.nii.gz").write_bytes(b"no volume")
    validate = replace(SETTINGS, references=(1,)).bind(plan, copy, "cpu")
    assert validate is not None
    figures = validate(network(plan), 1)
    assert "failed" not in figures


def test_figures_are_apart_for_seen_held_out_and_unseen(plan: Plan, workspace: Path) -> None:
    plan = holding_out(plan, "liver")
    validate = replace(SETTINGS, references=(1,)).bind(plan, workspace, "cpu")
    assert validate is not None
    same = network(plan)
    first, again = (validate(same, step) for step in (1, 2))
    held_out, seen = first["held_out"]["seen"]["k1"], first["seen"]["seen"]["k1"]
    assert set(held_out["classes"]) == {"liver"}
    assert "liver" not in seen["classes"]
    assert len(seen["classes"]) > 1
    unseen = first["unseen"]["unseen"]["k1"]
    assert unseen["low"] <= unseen["mean"] <= unseen["high"]
    assert first["score"] == pytest.approx((held_out["mean"] + unseen["mean"]) / 2)
    assert again == first


def test_classes_that_share_a_value_with_a_held_out_class_are_held_out(
    plan: Plan, workspace: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(workspace, tmp_path / "ws")
    path = copy / "raw" / "seen" / "dataset.json"
    content = read_json(path)
    labels = content["labels"]
    labels["region"] = [labels["liver"], labels["spleen"]]
    content["regions_class_order"] = list(range(1, len(labels)))
    publish_json(path, content)
    job = next(j for j in module._all_jobs(SETTINGS, holding_out(plan, "liver"), copy))
    groups = {name: job.group(name) for name in ("liver", "region", "spleen")}
    assert groups == {"liver": "held_out", "region": "held_out", "spleen": "seen"}


@pytest.mark.parametrize("key", ["train", "validate_"])
def test_a_test_case_that_a_plan_names_is_refused(
    plan: Plan, workspace: Path, tmp_path: Path, key: str
) -> None:
    copy = shutil.copytree(workspace, tmp_path / "ws")
    path = copy / "raw" / "seen" / "dataset.json"
    content = read_json(path)
    case = getattr(plan.sets["seen"], key)[0]
    content["iris"]["roles"][case] = "test"
    publish_json(path, content)
    with pytest.raises(DataRefused, match="test cases of seen") as refused:
        SETTINGS.bind(plan, copy, "cpu")
    assert case in str(refused.value.found)


def test_a_stop_ends_a_validation_between_two_windows(plan: Plan, workspace: Path) -> None:
    class Stop:
        reason = "SIGTERM"
        looks = 0

        @property
        def requested(self) -> bool:
            self.looks += 1
            return self.looks > 3  # after the reference and the first windows

    stop = Stop()
    validate = replace(SETTINGS, references=(1,)).bind(plan, workspace, "cpu", stop)
    assert validate is not None
    with pytest.raises(Stopped, match="validation after step 7: SIGTERM"):
        validate(network(plan), 7)
    assert stop.looks == 4


def test_voxels_that_the_truth_ignores_count_nowhere(
    plan: Plan, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(workspace, tmp_path / "ws")
    path = copy / "raw" / "seen" / "dataset.json"
    content = read_json(path)
    ignore = len(content["labels"])
    content["labels"]["ignore"] = ignore
    publish_json(path, content)
    one = replace(SETTINGS, cases_per_set=1, references=(1,))
    (job,) = module._jobs(one, "seen", plan.sets["seen"], path.parent)
    truths = {module._label(query): read_labels(module._label(query)) for query in job.queries}
    # The upper half is ignored, and wrongly predicted.
    for volume in truths.values():
        volume.array[len(volume.array) // 2 :] = ignore
    first = job.raw.classes[0]

    def read(path: Path) -> Any:
        return truths.get(path) or read_labels(path)

    def predict(model: Any, task: Any, image: Any, **_: Any) -> Any:
        truth = next(t for t in truths.values() if t.array.shape == image.array.shape)
        labels = np.where(truth.array == ignore, first.value, truth.array)
        return Prediction(labels, {}, {}, (), {}, WindowCounts(1))

    monkeypatch.setattr(module, "read_labels", read)
    monkeypatch.setattr(module, "predict_volume", predict)
    card = ModelCard.of(network(plan), name="v", version="1", s0=plan.s0, patch=plan.patch)
    _, table = job.dice(Model(network(plan), card), "cpu", lambda done, total: None)
    assert np.nanmin(table) == 1.0


def test_the_score_is_of_seen_classes_where_there_is_nothing_else() -> None:
    one = {"mean": 0.4, "low": None, "high": None, "classes": {}}
    two = {**one, "mean": 0.6}
    assert module._score({"seen": {"a": {"k1": one, "k3": two}}}) == pytest.approx(0.5)
    both = {"seen": {"a": {"k1": one}}, "unseen": {"b": {"k1": two}}}
    assert module._score(both) == pytest.approx(0.6)
    assert module._score({}) is None


def test_a_class_that_no_query_shows_has_no_mean() -> None:
    job = module._Job("s", 1, None, (), (_case("a"), _case("b")), frozenset({"z"}))  # type: ignore[arg-type]
    table = np.array([[0.2, np.nan, 0.9], [0.4, np.nan, 0.7]])
    found = module._by_group(job, ["x", "y", "z"], table)
    assert found["seen"]["mean"] == pytest.approx(0.3)
    assert found["seen"]["classes"]["y"] == {"mean": None, "low": None, "high": None}
    assert found["held_out"]["classes"]["z"]["mean"] == pytest.approx(0.8)


def _case(name: str) -> Any:
    from iris_cli.dataset.raw import Case

    return Case(name, (), None, name, "validate", (None,))
