"""Loading and saving models. Files are checked before anything is built by their numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from iris_cli.errors import DataRefused
from iris_cli.files.publish import publish, publish_json
from iris_cli.files.schema import read_json
from iris_cli.model.card import CARD_FILE, ModelCard, parse_card
from iris_cli.model.fingerprint import fingerprint
from iris_cli.model.registry import WEIGHTS_FILE, find_model
from iris_cli.network.iris_network import IrisNetwork

__all__ = ["Model", "ModelCard", "find_model", "load_model", "save_model"]

CARD_KEY = "iris"
_STORED_AS = {"F16", "F32"}
_MAX_NAMED = 5


@dataclass(frozen=True)
class Model:
    """A network ready to compute, and its card."""

    network: IrisNetwork
    card: ModelCard


def load_model(name_or_path: str | Path | None = None, device: str | torch.device = "cpu") -> Model:
    """Load a model; weights are computed with in fp32 however they are stored.

    name_or_path: as `registry.find_model`: None for the default, the name of a shipped or
    registered model, a model folder, or a single `.safetensors` file.
    raises UsageError where there is no such model, EnvironmentProblem where the default is
    missing, DataRefused where the files are not what their card says.
    """
    path = find_model(name_or_path)
    card = _card_of(path)
    if path.is_dir():
        path = path / WEIGHTS_FILE
        if not path.is_file():
            raise DataRefused("a model folder without weights", file=path, fix="copy it again")
    return Model(_build(card, _read_tensors(path, card)).to(device).eval(), card)


def read_card(name_or_path: str | Path | None = None) -> ModelCard:
    """The card of a model without its weights; `name_or_path` and errors as for `load_model`."""
    return _card_of(find_model(name_or_path))


def save_model(path: Path, network: IrisNetwork, card: ModelCard, *, half: bool = True) -> Path:
    """Write a model folder, or a single file where `path` ends in `.safetensors`.

    half: store fp16 (fp32 otherwise). The fingerprint is that of the stored weights, so the
    written card may differ from the one given in this field.
    raises DataRefused where a weight is not finite, or not in fp16.
    """
    stored = torch.float16 if half else torch.float32
    tensors = {
        k: v.detach().to("cpu", stored).contiguous() for k, v in network.state_dict().items()
    }
    _refuse_non_finite(tensors, path)
    card = card.model_copy(
        update={"network": network.config, "fingerprint": _fingerprint(tensors, card)}
    )
    single = path.suffix == ".safetensors"
    _publish_weights(path if single else path / WEIGHTS_FILE, tensors, card)
    if not single:
        # Last: the folder is a model from here on.
        publish_json(path / CARD_FILE, card.model_dump(mode="json"))
    return path


def copy_model(source: str | Path, target: Path, *, name: str | None = None) -> Model:
    """Copy a model as it is stored, under another name where one is given; its bank stays behind.

    source: as `load_model`. target: as `save_model`. returns: the model that was read and checked.
    The fingerprint stays: tasks of the one are tasks of the other.
    """
    model = load_model(source)
    card = model.card if name is None else model.card.model_copy(update={"name": name})
    path = find_model(source)
    with open_safetensors(path / WEIGHTS_FILE if path.is_dir() else path) as file:
        half = all(file.get_slice(tensor).get_dtype() == "F16" for tensor in file.keys())  # noqa: SIM118
    save_model(target, model.network, card, half=half)
    return model


def _build(card: ModelCard, tensors: Mapping[str, Tensor]) -> IrisNetwork:
    with torch.device("meta"):
        network = IrisNetwork(card.network)
    network.load_state_dict({k: v.to(torch.float32) for k, v in tensors.items()}, assign=True)
    return network


def _card_of(path: Path) -> ModelCard:
    if path.is_dir():
        return parse_card(read_json(path / CARD_FILE), file=path / CARD_FILE)
    return _embedded_card(path)


def _embedded_card(path: Path) -> ModelCard:
    with open_safetensors(path) as file:
        text = (file.metadata() or {}).get(CARD_KEY)
    try:
        value = None if text is None else json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        value = None
    if value is None:
        raise DataRefused(
            "this .safetensors file carries no card of an iris model",
            file=path,
            expected=f"JSON under the metadata key {CARD_KEY!r}",
            fix="use a file made by `iris model export`, or import released weights first",
        )
    return parse_card(value, file=path)


def _read_tensors(path: Path, card: ModelCard) -> dict[str, Tensor]:
    """The tensors the card asks for, as stored; anything else is refused."""
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in IrisNetwork(card.network).state_dict().items()}
    with open_safetensors(path) as file:
        _refuse_other_tensors(path, file, expected)
        # Copies: the file is mapped into memory and may be replaced while the model is in use.
        tensors = {name: file.get_tensor(name).clone() for name in expected}
    _refuse_non_finite(tensors, path)
    found = _fingerprint(tensors, card)
    if found != card.fingerprint:
        raise DataRefused(
            "weights and card of this model do not belong together",
            file=path,
            found=f"fingerprint {found}",
            expected=f"fingerprint {card.fingerprint}",
            fix="copy both files again, from one source",
        )
    return tensors


def _refuse_other_tensors(path: Path, file: Any, expected: Mapping[str, tuple[int, ...]]) -> None:
    names = set(file.keys())
    slices = {name: file.get_slice(name) for name in names & set(expected)}
    problems = (
        ("missing tensors", sorted(set(expected) - names)),
        ("foreign tensors", sorted(names - set(expected))),
        (
            "tensors of the wrong shape",
            [
                f"{name} {tuple(part.get_shape())}, expected {expected[name]}"
                for name, part in sorted(slices.items())
                if tuple(part.get_shape()) != expected[name]
            ],
        ),
        (
            "tensors of the wrong type",
            [
                f"{name} {part.get_dtype()}"
                for name, part in sorted(slices.items())
                if part.get_dtype() not in _STORED_AS
            ],
        ),
    )
    for what, which in problems:
        if which:
            raise DataRefused(
                f"the weights are not those of the network on the card: {what}",
                file=path,
                found=_shortened(which),
                expected=f"{len(expected)} tensors, fp16 or fp32",
                fix="use weights and card of one model",
            )


def _refuse_non_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise DataRefused(
            "weights that are not finite numbers",
            file=path,
            found=_shortened(bad),
            expected="finite weights, below 65504 when stored as fp16",
            fix="save as fp32, or go back to an earlier checkpoint",
        )


def _fingerprint(tensors: Mapping[str, Tensor], card: ModelCard) -> str:
    return fingerprint(tensors, card.network, profile=card.profile, s0=card.s0, patch=card.patch)


def _publish_weights(path: Path, tensors: dict[str, Tensor], card: ModelCard) -> None:
    metadata = {CARD_KEY: json.dumps(card.model_dump(mode="json"), sort_keys=True)}

    def verify(temporary: Path) -> None:
        _read_tensors(temporary, card)

    def write(temporary: Path) -> None:
        save_file(tensors, temporary, metadata)
        temporary.chmod(0o644)  # the library makes files that nobody else may read

    publish(path, write, verify=verify)


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """An open `.safetensors` file; raises DataRefused where it is none."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise DataRefused(
            "not a valid .safetensors file",
            file=path,
            found=str(error),
            fix="copy or download the file again",
        ) from None


def _shortened(names: list[str]) -> str:
    rest = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
