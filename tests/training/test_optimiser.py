from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from iris_cli.training.optimiser import AveragedWeights, build_optimiser, learning_rate
from iris_cli.training.settings import OptimiserSettings

LR, WD, EPS = 0.01, 0.1, 1e-6


def lamb_by_hand(w: torch.Tensor, grads: list[torch.Tensor]) -> torch.Tensor:
    w = w.clone().double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for g in grads:
        g = g.double()
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        u = m / (v.sqrt() + EPS) + WD * w
        norms = float(w.norm()), float(u.norm())
        trust = min(norms[0], 10.0) / norms[1] if min(norms) > 0 else 1.0
        w = w - LR * trust * u
    return w


@pytest.mark.parametrize(
    "weights",
    [[0.5, -1.5, 2.0], [0.0, 0.0, 0.0], [30.0, 40.0, 0.0]],
    ids=["ordinary", "norm zero", "norm above ten"],
)
def test_lamb_follows_the_formula(weights: list[float]) -> None:
    start = torch.tensor(weights)
    grads = [torch.tensor([0.2, -0.1, 0.05]), torch.tensor([-0.3, 0.2, 0.4])]
    parameter = torch.nn.Parameter(start.clone())
    optimiser = build_optimiser([parameter], OptimiserSettings(lr=LR, weight_decay=WD))
    for grad in grads:
        parameter.grad = grad.clone()
        optimiser.step()
    expected = lamb_by_hand(start, grads)
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-7)


def test_lamb_steps_every_tensor_by_its_own_ratio() -> None:
    starts = [torch.tensor([1.0, 2.0]), torch.tensor([0.1])]
    parameters = [torch.nn.Parameter(s.clone()) for s in starts]
    optimiser = build_optimiser(parameters, OptimiserSettings(lr=LR, weight_decay=WD))
    grads = [torch.tensor([0.3, -0.4]), torch.tensor([5.0])]
    for p, g in zip(parameters, grads, strict=True):
        p.grad = g.clone()
    optimiser.step()
    for p, s, g in zip(parameters, starts, grads, strict=True):
        torch.testing.assert_close(p.detach().double(), lamb_by_hand(s, [g]), rtol=1e-5, atol=1e-7)


def test_adamw_is_an_option() -> None:
    optimiser = build_optimiser(
        [torch.nn.Parameter(torch.ones(2))], OptimiserSettings(name="adamw", lr=1e-3)
    )
    assert isinstance(optimiser, torch.optim.AdamW)


def test_learning_rate_warms_up_and_decays_exponentially() -> None:
    settings = OptimiserSettings(lr=1.0, warmup=10, final_lr_ratio=0.01)
    rates = [learning_rate(step, 110, settings) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    ratios = [b / a for a, b in pairwise(rates[10:])]
    assert max(ratios) - min(ratios) < 1e-9
    assert learning_rate(110, 110, settings) == pytest.approx(0.01)
    assert math.isfinite(learning_rate(0, 1, OptimiserSettings(warmup=0)))


def test_averaged_weights_by_hand_and_buffers_copied() -> None:
    network = torch.nn.BatchNorm1d(1)
    average = AveragedWeights(network, decay=0.5)
    with torch.no_grad():
        network.weight.fill_(3.0)
        network.running_mean.fill_(7.0)
    average.update(network, step=0)
    # Decay of the first step: (1 + 0) / (10 + 0).
    assert float(average.state["weight"]) == pytest.approx(0.1 * 1 + 0.9 * 3)
    assert float(average.state["running_mean"]) == 7.0
    average.update(network, step=1000)
    assert float(average.state["weight"]) == pytest.approx(0.5 * 2.8 + 0.5 * 3)


def test_averaged_weights_do_not_share_memory_with_the_network() -> None:
    network = torch.nn.Linear(2, 2)
    average = AveragedWeights(network, decay=0.9)
    before = average.state["weight"].clone()
    with torch.no_grad():
        network.weight.add_(1.0)
    assert torch.equal(average.state["weight"], before)
