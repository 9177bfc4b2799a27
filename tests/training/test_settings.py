from __future__ import annotations

import pytest
from pydantic import ValidationError

from iris_cli.training.settings import GeometrySettings, Mixing, SetForTraining, TrainingSettings


def test_more_parts_than_episodes_are_refused() -> None:
    assert TrainingSettings(batch=4, accumulation=3).accumulation == 3
    with pytest.raises(ValidationError, match="batch 4 cannot be cut into 5 parts"):
        TrainingSettings(batch=4, accumulation=5)


def test_scale_range_must_be_in_order() -> None:
    with pytest.raises(ValidationError, match="scale_min"):
        GeometrySettings(scale_min=2.0, scale_max=0.5)


def test_a_mixing_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="share above 0"):
        Mixing(real=0, pseudo=0, synthetic=0)


@pytest.mark.parametrize(
    "change",
    [{"workers": 7}, {"checkpoint_every_s": 1.0}, {"log_every": 3}, {"recompute": True}],
)
def test_what_cannot_change_the_weights_is_not_hashed(change: dict[str, object]) -> None:
    assert TrainingSettings().content_hash() == TrainingSettings(**change).content_hash()  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch": 16}, {"clip": 2.0}, {"steps": 5}])
def test_what_changes_the_weights_is_hashed(change: dict[str, object]) -> None:
    assert TrainingSettings().content_hash() != TrainingSettings(**change).content_hash()  # type: ignore[arg-type]


def test_where_a_store_lies_is_no_part_of_a_sets_description(tmp_path: object) -> None:
    a = SetForTraining(name="a", store="/x", cases=())  # type: ignore[arg-type]
    b = SetForTraining(name="a", store="/y", cases=())  # type: ignore[arg-type]
    assert a.description() == b.description()


def test_settings_survive_json() -> None:
    settings = TrainingSettings(seed=3, batch=8, accumulation=2)
    assert TrainingSettings.model_validate_json(settings.model_dump_json()) == settings
