"""How far two token sets of a class are apart."""

from __future__ import annotations

import numpy as np
import pytest

from iris_cli.network.config import ForegroundToken, NetworkConfig
from iris_cli.task.likeness import distances_apart, is_told, token_distance


def tokens(*finest: float) -> list[np.ndarray]:
    """Two stages of two tokens; all but the finest foreground token are as they happen to be."""
    return [np.random.default_rng().normal(size=(2, 3)), np.array([[9.0, -9.0], finest])]


def test_the_distance_is_the_cosine_one_of_the_finest_foreground_tokens() -> None:
    assert token_distance(tokens(3, 4), tokens(6, 8)) == pytest.approx(0)
    assert token_distance(tokens(3, 4), tokens(4, 3)) == pytest.approx(1 - 24 / 25)
    assert token_distance(tokens(1, 0), tokens(0, 2)) == pytest.approx(1)
    assert token_distance(tokens(1, 0), tokens(-1, 0)) == 2
    assert token_distance(tokens(0, 0), tokens(1, 0)) == 1


def test_each_reference_is_compared_with_the_mean_of_the_others() -> None:
    assert distances_apart([]) == distances_apart([tokens(1, 2)]) == ()
    # (1, 0) against the mean of (0, 1) and (0, 3); (0, 1) and (0, 3) against (0.5, 1.5), (0.5, 0.5)
    found = distances_apart([tokens(1, 0), tokens(0, 1), tokens(0, 3)])
    assert found == pytest.approx((1, 1 - 3 / 10**0.5, 1 - 1 / 2**0.5))


def test_networks_that_pool_features_as_they_are_tell_nothing() -> None:
    assert is_told(NetworkConfig.tiny())
    assert not is_told(NetworkConfig.released())
    assert not is_told(NetworkConfig(foreground_token=ForegroundToken.NONE))
