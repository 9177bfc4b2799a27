from __future__ import annotations

import torch
import torch.nn.functional as functional

from iris_cli.training.precision import autocast_type, compute_in

CPU = torch.device("cpu")


def test_precision_is_what_was_asked_for() -> None:
    assert autocast_type("float32", CPU) is None
    assert autocast_type("bfloat16", CPU) is torch.bfloat16
    assert autocast_type("auto", torch.device("meta")) is None


def test_full_precision_changes_no_type() -> None:
    with compute_in(None, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def weight_gradient(x: torch.Tensor, weight: torch.Tensor, kind: torch.dtype | None):
    weight = weight.clone().requires_grad_()
    for _ in range(3):
        # Leave garbage in freed memory: that is what the faulty kernel reads.
        del_me = [torch.full((n,), 1e4) for n in (1 << 12, 1 << 14, 1 << 16, weight.numel())]
        del del_me
    with compute_in(kind, CPU):
        functional.conv3d(x, weight, padding=1).float().square().sum().backward()
    return weight.grad


def test_gradients_of_small_maps_are_right_in_bfloat16() -> None:
    torch.manual_seed(0)
    for edge in (1, 2, 3):
        x, weight = torch.randn(2, 16, edge, edge, edge), torch.randn(32, 16, 3, 3, 3)
        exact = weight_gradient(x, weight, None)
        for _ in range(4):
            low = weight_gradient(x, weight, torch.bfloat16)
            assert exact is not None
            assert low is not None
            assert float((low - exact).abs().max() / exact.abs().max()) < 0.05
