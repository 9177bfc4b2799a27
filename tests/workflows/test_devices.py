"""Names of devices."""

from __future__ import annotations

import pytest
import torch

from iris_cli.errors import EnvironmentProblem, UsageError
from iris_cli.workflows.devices import choose_device, choose_devices, choose_rank_device


@pytest.mark.parametrize("word", ["cuda:\u00b2", "cuda:\u0661", "cuda:-1", "cuda:x", "gpu", ""])
def test_other_words_are_wrong_use(word: str) -> None:
    with pytest.raises(UsageError, match="no such device"):
        choose_device(word)


def test_a_device_that_is_not_there_is_a_problem_of_the_machine() -> None:
    assert choose_device("cpu") == "cpu"
    with pytest.raises(EnvironmentProblem, match="not there"):
        choose_device("cuda:999")


def test_several_devices_are_named_one_by_one() -> None:
    assert choose_devices("cpu, cpu") == ("cpu", "cpu")
    with pytest.raises(EnvironmentProblem, match="not there"):
        choose_devices("997,998")
    with pytest.raises(UsageError, match="no such device"):
        choose_devices("cpu,")


def test_devices_are_named_once_and_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_devices("0,cuda:1") == ("cuda:0", "cuda:1")
    assert choose_rank_device("auto", 1) == "cuda:1"
    assert choose_rank_device("cuda", 0) == "cuda:0"
    assert choose_rank_device("cpu", 1) == "cpu"
    with pytest.raises(UsageError, match="named twice") as refused:
        choose_devices("1,0,cuda:1")
    assert "cuda:1 once" in str(refused.value.expected)
    with pytest.raises(UsageError, match="two kinds"):
        choose_devices("cuda:0,cpu")
    with pytest.raises(EnvironmentProblem) as missing:
        choose_devices("cuda:0,cuda:2")
    assert missing.value.found == "cuda:0, cuda:1"
