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
from iris_cli.network.precision import has_bfloat16
from iris_cli.workflows import InContextModel, load_model
from tests.network.vectors import Vectors, full_width, stored


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return stored("small")


@pytest.fixture(scope="module")
def folder(vectors: Vectors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(vectors, tmp_path_factory.mktemp("m"))


@pytest.fixture(scope="module")
def model(folder: Path) -> InContextModel:
    return load_model(folder, device="cpu")


def saved(vectors: Vectors, folder: Path) -> Path:
    """The network of these vectors as a model folder."""
    card = ModelCard.of(vectors.network, name="vectors", s0=1.5, patch=128, profile="mass-1")
    return save_model(folder / "vectors", vectors.network, card, half=False)


@pytest.mark.parametrize(
    "name", ["tiny", "small", pytest.param("full_width", marks=pytest.mark.slow)]
)
def test_tokens_and_logits_are_the_published_ones(name: str, tmp_path: Path) -> None:
    """From the files of weights to arrays, through nothing but what users call."""
    vectors = full_width()[0] if name == "full_width" else stored(name)
    model = load_model(saved(vectors, tmp_path), device="cpu", precision="fp32")
    io = {name: array.numpy() for name, array in vectors.io.items()}
    image, masks, query = io["ref_image"][0, 0], io["ref_mask"][0], io["query_image"][0, 0]
    everything, nothing = np.ones_like(masks[:1]), np.zeros_like(masks[:1])
    for kind, given in (("", masks), ("allones_", everything), ("empty_", nothing)):
        if f"tokens_{kind}stage0" in io:
            for stage, found in enumerate(model.encode(image, given)):
                vectors.check(f"tokens_{kind}stage{stage}", torch.from_numpy(found)[None])
    tokens = model.encode(image, masks)
    assert all(isinstance(stage, np.ndarray) for stage in tokens)
    logits = model.decode(query, tokens)
    assert isinstance(logits, np.ndarray)
    vectors.check("logits", torch.from_numpy(logits)[None])
    if "logits_single_class" in io:
        alone = [model.decode(query, [t[k : k + 1] for t in tokens]) for k in range(len(masks))]
        vectors.check("logits_single_class", torch.from_numpy(np.concatenate(alone))[None])


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
    # Not through `load_model`, which refuses it where the device would only emulate it.
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


def test_precisions_have_the_words_of_the_command_line(folder: Path) -> None:
    assert load_model(folder, device="cpu").precision is None
    assert load_model(folder, device="cpu", precision="fp32").precision is None
    half = torch.bfloat16 if has_bfloat16(torch.device("cpu")) else None
    assert load_model(folder, device="cpu", precision="auto").precision is half
    if half is not None:
        assert load_model(folder, device="cpu", precision="bf16").precision is half


def test_devices_and_precisions_are_checked() -> None:
    for word in ("float32", "bfloat16", "half"):
        with pytest.raises(UsageError, match="no such precision") as caught:
            load_model(device="cpu", precision=word)  # type: ignore[arg-type]
        assert caught.value.expected == "auto, fp32, bf16, fp16"
    with pytest.raises(UsageError, match="does not compute in fp16"):
        load_model(device="cpu", precision="fp16")
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
