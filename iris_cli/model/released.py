"""Released weights (`mass_base.pth`): read as a model of iris, and written with the same names.

The layout is that of the published code (NETWORK.md, section 5): a dict with one or two copies of
the weights, and the network's sizes under `config.model`. The memory bank in it is left out:
pre-training never updates it, so it holds the random numbers it began with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.download import file_checksum
from iris_cli.files.publish import publish
from iris_cli.files.schema import parse_record
from iris_cli.model.card import ModelCard, ModelSource
from iris_cli.model.model import Model
from iris_cli.model.torch_file import read_torch_file, refuse
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork

S0_MM = 1.5
PATCH = 128
LICENCE = (
    "not stated in the file; the page of the published weights, huggingface.co/StanfordAIMI/MASS, "
    "says MIT"
)


class Copy(StrEnum):
    """Which copy of the weights: averaged over training, or as the last step left them."""

    EMA = "ema"
    MODEL = "model"


_COPIES: Mapping[Copy, tuple[str, ...]] = MappingProxyType(
    {Copy.EMA: ("ema_model", "ema_state_dict"), Copy.MODEL: ("model", "model_state_dict")}
)
_PREFIXES = ("module.", "_orig_mod.")
_BANK = "task_prior_"
_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "in_ch": "in_channels",
        "channels": "channels",
        "scale": "scales",
        "kernel_size": "kernel_sizes",
        "num_block": "blocks",
        "num_prior_stage": "stages",
    }
)
# What the published code can also be asked for, and iris does not compute.
_FIXED: Mapping[str, Any] = MappingProxyType({"block": "BasicBlock", "pool": True, "norm": "in"})
_OF_TRAINING = ("tn", "ema_moment")
_SHOWN = 10
_ANOTHER_FILE = "download the file again; weights of another program cannot be imported"


@dataclass(frozen=True)
class Released:
    """Checked weights of a file, by the names they have in iris; they are mapped from the disk.

    notes: what was left out or assumed, in words.
    """

    config: NetworkConfig
    tensors: dict[str, Tensor]
    source: ModelSource
    notes: tuple[str, ...]


def read_released(path: Path, copy: Copy | None = None) -> Released:
    """Read a file of released weights; nothing is repaired.

    copy: None for the averaged weights where the file has them, else the others.
    raises UsageError where the file or the copy does not exist, DataRefused where the file is
    damaged or foreign, or its tensors are not exactly those of the network it states: all names,
    shapes, float32, finite. Only the memory bank may be absent or of any size.
    """
    content = read_torch_file(path)
    if not isinstance(content, Mapping):
        refuse(path, f"an object of type {type(content).__name__}")
    chosen, state = _choose(path, content, copy)
    named = _without_prefixes(path, state)
    config, notes = _config(path, content.get("config"))
    bank = {f"{_BANK}{stage}" for stage in range(config.stages)} & set(named)
    bank_size = _rows(named.get(f"{_BANK}0"))
    tensors = {name: tensor for name, tensor in named.items() if name not in bank}
    _check(path, tensors, config)
    if bank:
        notes.append("its memory of classes is left out: it was never trained")
    source = ModelSource(
        file=path.name, sha256=file_checksum(path), weights=chosen.value, bank_size=bank_size
    )
    return Released(config, tensors, source, tuple(notes))


def model_of(released: Released, *, name: str, licence: str | None = None) -> Model:
    """The model of released weights: profile `mass-1`, 1.5 mm, windows of 128 voxels."""
    multiple = released.config.size_multiple
    with torch.device("meta"):
        network = IrisNetwork(released.config)
    network.load_state_dict(released.tensors, assign=True)
    card = ModelCard.of(
        network,
        name=name,
        s0=S0_MM,
        patch=PATCH // multiple * multiple,
        profile="mass-1",
        licence=licence or LICENCE,
        notes="; ".join(("imported weights", *released.notes)),
        source=released.source,
    )
    return Model(network.eval(), card)


def write_released(path: Path, model: Model) -> Path:
    """Write the weights of a model as the published code reads them: `model` and `config.model`.

    raises UsageError where the published code has no such network.
    """
    config = model.network.config
    known = NetworkConfig.released(None).model_copy(
        update={name: getattr(config, name) for name in _FIELDS.values()}
    )
    other = [n for n in NetworkConfig.model_fields if getattr(known, n) != getattr(config, n)]
    if set(other) - {"bank_size"}:
        raise UsageError(
            f"the published code has no network like that of model {model.card.name!r}",
            found=", ".join(f"{name} {getattr(config, name)}" for name in other),
            fix="export it as a .safetensors file or a folder",
        )
    values: dict[str, Any] = {
        theirs: _plain(getattr(config, ours)) for theirs, ours in _FIELDS.items()
    }
    values |= dict(_FIXED)
    if model.card.source is not None and model.card.source.bank_size is not None:
        values["tn"] = model.card.source.bank_size
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.network.state_dict().items()}
    content = {"model": tensors, "config": {"model": values}}

    def verify(temporary: Path) -> None:
        again = read_released(temporary).tensors
        if not all(torch.equal(again[k], v) for k, v in tensors.items() if k in again):
            raise DataRefused("the weights do not read back as they were", file=path)

    return publish(path, lambda temporary: torch.save(content, temporary), verify=verify)


def _choose(
    path: Path, content: Mapping[Any, Any], copy: Copy | None
) -> tuple[Copy, Mapping[Any, Any]]:
    """The copy asked for, or the first one in the order of the published reader."""
    for kind in Copy if copy is None else (copy,):
        for key in _COPIES[kind]:
            if key in content:
                state = content[key]
                if not isinstance(state, Mapping):
                    refuse(path, f"{key!r} of type {type(state).__name__}")
                return kind, state
    if copy is not Copy.EMA and any(isinstance(value, Tensor) for value in content.values()):
        return Copy.MODEL, content
    if copy is None:
        keys = _first([_shown(key) for key in content])
        refuse(path, f"a dict with {keys or 'nothing'}, and no weights")
    raise UsageError(
        f"the file has no {copy.value} weights",
        file=path,
        expected=" or ".join(_COPIES[copy]),
        fix="leave out --weights",
    )


def _without_prefixes(path: Path, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            refuse(path, f"{_shown(key)} of type {type(value).__name__} among the weights")
        name = key
        while name.startswith(_PREFIXES):
            name = name.partition(".")[2]
        if name in named:
            refuse(path, f"two tensors of the name {name!r:.80}")
        named[name] = value
    return named


def _config(path: Path, stated: object) -> tuple[NetworkConfig, list[str]]:
    """The network that `config.model` asks for; what it does not say is as in the release."""
    values = stated.get("model") if isinstance(stated, Mapping) else None
    if not isinstance(values, Mapping):
        return NetworkConfig.released(None), ["it states no network: taken as the released one"]
    for key, only in _FIXED.items():
        if key in values and values[key] != only:
            raise DataRefused(
                "the file asks for a network that iris does not compute",
                file=path,
                found=f"{key} {_shown(values[key])}",
                expected=f"{key} {only!r}",
                fix=_ANOTHER_FILE,
            )
    whole = NetworkConfig.released(None).model_dump(mode="json")
    for key, field in _FIELDS.items():
        if key in values:
            whole[field] = _sizes(path, key, values[key])
    known = (*_FIELDS, *_FIXED, *_OF_TRAINING)
    other = [_shown(key) for key in values if key not in known]
    notes = [f"not read of its config.model: {_first(other)}"] if other else []
    try:
        config = parse_record(whole, NetworkConfig, file=path)
    except DataRefused as error:
        raise DataRefused(
            "the file states a network that cannot be built",
            file=path,
            found=error.found or error.problem,
            expected="sizes of a network under config.model",
            fix=_ANOTHER_FILE,
        ) from None
    if config.size_multiple > PATCH:
        refuse(path, f"a network that needs windows of {config.size_multiple} voxels")
    return config, notes


def _sizes(path: Path, key: str, value: object) -> int | list[int]:
    """A number, or one for each level; three equal ones for the three axes count as one."""
    if _is_int(value):
        return value  # type: ignore[return-value]
    if isinstance(value, list | tuple) and len(value) <= 16:
        levels = [v[0] if _is_cube(v) else v for v in value]
        if all(_is_int(level) for level in levels):
            return levels
    raise DataRefused(
        "the file states its network in a way that iris does not know",
        file=path,
        found=f"{key} {_shown(value)}",
        expected="a whole number, or one for each level",
        fix=_ANOTHER_FILE,
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_cube(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    return all(_is_int(edge) for edge in value) and len(set(value)) == 1


def _check(path: Path, tensors: Mapping[str, Tensor], config: NetworkConfig) -> None:
    """Names and shapes first: they bound what looking at the values can cost."""
    expected = _expected(config)
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)}, expected {shape}"
            for name, shape in expected.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ],
    }
    if not any(problems.values()):
        problems = {"not dense float32": [n for n, t in tensors.items() if not _is_plain(t)]}
    if not any(problems.values()):
        claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if claimed > path.stat().st_size:
            refuse(path, f"tensors of {claimed} bytes, more than the file has")
        problems = {"not finite": [n for n, t in tensors.items() if not _is_finite(t)]}
    if any(problems.values()):
        raise DataRefused(
            "these weights are not those of the network the file states",
            file=path,
            found="; ".join(f"{len(n)} {what}: {_first(n)}" for what, n in problems.items() if n),
            expected=f"exactly the {len(expected)} tensors of the network, finite float32",
            fix=_ANOTHER_FILE,
        )


def _expected(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = IrisNetwork(config)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.device.type == "cpu"


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _rows(bank: Tensor | None) -> int | None:
    return bank.shape[0] if bank is not None and bank.dim() else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: object) -> str:
    """A value of the file in words, however large it is."""
    plain = isinstance(value, str | int | float | bool | None)
    return repr(value)[:80] if plain else f"of type {type(value).__name__}"


def _first(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
