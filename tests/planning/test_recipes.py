"""Recipes: what they set, that they go with every preset, and what a plan says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from iris_cli.errors import UsageError
from iris_cli.planning.presets import PRESETS, RECIPES, recipe
from iris_cli.training.settings import TrainingSettings
from iris_cli.workflows.plan import plan
from tests.preparation.raw_sets import make_set


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("preset_name", PRESETS)
def test_every_recipe_goes_with_every_preset(name: str, preset_name: str) -> None:
    chosen, followed = PRESETS[preset_name], RECIPES[name]
    made = followed.applied_to(chosen)
    assert TrainingSettings.model_validate(made.training.model_dump()) == made.training
    assert (made.network, made.patch, made.s0) == (chosen.network, chosen.patch, chosen.s0)
    changed = {
        field
        for field in TrainingSettings.model_fields
        if getattr(made.training, field) != getattr(chosen.training, field)
    }
    assert changed <= set(followed.settings)
    assert all(reason for _, reason in followed.settings.values())


def test_paper_trains_as_the_paper_says() -> None:
    followed = recipe("paper")
    base = PRESETS[followed.preset]
    training = followed.applied_to(base).training
    assert base.network.channels == (32, 64, 128, 256, 512)
    assert base.patch == 128
    assert (training.steps, training.batch) == (80_000, 32)
    optimiser = training.optimiser
    assert (optimiser.name, optimiser.lr, optimiser.weight_decay) == ("lamb", 2e-3, 1e-5)
    assert optimiser.warmup == 2000
    assert (training.mixing.real, training.mixing.pseudo, training.mixing.synthetic) == (1, 0, 0)


def test_robust_leaves_the_defaults_of_every_preset() -> None:
    for chosen in PRESETS.values():
        assert recipe("robust").applied_to(chosen) == chosen


def test_a_mistyped_recipe_is_refused() -> None:
    with pytest.raises(UsageError, match="no recipe 'papr'") as error:
        recipe("papr")
    assert "paper" in str(error.value.fix)


def test_plans_name_their_recipe_and_overrides_win(tmp_path: Path) -> None:
    make_set(tmp_path / "raw" / "boxes", channels={"0": "MR T1"})
    made = plan(
        workspace=tmp_path,
        recipe_name="paper",
        preset_name="tiny",
        overrides=["training.batch=1"],
    ).plan
    assert (made.recipe, made.preset, made.training.batch) == ("paper", "tiny", 1)
    assert made.training.optimiser.warmup == 2000
    assert "LAMB" in made.reasons["training.optimiser"]
    assert made.reasons["training.batch"] == "set by hand (--set)"


def test_a_weight_set_by_hand_changes_the_shares_of_all_sets(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_set(tmp_path / "raw" / name, channels={"0": "MR T1"})
    options = {"workspace": tmp_path, "preset_name": "tiny"}
    even = plan(**options).plan  # type: ignore[arg-type]
    assert "drawn in 50.0% of the episodes" in even.reasons["sets.one.weight"]
    made = plan(**options, overrides=["sets.one.weight=3"]).plan  # type: ignore[arg-type]
    assert made.reasons["sets.one.weight"].startswith("set by hand (--set): drawn in 75.0%")
    assert made.reasons["sets.two.weight"].startswith("drawn in 25.0%")
