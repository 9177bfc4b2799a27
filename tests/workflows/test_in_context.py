"""A model for arrays: the published numbers, one token set for any query, classes by place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from iris_cli.errors import DataRefused, EnvironmentProblem, UsageError
from iris_cli.model.model import ModelCard, save_model
from iris_cli.workflows import InContextModel, load_model
from tests.network.vectors import Vectors, stored


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return stored("small")


@pytest.fixture(scope="module")
def model(vectors: Vectors, tmp_path_factory: pytest.TempPathFactory) -> InContextModel:
    card = ModelCard.of(vectors.network, name="small", s0=1.5, patch=128, profile="mass-1")
    folder = tmp_path_factory.mktemp("m") / "small"
    return load_model(save_model(folder, vectors.network, card, half=False), device="cpu")


def test_tokens_and_logits_are_the_published_ones(model: InContextModel, vectors: Vectors) -> None:
    io = {name: array.numpy() for name, array in vectors.io.items()}
    tokens = model.encode(io["ref_image"][0, 0], io["ref_mask"][0])
    for stage, found in enumerate(tokens):
        assert isinstance(found, np.ndarray)
        vectors.check(f"tokens_stage{stage}", torch.from_numpy(found)[None])
    logits = model.decode(io["query_image"][0, 0], tokens)
    assert isinstance(logits, np.ndarray)
    vectors.check("logits", torch.from_numpy(logits)[None])


def test_torch_comes_back_as_torch_and_can_be_changed(
    model: InContextModel, vectors: Vectors
) -> None:
    image, masks = vectors.io["ref_image"][0, 0], vectors.io["ref_mask"][0].bool()
    tokens = model.encode(image, masks)
    logits = model.decode(vectors.io["query_image"][0, 0], tokens)
    vectors.check("logits", logits[None])
    logits += 1
    assert all(stage.dtype == torch.float32 and not stage.requires_grad for stage in tokens)


def test_classes_come_out_in_the_order_they_go_in(model: InContextModel, vectors: Vectors) -> None:
    image, query = vectors.io["ref_image"][0, 0], vectors.io["query_image"][0, 0]
    masks, order = vectors.io["ref_mask"][0].bool(), [2, 0, 1]
    straight = model.decode(query, model.encode(image, masks))
    permuted = model.decode(query, model.encode(image, masks[order]))
    torch.testing.assert_close(permuted, straight[order], atol=2e-5, rtol=0)
    assert not torch.allclose(straight[0], straight[1], atol=1e-3)


def test_bfloat16_is_close_and_comes_back_as_float32(
    model: InContextModel, vectors: Vectors
) -> None:
    rough = InContextModel(model.network, model.card, model.device, torch.bfloat16)
    image, masks = vectors.io["ref_image"][0, 0], vectors.io["ref_mask"][0].bool()
    tokens = rough.encode(image, masks)
    logits = rough.decode(vectors.io["query_image"][0, 0], tokens)
    assert logits.dtype == tokens[0].dtype == torch.float32
    # Logits of random weights are small differences of large numbers: the pattern must be theirs.
    both = torch.stack([logits.flatten(), vectors.io["logits"].flatten()])
    assert 0.95 < float(torch.corrcoef(both)[0, 1]) < 1
    assert not torch.equal(both[0], both[1])


def test_what_does_not_go_together_is_refused(model: InContextModel, vectors: Vectors) -> None:
    image, masks = vectors.io["ref_image"][0, 0], vectors.io["ref_mask"][0]
    tokens = model.encode(image, masks)
    with pytest.raises(UsageError, match="one grid"):
        model.encode(image[:16], masks)
    with pytest.raises(UsageError, match="images of this size"):
        model.encode(image[:, :, :15], masks[..., :15])
    with pytest.raises(UsageError, match="not masks"):
        model.encode(image, masks[0])
    with pytest.raises(UsageError, match="not one volume"):
        model.decode(image[None], tokens)
    with pytest.raises(UsageError, match="no tokens of this model"):
        model.decode(image, tokens[:2])
    with pytest.raises(UsageError, match="no tokens of this model"):
        model.decode(image, [])
    with pytest.raises(DataRefused, match="shares of a voxel"):
        model.encode(image, masks * 3)
    with pytest.raises(DataRefused, match="not finite") as caught:
        model.decode(torch.full_like(image, torch.nan), tokens)
    assert str(image.numel()) in str(caught.value.found)


def test_devices_and_precisions_are_checked() -> None:
    with pytest.raises(UsageError, match="precision"):
        load_model(device="cpu", precision="float16")  # type: ignore[arg-type]
    with pytest.raises(EnvironmentProblem, match="not there"):
        load_model(device="cuda:99")


def test_the_shipped_model_is_the_default() -> None:
    model = load_model(device="cpu")
    assert model.card.name.startswith("iris-")
    assert model.size_multiple == 32


def test_the_package_stays_light_until_a_model_is_asked_for() -> None:
    code = (
        "import sys, iris_cli.workflows as w\n"
        "assert 'torch' not in sys.modules\n"
        "assert not hasattr(w, 'absent')\n"
        "from iris_cli.workflows import load_model\n"
        "assert 'torch' in sys.modules and callable(load_model)\n"
    )
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert ran.returncode == 0, ran.stderr
