"""Names of devices."""

from __future__ import annotations

import pytest

from iris_cli.errors import EnvironmentProblem, UsageError
from iris_cli.workflows.devices import choose_device


@pytest.mark.parametrize("word", ["cuda:\u00b2", "cuda:\u0661", "cuda:-1", "cuda:x", "gpu", ""])
def test_other_words_are_wrong_use(word: str) -> None:
    with pytest.raises(UsageError, match="no such device"):
        choose_device(word)


def test_a_device_that_is_not_there_is_a_problem_of_the_machine() -> None:
    assert choose_device("cpu") == "cpu"
    with pytest.raises(EnvironmentProblem, match="not there"):
        choose_device("cuda:999")
