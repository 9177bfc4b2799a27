"""Saving and loading: the same logits come back, everything else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from iris_cli.errors import DataRefused, EnvironmentProblem, UsageError
from iris_cli.model import card as card_module
from iris_cli.model import fingerprint as fingerprint_module
from iris_cli.model import registry as registry_module
from iris_cli.model.card import ModelCard
from iris_cli.model.fingerprint import fingerprint
from iris_cli.model.model import copy_model, load_model, save_model
from iris_cli.model.registry import shipped_models
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork

CONFIG = NetworkConfig.tiny().model_copy(update={"stages": 2})


@pytest.fixture
def network() -> IrisNetwork:
    torch.manual_seed(0)
    return IrisNetwork(CONFIG)


@pytest.fixture
def card(network: IrisNetwork) -> ModelCard:
    return ModelCard.of(
        network, name="small one", version="3", s0=1.5, patch=32, licence="CC0",
        training_sets=("a", "b"), notes="for tests",
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, network: IrisNetwork, card: ModelCard) -> Path:
    return save_model(tmp_path / "saved", network, card)


def _logits(network: IrisNetwork) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 1, 16, 32, 32, generator=generator)
    with torch.no_grad():
        features = network.encode_image(image)
        return network.decode(features, network.encode_task(features, image > 1))


@pytest.mark.parametrize("ending", ["", ".safetensors"])
@pytest.mark.parametrize("half", [True, False])
def test_a_saved_model_computes_the_same(
    tmp_path: Path, network: IrisNetwork, card: ModelCard, ending: str, half: bool
) -> None:
    path = save_model(tmp_path / f"m{ending}", network, card, half=half)
    loaded = load_model(path)
    if half:
        network.half().float()
    assert torch.equal(_logits(loaded.network), _logits(network))
    assert {p.dtype for p in loaded.network.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in loaded.network.parameters())
    expected = card.model_copy(update={"fingerprint": loaded.card.fingerprint})
    assert loaded.card == expected
    assert (loaded.card.fingerprint == card.fingerprint) is not half


def test_saving_a_loaded_model_gives_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    loaded = load_model(folder)
    again = save_model(tmp_path / "again", loaded.network, loaded.card)
    for name in ("weights.safetensors", "model.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("ending", ["", ".safetensors"])
def test_a_copy_under_another_name_is_the_same_model(
    tmp_path: Path, network: IrisNetwork, card: ModelCard, half: bool, ending: str
) -> None:
    source = save_model(tmp_path / "source", network, card, half=half)
    copy = tmp_path / f"copy{ending}"
    original = copy_model(source, copy, name="other")
    found = load_model(copy)
    assert found.card == original.card.model_copy(update={"name": "other"})
    assert torch.equal(_logits(found.network), _logits(original.network))


def test_the_weights_file_of_a_folder_is_a_model_by_itself(folder: Path) -> None:
    assert load_model(folder / "weights.safetensors").card == load_model(str(folder)).card


def test_fp16_files_take_two_bytes_a_weight(folder: Path, network: IrisNetwork) -> None:
    values = sum(t.numel() for t in network.state_dict().values())
    size = (folder / "weights.safetensors").stat().st_size
    assert 2 * values < size < 2 * values + 50_000


def test_loaded_weights_do_not_change_with_the_file(
    tmp_path: Path, network: IrisNetwork, card: ModelCard
) -> None:
    path = save_model(tmp_path / "m.safetensors", network, card, half=False)
    loaded = load_model(path)
    before = _logits(loaded.network)
    data = bytearray(path.read_bytes())
    data[-1000:] = bytes(1000)
    path.write_bytes(data)
    assert torch.equal(_logits(loaded.network), before)


@pytest.mark.parametrize(
    ("field", "value"),
    [("s0", 2.0), ("patch", 48), ("profile", "mass-1")],
)
def test_fingerprint_covers_what_decides_the_output(
    network: IrisNetwork, card: ModelCard, field: str, value: object
) -> None:
    values = {"name": "x", "s0": card.s0, "patch": card.patch, "profile": card.profile}
    changed = ModelCard.of(network, **{**values, field: value})  # type: ignore[arg-type]
    assert changed.fingerprint != card.fingerprint


def test_fingerprint_leaves_out_what_does_not(network: IrisNetwork, card: ModelCard) -> None:
    other = ModelCard.of(network, name="other", s0=card.s0, patch=card.patch, licence="MIT")
    assert other.fingerprint == card.fingerprint


def test_fingerprint_covers_weights_and_network(network: IrisNetwork, card: ModelCard) -> None:
    values = {"profile": card.profile, "s0": card.s0, "patch": card.patch}
    other = CONFIG.model_copy(update={"scales": (2, 2, 1, 2)})
    assert fingerprint(network.state_dict(), CONFIG, **values) == card.fingerprint
    assert fingerprint(network.state_dict(), other, **values) != card.fingerprint
    with torch.no_grad():
        next(network.parameters()).flatten()[0] += 1e-3
    changed = ModelCard.of(network, name="x", s0=card.s0, patch=card.patch)
    assert changed.fingerprint != card.fingerprint


def test_every_flipped_bit_of_the_weights_is_refused(folder: Path) -> None:
    path = folder / "weights.safetensors"
    good = path.read_bytes()
    generator = torch.Generator().manual_seed(3)
    start = 8 + int.from_bytes(good[:8], "little")
    for position in torch.randint(start, len(good), (25,), generator=generator).tolist():
        path.write_bytes(good[:position] + bytes([good[position] ^ 16]) + good[position + 1 :])
        with pytest.raises(DataRefused):
            load_model(folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "weights.safetensors"
    good = path.read_bytes()
    for length in (0, 7, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(DataRefused, match="not a valid"):
            load_model(folder)


def _rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "weights.safetensors")
    change(tensors)
    save_file(tensors, folder / "weights.safetensors")


NAME = "out.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NAME), "missing tensors"),
        (lambda t: t.update({"foreign.one": torch.zeros(2)}), "foreign tensors"),
        (lambda t: t.update({NAME: torch.zeros(7)}), "wrong shape"),
        (lambda t: t.update({NAME: t[NAME].double()}), "wrong type"),
        (lambda t: t.update({NAME: t[NAME] * float("nan")}), "finite"),
        (lambda t: t.update({NAME: t[NAME] + 1}), "do not belong together"),
    ],
)
def test_other_tensors_are_refused_by_name(
    folder: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    _rewrite(folder, change)
    with pytest.raises(DataRefused, match=message) as refused:
        load_model(folder)
    assert refused.value.file == str(folder / "weights.safetensors")
    if "belong" not in message:
        assert (refused.value.found or "").startswith((NAME, "foreign.one"))


def _edit_card(folder: Path, **values: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "iris-model-2"}, "not a model this version"),
        ({"s0": 3.0}, "do not belong together"),
        ({"patch": 40}, "not a multiple of 16"),
        ({"licens": "MIT"}, "did you mean 'licence'"),
        ({"name": "../../etc"}, "name"),
    ],
)
def test_cards_that_cannot_be_right_are_refused(
    folder: Path, values: dict[str, object], message: str
) -> None:
    _edit_card(folder, **values)
    with pytest.raises(DataRefused, match=message):
        load_model(folder)


def test_a_safetensors_file_without_card_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(DataRefused, match="no card"):
        load_model(path)


def test_a_pickle_is_not_opened(tmp_path: Path, network: IrisNetwork) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    with pytest.raises(DataRefused, match="not a valid"):
        load_model(path)


def test_weights_that_fp16_cannot_hold_are_not_saved(
    tmp_path: Path, network: IrisNetwork, card: ModelCard
) -> None:
    with torch.no_grad():
        network.get_parameter(NAME)[0] = 1e6
    with pytest.raises(DataRefused, match="not finite"):
        save_model(tmp_path / "m", network, card)
    assert not (tmp_path / "m").exists()
    save_model(tmp_path / "m", network, card, half=False)
    assert load_model(tmp_path / "m").network.state_dict()[NAME][0] == 1e6


def test_an_unknown_name_is_a_usage_error(tmp_path: Path) -> None:
    for name in ("nothing-like-it", str(tmp_path), tmp_path / "absent.safetensors"):
        with pytest.raises(UsageError, match="there is no model"):
            load_model(name)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    with pytest.raises(DataRefused, match="without weights"):
        load_model(folder)


def test_the_default_is_the_model_named_in_the_weights_folder(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_shipped_folder", lambda: tmp_path)
    assert shipped_models() == ("saved",)
    (tmp_path / "default").write_text("saved\n")
    assert load_model().card == load_model("saved").card == load_model(folder).card
    (tmp_path / "default").write_text("another\n")
    with pytest.raises(EnvironmentProblem, match="missing from this installation"):
        load_model()
    with pytest.raises(UsageError, match="did you mean 'saved'"):
        load_model("savd")


def test_a_missing_default_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_shipped_folder", lambda: tmp_path)
    with pytest.raises(EnvironmentProblem) as problem:
        load_model()
    assert "install iris again" in (problem.value.fix or "")


@pytest.mark.parametrize("field", NetworkConfig.model_fields)
def test_a_card_must_state_every_field_of_its_network(folder: Path, field: str) -> None:
    network = json.loads((folder / "model.json").read_text())["network"]
    _edit_card(folder, network={key: value for key, value in network.items() if key != field})
    with pytest.raises(DataRefused, match=field) as refused:
        load_model(folder)
    assert refused.value.file == str(folder / "model.json")


def test_fingerprint_covers_values_that_are_the_default(
    network: IrisNetwork, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = CONFIG.model_dump(mode="json")
    assert CONFIG.foreground_norm == NetworkConfig.model_fields["foreground_norm"].default
    values = {"profile": card.profile, "s0": card.s0, "patch": card.patch}
    monkeypatch.setattr(NetworkConfig, "model_dump", lambda *_, **options: (
        {k: v for k, v in stated.items() if k != "foreground_norm"}
        if options.get("exclude_defaults") else stated
    ))  # fmt: skip
    whole = fingerprint(network.state_dict(), CONFIG, **values)
    stated = {**stated, "foreground_norm": False}
    assert fingerprint(network.state_dict(), CONFIG, **values) != whole


def test_an_added_field_has_its_old_value_in_earlier_cards(
    folder: Path, card: ModelCard, network: IrisNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if `stages` had been added after this model: its cards lack it and were hashed without.
    for module in (card_module, fingerprint_module):
        monkeypatch.setattr(module, "ADDED_FIELDS", {"stages": CONFIG.stages})
    saved = save_model(folder, network, card)
    stated = json.loads((folder / "model.json").read_text())["network"]
    _edit_card(folder, network={key: value for key, value in stated.items() if key != "stages"})
    assert CONFIG.stages != NetworkConfig().stages
    assert load_model(saved).card.network == CONFIG
    values = {"profile": card.profile, "s0": card.s0, "patch": card.patch}
    other = CONFIG.model_copy(update={"stages": 3})
    hashes = {fingerprint(network.state_dict(), config, **values) for config in (CONFIG, other)}
    assert len(hashes) == 2
