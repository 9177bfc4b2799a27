"""Starting from weights that exist: reading them, checking that they fit, freezing parts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType

import torch

from iris_cli.errors import DataRefused, UsageError
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.training.checkpoint import read_checkpoint

# Weights keep the names of the released ones; these are what the documentation calls two parts.
PARTS: Mapping[str, str] = MappingProxyType({"task_encoder": "task_embedding", "head": "out"})
_SHOWN = 10


def freeze(network: IrisNetwork, patterns: Sequence[str]) -> tuple[str, ...]:
    """Take parameters out of training, by glob patterns of their names.

    patterns: as `encoder.*`, `decoder.up4.*`, `task_encoder.*`, `head.*`; `*` also spans dots.
    returns: names of the frozen parameters. Everything else is made trainable.
    raises UsageError for a pattern that fits no parameter, and where nothing would be trained.
    """
    parameters = dict(network.named_parameters())
    frozen: set[str] = set()
    for pattern in patterns:
        fitting = [name for name in parameters if fnmatchcase(name, _as_named(pattern))]
        if not fitting:
            raise _unknown(pattern, parameters)
        frozen.update(fitting)
    if parameters and frozen == set(parameters):
        raise UsageError(
            "every parameter would be frozen: nothing would be trained",
            found=", ".join(patterns),
            fix="leave out one of the patterns of training.freeze",
        )
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in frozen)
    return tuple(name for name in parameters if name in frozen)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights to start from, by name.

    path: a checkpoint `.pt` (its averaged weights), a model folder, or a `.safetensors` file.
    raises UsageError where there is none, DataRefused where it is damaged.
    """
    if path.suffix == ".pt":
        weights: dict[str, torch.Tensor] = read_checkpoint(path)["ema"]
        return weights
    from iris_cli.model.model import load_model

    return dict(load_model(path).network.state_dict())


def load_weights(network: IrisNetwork, path: Path) -> None:
    """Give a network the weights of `read_weights`; every name and shape must be the network's.

    raises DataRefused, with the first names that are missing, not known, or of another shape.
    """
    weights = read_weights(path)
    ours = network.state_dict()
    problems = {
        "missing": [name for name in ours if name not in weights],
        "not of this network": [name for name in weights if name not in ours],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in ours.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    fitting = len(ours) - len(problems["missing"]) - len(problems["of another shape"])
    if any(problems.values()):
        raise DataRefused(
            "these weights do not fit the network of the plan",
            file=path,
            found="; ".join(f"{len(n)} {what}: {_first(n)}" for what, n in problems.items() if n),
            expected=f"the {len(ours)} tensors of the network, of which {fitting} fit",
            fix="plan with the preset and network settings these weights were trained with",
        )
    network.load_state_dict(weights)


def _as_named(pattern: str) -> str:
    part, dot, rest = pattern.partition(".")
    return PARTS.get(part, part) + dot + rest


def _unknown(pattern: str, names: Mapping[str, object]) -> UsageError:
    """Nearest by the words before the pattern's first wildcard, or as a whole."""
    parts = sorted({".".join(name.split(".")[:n]) for name in names for n in (1, 2, 3)})
    wanted = _as_named(pattern).split("*")[0].rstrip(".") or pattern
    near = difflib.get_close_matches(wanted, [*parts, *names], n=3, cutoff=0.4)
    tops = sorted({name.split(".")[0] for name in names} | set(PARTS))
    return UsageError(
        f"no parameter of the network is named {pattern!r}",
        expected=", ".join(f"{top}.*" for top in tops),
        fix=f"nearest names: {', '.join(near)}" if near else "use one of these patterns",
    )


def _first(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
