from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import ndimage

from iris_cli.training.intensity import change_intensity, seeded
from iris_cli.training.settings import IntensitySettings
from tests.training.stores import NO_INTENSITY


def image(seed: int = 0) -> np.ndarray:
    """Smooth noise: mean about 0, standard deviation 1."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((16, 16, 16)), 2)
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def certain(name: str) -> IntensitySettings:
    return NO_INTENSITY.model_copy(update={f"{name}_probability": 1.0})


@pytest.mark.parametrize(
    "name",
    ["noise", "blur", "brightness", "contrast", "gamma", "inverted_gamma"],
)
def test_every_change_is_reproducible_finite_and_moderate(name: str) -> None:
    results = [
        change_intensity(image(), -2.0, np.random.default_rng(4), certain(name))[0]
        for _ in range(2)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert results[0].dtype == np.float32
    assert np.isfinite(results[0]).all()
    assert not np.array_equal(results[0], image())
    assert 0.2 < results[0].std() < 2.0
    assert abs(results[0].mean()) < 0.5


def test_a_constant_image_stays_finite() -> None:
    everything = IntensitySettings(
        **{f"{n}_probability": 1.0 for n in ("noise", "blur", "gamma", "inverted_gamma")}
    )
    flat = np.full((8, 8, 8), 2.0, np.float32)
    assert np.isfinite(change_intensity(flat, 2.0, np.random.default_rng(0), everything)[0]).all()


def test_no_change_is_the_image_itself() -> None:
    result, fill = change_intensity(image(), -2.5, np.random.default_rng(0), NO_INTENSITY)
    np.testing.assert_array_equal(result, image())
    assert fill == -2.5


@pytest.mark.parametrize("name", ["brightness", "contrast", "gamma", "inverted_gamma"])
def test_the_fill_changes_as_the_voxels_of_its_value_do(name: str) -> None:
    padded = np.pad(image(), 2, constant_values=-2.5)
    result, fill = change_intensity(padded, -2.5, np.random.default_rng(1), certain(name))
    assert fill == pytest.approx(float(result[0, 0, 0]), abs=1e-5)
    assert fill != -2.5


def test_global_generators_are_put_back_even_after_an_error() -> None:
    numpy_state, random_state = np.random.get_state()[1].copy(), random.getstate()

    def fail() -> None:
        with seeded(np.random.default_rng(0)):
            np.random.rand()
            random.random()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert random.getstate() == random_state
