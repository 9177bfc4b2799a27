"""`--adapt`: the largest network and patch that fit, a spacing that fits the classes, reasons."""

from __future__ import annotations

import pytest

from iris_cli.planning import adapt as room
from iris_cli.planning.adapt import Budget, adapt, fitting_patch, model_spacing
from iris_cli.planning.estimate import estimate_step
from iris_cli.planning.fingerprint import ClassFingerprint, SetFingerprint, Triple
from iris_cli.planning.step_shape import StepShape
from iris_cli.training.settings import OptimiserSettings, TaskSettings, TrainingSettings

SCHEDULE = TrainingSettings(steps=1000, batch=1, task=TaskSettings(classes_max=2, references_max=1))


def found(
    shape: tuple[int, int, int], spacing: Triple, extent: float, *volumes: float
) -> SetFingerprint:
    return SetFingerprint(
        cases=4,
        subjects=4,
        modality_votes=({"other": 4},),
        spacing_mm_min=spacing,
        spacing_mm_median=spacing,
        spacing_mm_max=spacing,
        shape_min=shape,
        shape_median=shape,
        shape_max=shape,
        extent_mm=extent,
        classes={
            f"c{i}": ClassFingerprint(cases=4, voxels=1, volume_mm3=v, longest_extent_mm=extent)
            for i, v in enumerate(volumes)
        },
    )


HIPPOCAMPUS = found((36, 50, 35), (1.0, 1.0, 1.0), 48.0, 1500.0, 1700.0)
BODY = found((300, 512, 512), (1.5, 0.8, 0.8), 300.0, 1.5e6)
HEART = found((12, 256, 256), (8.0, 1.3, 1.3), 90.0, 40.0)


def test_spacing_follows_the_smaller_of_extent_and_smallest_class() -> None:
    # 48 mm over 60 % of 64 voxels; the smallest class asks for 1500^(1/3) / 6 = 1.91 mm.
    assert model_spacing(3.0, 64, {"h": HIPPOCAMPUS})[0] == pytest.approx(48 / 38.4)
    assert model_spacing(3.0, 64, {"b": BODY})[0] == 3.0  # never coarser than the field of view


def test_an_anisotropic_set_is_not_worked_finer_than_its_voxels_say() -> None:
    # The smallest class asks for 40^(1/3) / 6 = 0.57 mm; a voxel is as large as a cube of 2.38 mm.
    spacing, _ = model_spacing(3.0, 64, {"h": HEART})
    assert spacing == pytest.approx((8 * 1.3 * 1.3) ** (1 / 3), abs=1e-3)


def test_the_middle_set_decides_and_every_one_is_named() -> None:
    sets = {"hip": HIPPOCAMPUS, "body": BODY, "heart": HEART}
    spacing, why = model_spacing(3.0, 64, sets)
    assert spacing == pytest.approx(2.382, abs=1e-3)
    assert all(name in why for name in sets)


def test_a_patch_ends_where_the_longest_image_does() -> None:
    assert fitting_patch("small", 64, 1.25, {"h": HIPPOCAMPUS})[0] in (48, 64)
    assert fitting_patch("small", 64, 3.0, {"b": BODY})[0] == 64
    edge, why = fitting_patch("tiny", 96, 1.0, {"h": HIPPOCAMPUS})
    assert 50 <= edge < 96
    assert "50 mm" in why


@pytest.fixture
def one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ladder with what can be estimated in a moment."""
    monkeypatch.setattr(room, "LADDER", (("tiny", 64), ("tiny", 32)))


@pytest.mark.usefixtures("one_network")
def test_memory_decides_how_far_down_the_ladder_it_goes() -> None:
    large = adapt(SCHEDULE, {"b": BODY}, Budget("cpu"))
    assert large.preset.patch == 64
    assert not large.preset.training.recompute
    least = large.preset
    lean = StepShape(
        network=least.network, patch=64, episodes=1, references=1, classes=2, recompute=True,
    )  # fmt: skip
    limit = estimate_step(lean).total_bytes
    exact = adapt(SCHEDULE, {"b": BODY}, Budget("cpu", limit))
    assert exact.preset.patch == 64
    assert exact.preset.training.recompute
    below = adapt(SCHEDULE, {"b": BODY}, Budget("cpu", limit - 1))
    assert below.preset.patch == 32
    assert "patch 64 takes more memory" in below.reasons["network"]
    assert set(below.reasons) == {"network", "s0", "patch", "training"}


@pytest.mark.usefixtures("one_network")
def test_too_little_memory_for_the_smallest_is_said() -> None:
    assert "more than there is" in adapt(SCHEDULE, {"b": BODY}, Budget("cpu", 1)).reasons["network"]


@pytest.mark.usefixtures("one_network")
def test_hours_shorten_the_schedule_or_choose_a_smaller_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from iris_cli.planning import step_time

    monkeypatch.setattr(step_time, "operations_per_second", lambda device: 1e9)
    step = StepShape(network=room.PRESETS["tiny"].network, patch=64, episodes=1, references=1,
                     classes=2)  # fmt: skip
    hours = step_time.seconds_per_step(step, 1) / 3600
    assert (
        adapt(SCHEDULE, {"b": BODY}, Budget("cpu", hours=1001 * hours)).preset.training.steps
        == 1000
    )
    fewer = adapt(SCHEDULE, {"b": BODY}, Budget("cpu", hours=500.5 * hours))
    assert (fewer.preset.patch, fewer.preset.training.steps) == (64, 500)
    assert "instead of 1000" in fewer.reasons["training"]
    assert adapt(SCHEDULE, {"b": BODY}, Budget("cpu", hours=200 * hours)).preset.patch == 32


@pytest.mark.usefixtures("one_network")
def test_a_shortened_schedule_warms_up_for_the_same_part_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from iris_cli.planning import step_time

    monkeypatch.setattr(step_time, "seconds_per_step", lambda shape, parts: 3.6)
    schedule = SCHEDULE.model_copy(update={"optimiser": OptimiserSettings(warmup=100)})
    made = adapt(schedule, {"b": BODY}, Budget("cpu", hours=0.5)).preset.training
    assert (made.steps, made.optimiser.warmup) == (500, 50)
