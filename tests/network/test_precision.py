from __future__ import annotations

import torch

from iris_cli.training.precision import autocast_type, compute_in

CPU = torch.device("cpu")


def test_precision_is_what_was_asked_for() -> None:
    assert autocast_type("float32", CPU) is None
    assert autocast_type("bfloat16", CPU) is torch.bfloat16
    assert autocast_type("auto", torch.device("meta")) is None


def test_full_precision_changes_no_type() -> None:
    with compute_in(None, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
