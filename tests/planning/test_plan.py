"""Plans: choices with reasons, from training cases only; files that are typed and checked."""

import json
from pathlib import Path
from typing import Any

import pytest

from iris_cli.dataset.raw import read_raw_dataset
from iris_cli.errors import DataRefused, UsageError
from iris_cli.planning.fingerprint import fingerprint_set
from iris_cli.planning.overrides import apply_overrides, override_record
from iris_cli.planning.plan import (
    Plan,
    RawSet,
    draw_shares,
    make_plan,
    read_plan,
    write_plan,
)
from iris_cli.planning.presets import PRESETS, preset
from iris_cli.planning.training_sets import sets_for_training
from iris_cli.preparation.integrity import check_dataset
from iris_cli.preparation.measure import CaseFacts, ClassFacts
from iris_cli.preparation.store import store_key
from iris_cli.task.spacing import task_spacing
from tests.preparation.raw_sets import grid, make_set


def planned(workspace: Path, *names: str, preset_name: str = "tiny", **options: Any) -> Plan:
    raws = [read_raw_dataset(workspace / "raw" / name) for name in names]
    return make_plan(
        [RawSet(raw, check_dataset(raw)) for raw in raws],
        preset(preset_name),
        name="default",
        preset_name=preset_name,
        workspace=workspace,
        **options,
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    make_set(
        folder / "raw" / "boxes",
        channels={"0": "MR T1", "1": "CT"},
        test=("held",),
        iris={"held_out_classes": ["two"], "mirror_pairs": [["one", "two"]]},
    )
    make_set(folder / "raw" / "free", (), labels={}, unlabelled=("u", "v"))
    return folder


@pytest.fixture(scope="module")
def plan(workspace: Path) -> Plan:
    return planned(workspace, "boxes", "free")


def test_every_choice_has_a_reason(plan: Plan) -> None:
    assert {"network", "patch", "s0", "profile", "training"} <= set(plan.reasons)
    for name in plan.sets:
        for key in ("spacing_mm", "train", "channels", "weight"):
            assert plan.reasons[f"sets.{name}.{key}"]


def test_spacing_of_a_set_is_the_rule_of_tasks(tmp_path: Path) -> None:
    make_set(tmp_path / "raw" / "boxes")
    plan = planned(tmp_path, "boxes")
    # Boxes: the union is 13 mm long, class "two" has 4 x 4 x 5 voxels of 2 mm3.
    expected = task_spacing(6.0, 32, 1.0, 13.0, 160.0)
    assert plan.sets["boxes"].spacing_mm == expected.spacing_mm == 1.0
    assert plan.reasons["sets.boxes.spacing_mm"].startswith(expected.reason)


def test_a_class_of_few_voxels_at_the_working_spacing_is_said(tmp_path: Path) -> None:
    make_set(tmp_path / "raw" / "boxes")
    plan = planned(tmp_path, "boxes")
    assert "'two' has only about 160 voxels" in plan.reasons["sets.boxes.spacing_mm"]
    # 374 voxels of 8 mm3, worked at 1 mm.
    thick = grid(spacing_xyz=(1.0, 1.0, 8.0))
    make_set(tmp_path / "raw" / "s", ("a",), labels={"both": [1, 2]}, a_grid=thick)
    assert "note" not in planned(tmp_path, "s", preset_name="base").reasons["sets.s.spacing_mm"]


def test_held_out_classes_are_in_no_statistic(plan: Plan, tmp_path: Path) -> None:
    make_set(tmp_path / "raw" / "boxes")
    open_plan = planned(tmp_path, "boxes")
    assert set(plan.sets["boxes"].fingerprint.classes) == {"one"}
    assert set(open_plan.sets["boxes"].fingerprint.classes) == {"one", "two"}
    assert plan.sets["boxes"].fingerprint.extent_mm < open_plan.sets["boxes"].fingerprint.extent_mm


def test_left_and_right_without_mirror_pairs_are_pointed_out(tmp_path: Path) -> None:
    sides = {"kidney_left": 1, "kidney_right": 2}
    make_set(tmp_path / "raw" / "quiet", labels=sides)
    pairs = {"mirror_pairs": [["kidney_left", "kidney_right"]]}
    make_set(tmp_path / "raw" / "declared", labels=sides, iris=pairs)
    plan = planned(tmp_path, "quiet", "declared")
    assert "['kidney_left', 'kidney_right']" in plan.reasons["sets.quiet.mirror_pairs"]
    assert plan.sets["quiet"].mirror_pairs == (), "a suggestion is never applied"
    assert "sets.declared.mirror_pairs" not in plan.reasons


def test_a_set_without_labels_stays_near_its_own_resolution(plan: Plan) -> None:
    assert plan.sets["free"].spacing_mm == 2.0
    assert "no labels" in plan.reasons["sets.free.spacing_mm"]


def test_set_keeps_what_dataset_json_says(plan: Plan) -> None:
    boxes = plan.sets["boxes"]
    assert boxes.raw == "raw/boxes"
    assert [c.modality for c in boxes.channels] == ["other", "ct"]
    assert boxes.classes == {"one": (1,), "two": (2,)}
    assert boxes.held_out_classes == ("two",)
    assert boxes.mirror_pairs == (("one", "two"),)
    assert boxes.test == ("held",)
    assert len(boxes.train) == 4
    assert len(boxes.validate_) == 1
    assert plan.sets["free"].unlabelled == ("u", "v")


def test_test_and_validation_cases_do_not_change_the_statistics(tmp_path: Path) -> None:
    roles = {"d": "validate", "e": "validate"}
    small, large = tmp_path / "small", tmp_path / "large"
    make_set(small / "raw" / "s", ("a", "b", "c"), iris={"roles": {"a": "train"}})
    make_set(large / "raw" / "s", ("a", "b", "c", "d", "e"), test=("t",), iris={"roles": roles})
    first, second = planned(small, "s").sets["s"], planned(large, "s").sets["s"]
    assert second.fingerprint == first.fingerprint
    assert second.spacing_mm == first.spacing_mm


def test_a_set_without_training_cases_is_refused(tmp_path: Path) -> None:
    make_set(tmp_path / "raw" / "s", ("a",), iris={"roles": {"a": "test"}})
    with pytest.raises(DataRefused, match="no case to train on"):
        planned(tmp_path, "s")


def test_modalities_that_differ_are_decided_per_case(tmp_path: Path) -> None:
    iris = {"case_modality": {"a": "CT", "b": "MR"}}
    make_set(tmp_path / "raw" / "s", ("a", "b"), channels={"0": "mixed"}, iris=iris)
    plan = planned(tmp_path, "s")
    assert plan.sets["s"].channels[0].modality == "per case"
    assert "cases differ" in plan.reasons["sets.s.channels"]


def test_an_undeclared_modality_is_guessed_by_all_cases(tmp_path: Path) -> None:
    make_set(tmp_path / "raw" / "s", ("a", "b"), channels={"0": "image"})
    plan = planned(tmp_path, "s")
    assert plan.sets["s"].channels[0].modality == "other"
    assert "guessed alike for 2 cases" in plan.reasons["sets.s.channels"]


def test_coarse_data_are_worked_at_their_own_spacing(tmp_path: Path) -> None:
    coarse = grid(spacing_xyz=(8.0, 8.0, 9.0))
    make_set(tmp_path / "raw" / "s", ("a", "b"), a_grid=coarse)
    assert planned(tmp_path, "s").sets["s"].spacing_mm == 8.0


def test_plan_survives_its_file(plan: Plan, tmp_path: Path) -> None:
    path = write_plan(tmp_path / "plan.json", plan)
    assert read_plan(path) == plan
    assert "validate" in json.loads(path.read_text())["sets"]["boxes"]


def test_an_unknown_key_is_refused_with_the_nearest_name(plan: Plan, tmp_path: Path) -> None:
    path = write_plan(tmp_path / "plan.json", plan)
    content = json.loads(path.read_text())
    content["training"]["stepps"] = 5
    path.write_text(json.dumps(content))
    with pytest.raises(DataRefused, match=r"training.stepps.*did you mean 'steps'"):
        read_plan(path)


def test_another_version_is_refused_by_name(plan: Plan, tmp_path: Path) -> None:
    path = write_plan(tmp_path / "plan.json", plan)
    path.write_text(path.read_text().replace("iris-plan-2", "iris-plan-3"))
    with pytest.raises(DataRefused) as caught:
        read_plan(path)
    assert caught.value.found == "iris-plan-3"


def test_an_older_version_is_read(plan: Plan, tmp_path: Path) -> None:
    """Its sets do not say what their dataset.json said."""
    path = write_plan(tmp_path / "plan.json", plan)
    content = json.loads(path.read_text())
    assert content["format"] == "iris-plan-2"
    for planned_set in content["sets"].values():
        del planned_set["declared"]
    path.write_text(json.dumps(content | {"format": "iris-plan-1"}))
    read = read_plan(path)
    assert (read.format, read.sets["boxes"].declared) == ("iris-plan-2", None)
    assert read.sets["boxes"].fingerprint == plan.sets["boxes"].fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 40}, "multiple of"),
        ({"s0": 0}, "greater than 0"),
        ({"held_out_sets": {"boxes": "raw/boxes"}}, "held out and trained on"),
    ],
)
def test_plans_that_contradict_themselves_are_refused(
    plan: Plan, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write_plan(tmp_path / "plan.json", plan)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataRefused, match=message):
        read_plan(path)


def test_a_case_with_two_roles_is_refused(plan: Plan) -> None:
    with pytest.raises(UsageError, match=r"two roles: a"):
        apply_overrides(plan, ['sets.boxes.test=["a"]', 'sets.boxes.train=["a", "b"]'])


def test_overrides_are_typed_and_noted(plan: Plan) -> None:
    changed = apply_overrides(
        plan, ["training.steps=7", "training.optimiser.name=adamw", "sets.boxes.spacing_mm=2.5"]
    )
    assert changed.training.steps == 7
    assert changed.training.optimiser.name == "adamw"
    assert changed.key("boxes") == store_key(2.5, "iris-1") != plan.key("boxes")
    assert changed.reasons["training.steps"] == "set by hand (--set)"
    assert plan.training.steps == 20


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stpes=7", "did you mean 'training.steps'"),
        ("sets.boxs.weight=2", "did you mean 'sets.boxes.weight'"),
        ("training.steps=many", "training.steps"),
        ("training.steps=0", "greater than or equal to 1"),
        ("training.optimiser=lamb", "training.optimiser.name"),
        ("training.steps", "key=value"),
        ("patch=33", "multiple"),
        ("s0=0", "s0: Input should be greater than 0"),
    ],
)
def test_wrong_overrides_are_refused_with_a_hint(plan: Plan, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        apply_overrides(plan, [override])


def test_names_of_sets_may_hold_dots(plan: Plan) -> None:
    dotted = plan.model_copy(update={"sets": {"v1.5": plan.sets["free"]}, "reasons": {}})
    assert apply_overrides(dotted, ["sets.v1.5.weight=3"]).sets["v1.5"].weight == 3


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_consistent_and_keep_the_field_of_view(name: str) -> None:
    chosen = preset(name)
    assert chosen.patch * chosen.s0 == 192.0
    assert override_record(chosen, []) == chosen


def test_the_spacing_of_a_preset_is_bounded() -> None:
    with pytest.raises(UsageError, match="s0: Input should be greater than 0"):
        override_record(preset("tiny"), ["s0=0"])


def test_unknown_presets_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'small'"):
        preset("smal")


def test_sets_for_training_leave_validation_and_test_out(plan: Plan, tmp_path: Path) -> None:
    boxes, free = sets_for_training(plan, tmp_path)
    views = {case.view for case in boxes.cases}
    assert views == {f"{c}{v}" for c in plan.sets["boxes"].train for v in ("", "@1")}
    assert boxes.held_out_classes == ("two",)
    assert boxes.store == tmp_path / "preprocessed" / "boxes" / plan.key("boxes")
    assert [(c.view, c.labels) for c in free.cases] == [("u", False), ("v", False)]


def test_shares_go_by_size_with_a_temperature(plan: Plan) -> None:
    shares = draw_shares(plan.sets, 0.5)
    # 4 training cases of 2 channels against 2 unlabelled ones: sqrt(8) : sqrt(2).
    assert shares["boxes"] == pytest.approx(2 / 3)
    assert sum(shares.values()) == pytest.approx(1)


def test_fingerprint_sums_up_hand_made_facts() -> None:
    def facts(case: str, shape: tuple[int, int, int], spacing: float, voxels: int) -> CaseFacts:
        size = ClassFacts(voxels=voxels, volume_mm3=voxels * 2.0, extent_mm=(1, 2, spacing))
        return CaseFacts(
            case=case,
            subject=case[0],
            role="train",
            shape_zyx=shape,
            spacing_zyx_mm=(3.0, spacing, spacing),
            guesses=("ct" if voxels else "other",),
            image_hash=case,
            labelled=True,
            classes={"organ": size} if voxels else {},
            extent_mm=spacing * 10 if voxels else 0.0,
        )

    made = fingerprint_set(
        [facts("a1", (10, 20, 30), 1.0, 100), facts("a2", (20, 20, 10), 2.0, 300),
         facts("b1", (30, 20, 20), 4.0, 0)]
    )  # fmt: skip
    assert made.cases == 3
    assert made.subjects == 2
    assert made.modality_votes == ({"ct": 2, "other": 1},)
    assert made.spacing_mm_median == (3.0, 2.0, 2.0)
    assert made.shape_min == (10, 20, 10)
    assert made.shape_median == (20, 20, 20)
    assert made.extent_mm == 15.0
    organ = made.classes["organ"]
    assert (organ.cases, organ.voxels, organ.volume_mm3) == (2, 200, 400)
    assert organ.longest_extent_mm == 2.0
