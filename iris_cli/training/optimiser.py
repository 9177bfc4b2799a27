"""Update rule, learning rate and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from iris_cli.training.settings import OptimiserSettings


def build_optimiser(
    parameters: Iterable[torch.nn.Parameter], settings: OptimiserSettings
) -> torch.optim.Optimizer:
    """LAMB (NETWORK.md 8) or AdamW over all parameters alike.

    LAMB: m, v without bias correction; u = m / (sqrt(v) + eps) + wd * w;
    w -= lr * min(|w|, 10) / |u| * u, the factor being 1 where either norm is 0; eps 1e-6.
    pytorch_optimizer adds eps to |u| as well, a relative change of 1e-6 / |u|.
    """
    betas = (settings.beta1, settings.beta2)
    if settings.name == "adamw":
        return torch.optim.AdamW(
            parameters, lr=settings.lr, betas=betas, weight_decay=settings.weight_decay
        )
    from pytorch_optimizer import Lamb  # takes a second to import

    # Decoupled decay would leave wd * w out of the trust ratio; pre_norm clips a second time;
    # adam_debias, whatever its name says, is what switches the bias correction of the step off.
    lamb: torch.optim.Optimizer = Lamb(
        parameters,
        lr=settings.lr,
        betas=betas,
        weight_decay=settings.weight_decay,
        weight_decouple=False,
        pre_norm=False,
        adam_debias=True,
        eps=1e-6,
    )
    return lamb


def learning_rate(step: int, steps: int, settings: OptimiserSettings) -> float:
    """Learning rate of step `step` (0-based) of `steps`: linear warm-up, exponential decay."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    span = max(1, steps - settings.warmup)
    progress = min(1.0, (step - settings.warmup) / span)
    return settings.lr * math.exp(math.log(settings.final_lr_ratio) * progress)


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr


class AveragedWeights:
    """Exponential moving average of parameters (buffers are copied).

    The decay of step n is min(decay, (1 + n) / (10 + n)): the first random weights are forgotten.
    """

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items()}
        self._averaged = [name for name, _ in network.named_parameters()]

    @torch.no_grad()
    def update(self, network: torch.nn.Module, step: int) -> None:
        """Move towards the network's weights after step `step` (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = dict(network.named_parameters())
        averages = [self.state[name] for name in self._averaged]
        current = [parameters[name].detach() for name in self._averaged]
        torch._foreach_lerp_(averages, current, 1 - decay)
        for name, buffer in network.named_buffers():
            if name in self.state:
                self.state[name].copy_(buffer)
