"""Released weights: the right copy, exactly the right tensors, and back again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iris_cli.errors import DataRefused, UsageError
from iris_cli.model.model import load_model, save_model
from iris_cli.model.released import Copy, model_of, read_released, write_released
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from tests.model.released_files import SMALL, config_of, weights_of, write
from tests.network.vectors import KEYS

EMA, LAST = weights_of(seed=1), weights_of(seed=2)
NAME = "out.norm.weight"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


def _full_width() -> dict[str, Tensor]:
    """Every released name and shape, of one number each."""
    return {t["name"]: torch.zeros(1).expand(t["shape"]) for t in KEYS}


def _found(path: Path, content: object) -> str:
    write(path, content)
    with pytest.raises(DataRefused) as caught:
        read_released(path)
    assert caught.value.file == str(path)
    return str(caught.value.found)


def _of(tensors: dict[str, Tensor], **changes: Any) -> dict[str, Any]:
    return {"model": {**tensors, **changes}, "config": config_of()}


def test_the_averaged_copy_is_taken_unless_the_other_is_asked_for(path: Path) -> None:
    write(path, {"model": LAST, "ema_model": EMA, "config": config_of(), "epoch": 3})
    averaged, last = read_released(path), read_released(path, Copy.MODEL)
    assert torch.equal(averaged.tensors[NAME], EMA[NAME])
    some = "encoder.inc.conv1.weight"
    assert torch.equal(averaged.tensors[some], EMA[some])
    assert torch.equal(last.tensors[some], LAST[some])
    assert (averaged.source.weights, last.source.weights) == ("ema", "model")
    assert averaged.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("key", ["model", "model_state_dict", "ema_state_dict", None])
def test_every_place_the_published_reader_looks_at_is_read(path: Path, key: str | None) -> None:
    prefixed: dict[str, Any] = {f"module._orig_mod.{k}": v for k, v in EMA.items()}
    if key is None:
        with pytest.raises(DataRefused, match="not those of the network"):
            read_released(write(path, prefixed))  # the sizes of the release: none is stated
        return
    read = read_released(write(path, {key: prefixed, "config": config_of()}))
    assert set(read.tensors) == {name for name in EMA if not name.startswith("task_prior_")}
    with pytest.raises(UsageError, match="has no"):
        read_released(path, Copy.MODEL if key.startswith("ema") else Copy.EMA)


def test_the_bank_is_left_out_whatever_its_size_and_the_card_says_so(path: Path) -> None:
    read = read_released(write(path, _of(EMA, task_prior_0=torch.full((9, 2), torch.nan))))
    assert read.source.bank_size == 9
    assert read.config.bank_size is None
    assert any("memory of classes is left out" in note for note in read.notes)
    without = {name: tensor for name, tensor in EMA.items() if name != "task_prior_0"}
    assert read_released(write(path, _of(without))).source.bank_size is None


def test_names_and_shapes_are_those_of_the_released_table(path: Path) -> None:
    """All are there, so the next check speaks: all but three single numbers are not dense."""
    assert "566 not dense float32" in _found(path, _full_width())
    some = _full_width()
    for name in list(some)[10:23]:
        del some[name]
    some["extra.weight"] = torch.zeros(1)
    some[NAME] = torch.zeros(7)
    found = _found(path, {"model": some})
    assert "13 missing" in found
    assert "and 3 more" in found
    assert "1 unexpected: extra.weight" in found
    assert f"1 of another shape: {NAME} (7,), expected (896,)" in found


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.full((16,), torch.nan), "not finite"),
        (torch.ones(16, dtype=torch.float64), "not dense float32"),
        (torch.ones(16, dtype=torch.float16), "not dense float32"),
        (torch.ones(32)[::2], "not dense float32"),
        (torch.ones(1).expand(16), "not dense float32"),
        (torch.ones(4, 4), "of another shape"),
    ],
)
def test_a_tensor_that_is_not_as_it_should_be_is_named(
    path: Path, tensor: Tensor, words: str
) -> None:
    found = _found(path, _of(EMA, **{NAME: tensor}))
    assert f"1 {words}: {NAME}" in found


def test_tensors_that_share_their_bytes_cannot_claim_more_than_the_file(path: Path) -> None:
    big = torch.zeros(2048, 2048)
    config = NetworkConfig.released(None)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in IrisNetwork(config).state_dict().items()}
    some = {k: big.flatten()[: shape.numel()].reshape(shape) for k, shape in shapes.items()
            if shape.numel() <= big.numel()}  # fmt: skip
    one = torch.zeros(max(s.numel() for s in shapes.values()))
    some |= {k: one[: s.numel()].reshape(s) for k, s in shapes.items() if k not in some}
    assert "more than the file has" in _found(path, {"model": some})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("norm", "bn", "norm 'bn'"),
        ("pool", False, "pool False"),
        ("channels", "wide", "channels 'wide'"),
        ("scale", [[2, 2, 1]] * 4, "scale of type list"),
        ("channels", [4, 8, 8, 16], "channels"),
        ("channels", [10**9] * 5, "channels"),
        ("scale", [16, 16, 16, 16], "windows of 65536"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(
    path: Path, key: str, value: object, words: str
) -> None:
    config = config_of()
    config["model"][key] = value
    assert words in _found(path, {"model": EMA, "config": config})


def test_sizes_for_each_axis_and_unknown_settings_are_taken_as_they_mean(path: Path) -> None:
    config = config_of()
    config["model"] |= {"scale": [[2, 2, 2]] * 4, "kernel_size": [[3, 3, 3]] * 5, "arch": "x"}
    read = read_released(write(path, {"model": EMA, "config": config}))
    assert read.config == SMALL.model_copy(update={"bank_size": None})
    assert any("'arch'" in note for note in read.notes)


@pytest.mark.parametrize(
    "content",
    [[1, 2], {}, {"model": 3}, {"model": {"a": 1}}, {"model": {1: torch.zeros(1)}}, {"epoch": 1},
     {"model": {"a": torch.zeros(1), "module.a": torch.zeros(1)}}],
)  # fmt: skip
def test_what_holds_no_weights_is_refused(path: Path, content: object) -> None:
    assert _found(path, content)


def test_an_exported_model_has_the_names_and_numbers_of_the_source(
    path: Path, tmp_path: Path
) -> None:
    write(path, {"ema_model": EMA, "config": config_of()})
    model = model_of(read_released(path), name="small", licence="MIT")
    folder = save_model(tmp_path / "small", model.network, model.card, half=False)
    loaded = load_model(folder)
    assert loaded.card == model.card
    assert (loaded.card.profile, loaded.card.s0, loaded.card.patch) == ("mass-1", 1.5, 128)
    assert loaded.card.source == read_released(path).source
    back = torch.load(write_released(tmp_path / "back.pth", loaded), weights_only=True)
    assert list(back["model"]) == [name for name in EMA if not name.startswith("task_prior_")]
    assert all(torch.equal(tensor, EMA[name]) for name, tensor in back["model"].items())
    noted = {k: v for k, v in config_of()["model"].items() if k != "ema_moment"}
    assert back["config"]["model"] == noted
    assert read_released(tmp_path / "back.pth").config == loaded.card.network


def test_a_network_of_our_own_is_not_written_for_the_published_code(tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    with pytest.raises(UsageError, match="no network like that") as caught:
        write_released(path, load_model())
    assert "stem" in str(caught.value.found)
    assert not path.exists()
