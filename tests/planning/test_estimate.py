"""What a plan says of memory, and that a real step takes as much."""

from __future__ import annotations

import pytest

from benchmarks.training_memory import measure_apart, parse_shape
from iris_cli.network.config import NetworkConfig
from iris_cli.planning.estimate import BYTES_PER_PARAMETER, TrainingEstimate, estimate_step
from iris_cli.planning.presets import PRESETS
from iris_cli.planning.step_shape import StepShape

TINY = NetworkConfig.tiny()


def tiny(**changes: object) -> TrainingEstimate:
    asked = {"patch": 32, "episodes": 1, "references": 1, "classes": 2, **changes}
    return estimate_step(StepShape(network=TINY, **asked))  # type: ignore[arg-type]


def test_state_is_four_numbers_per_parameter_whatever_the_step() -> None:
    few, many = tiny(), tiny(episodes=2)
    assert few.state_bytes == many.state_bytes == few.parameters * BYTES_PER_PARAMETER
    assert few.total_bytes == few.state_bytes + few.step_bytes + few.overhead_bytes


def test_memory_grows_with_everything_a_step_holds_and_recomputing_saves() -> None:
    one = tiny().step_bytes
    assert 1.7 < tiny(episodes=2).step_bytes / one < 2.1
    assert tiny(references=3).step_bytes > 1.3 * one
    assert tiny(classes=6).step_bytes > 1.1 * one
    assert tiny(recompute=True).step_bytes < 0.8 * one
    kept = tiny(gradients=True).step_bytes - one
    assert 0 <= kept <= 4 * tiny().parameters


def test_half_precision_takes_less_and_norms_on_cuda_take_some_of_it_back() -> None:
    single, half = tiny().step_bytes, tiny(precision="bfloat16").step_bytes
    cuda = tiny(precision="bfloat16", device="cuda").step_bytes
    assert half < cuda < single


@pytest.mark.slow
def test_preset_base_trains_on_a_gpu_of_40_gb() -> None:
    """A tenth is left to the driver and to what the allocator cannot use."""
    chosen = PRESETS["base"]
    largest = StepShape(
        network=chosen.network,
        patch=chosen.patch,
        episodes=chosen.training.batch // chosen.training.accumulation,
        references=chosen.training.task.references_max,
        classes=chosen.training.task.classes_max,
        recompute=chosen.training.recompute,
        gradients=True,
        device="cuda",
        precision="bfloat16",
    )
    assert estimate_step(largest).total_bytes < 0.9 * 40e9


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", ["tiny:64:2:2:3", "small:64:1:3:8", "small:64:4:2:4", "base:64:1:2:3:recompute"]
)
def test_a_step_takes_what_was_predicted_within_15_percent(shape: str) -> None:
    predicted = estimate_step(parse_shape(shape, "cpu")).total_bytes
    assert predicted == pytest.approx(measure_apart(shape, "cpu"), rel=0.15)
