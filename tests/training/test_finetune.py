"""Starting from other weights: what fits, what is frozen, and what is said where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iris_cli.errors import DataRefused, UsageError
from iris_cli.model.model import ModelCard, save_model
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.training.checkpoint import LATEST, read_checkpoint, write_checkpoint
from iris_cli.training.finetune import freeze, load_weights
from iris_cli.training.run import train
from tests.training.stores import balls, training

TINY = NetworkConfig.tiny()


@pytest.fixture
def network() -> IrisNetwork:
    torch.manual_seed(0)
    return IrisNetwork(TINY)


def test_patterns_freeze_by_name_and_parts_may_be_called_as_in_the_docs(
    network: IrisNetwork,
) -> None:
    names = freeze(network, ["encoder.*", "task_encoder.*"])
    assert names
    for name, parameter in network.named_parameters():
        frozen = name.startswith(("encoder.", "task_embedding."))
        assert (name in names) is frozen
        assert parameter.requires_grad is not frozen
    assert freeze(network, []) == ()
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_pattern_that_fits_nothing_is_refused_with_near_names(network: IrisNetwork) -> None:
    with pytest.raises(UsageError, match=r"encodr\.\*") as error:
        freeze(network, ["encodr.*"])
    assert "encoder" in str(error.value.fix)
    with pytest.raises(UsageError, match="nothing would be trained"):
        freeze(network, ["*"])


def test_frozen_parts_stay_as_they_were_while_the_rest_learns(tmp_path: Path) -> None:
    settings = training(steps=2, freeze=("encoder.*",))
    started = IrisNetwork(TINY)
    write_checkpoint(tmp_path, {"ema": started.state_dict()})
    run = tmp_path / "run"
    train(run, TINY, settings, [balls(tmp_path)], 32, init_from=tmp_path / LATEST)
    state = read_checkpoint(run / LATEST)
    for name, before in started.state_dict().items():
        for kind in ("model", "ema"):
            same = torch.equal(state[kind][name], before)
            assert same or not name.startswith("encoder."), name
    assert not torch.equal(
        state["model"]["out.classifier_pred.0.fc1.weight"],
        started.state_dict()["out.classifier_pred.0.fc1.weight"],
    )
    assert state["bank"]["names"]


def test_weights_come_from_checkpoints_folders_and_single_files(
    network: IrisNetwork, tmp_path: Path
) -> None:
    card = ModelCard.of(network, name="tiny", s0=6.0, patch=32)
    folder = save_model(tmp_path / "model", network, card, half=False)
    single = save_model(tmp_path / "m.safetensors", network, card, half=False)
    write_checkpoint(tmp_path, {"ema": network.state_dict()})
    for path in (folder, single, tmp_path / LATEST):
        other = IrisNetwork(TINY)
        load_weights(other, path)
        for name, tensor in network.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor)


def test_what_does_not_fit_is_named(network: IrisNetwork, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"ema": network.state_dict()})
    wider = IrisNetwork(TINY.model_copy(update={"channels": (4, 8, 8, 16, 32), "queries": 3}))
    before = {name: tensor.clone() for name, tensor in wider.state_dict().items()}
    with pytest.raises(DataRefused, match="do not fit") as error:
        load_weights(wider, tmp_path / LATEST)
    found = str(error.value.found)
    assert "of another shape" in found
    assert "instead of" in found
    assert "more" in found
    assert all(torch.equal(wider.state_dict()[name], value) for name, value in before.items())
    deeper = IrisNetwork(TINY.model_copy(update={"blocks": (2, 1, 1, 1)}))
    with pytest.raises(DataRefused, match="do not fit") as error:
        load_weights(deeper, tmp_path / LATEST)
    assert "missing: encoder.down1.conv.2" in str(error.value.found)
