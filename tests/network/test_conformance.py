"""The network computes what the published one computes, array by array."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.network.task_encoder import MaskPairs, StageEncoder, pool_foreground
from tests.network.vectors import KEYS, Vectors, full_width, stored


@pytest.fixture(params=["tiny", "small"], scope="module")
def vectors(request: pytest.FixtureRequest) -> Vectors:
    return stored(request.param)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def _features(vectors: Vectors, which: str) -> tuple[Tensor, ...]:
    return vectors.network.encode_image(vectors.io[f"{which}_image"])


@pytest.mark.parametrize("which", ["ref", "query"])
def test_encoder_features(vectors: Vectors, which: str) -> None:
    features = _features(vectors, which)
    stored_levels = [i for i in range(5) if f"{which}_feat{i}" in vectors.io]
    assert stored_levels
    for i in stored_levels:
        vectors.check(f"{which}_feat{i}", features[i])


def test_foreground_pooling(vectors: Vectors) -> None:
    pooled = pool_foreground(
        _features(vectors, "ref")[0], _pairs(vectors), vectors.network.config.foreground_token
    )
    vectors.check("stage0_foreground_pooled", pooled[None])


def test_shuffled_merged_and_context_map(vectors: Vectors) -> None:
    features = _features(vectors, "ref")[0]
    stage = vectors.network.task_embedding[0]
    assert isinstance(stage, StageEncoder)
    full = stage.full_resolution_map(features)
    vectors.check("stage0_shuffled", full)
    pairs = _pairs(vectors)
    of_masks = vectors.network.task_embedding.merge_masks(pairs)
    assert of_masks is not None
    if "stage0_merged" in vectors.io:
        position = stage.pos_embed(full.shape[2:])
        vectors.check("stage0_merged", stage.merge_image(full) - position + of_masks[:, :1])
    vectors.check("stage0_context", stage.context_map(features, pairs.episode, of_masks[:, :1]))


def test_tokens(vectors: Vectors) -> None:
    features = _features(vectors, "ref")
    masks = vectors.io["ref_mask"]
    cases = {
        "tokens_stage": masks,
        "tokens_allones_stage": torch.ones_like(masks[:, :1]),
        "tokens_empty_stage": torch.zeros_like(masks[:, :1]),
    }
    for name, some in cases.items():
        for given in (some, some.bool()):
            for i, tokens in enumerate(vectors.network.encode_task(features, given)):
                vectors.check(f"{name}{i}", tokens)


def test_posteriors_class_weights_and_logits(vectors: Vectors) -> None:
    tokens = vectors.network.encode_task(_features(vectors, "ref"), vectors.io["ref_mask"])
    query = _features(vectors, "query")
    _, posteriors = vectors.network.decoder(query, tokens, None)
    for i, posterior in enumerate(posteriors):
        vectors.check(f"posterior_stage{i}", posterior)
    vectors.check("class_weight", vectors.network.out.class_weights(posteriors))
    vectors.check("logits", vectors.network.decode(query, tokens))


def test_logits_of_classes_passed_alone(vectors: Vectors) -> None:
    tokens = vectors.network.encode_task(_features(vectors, "ref"), vectors.io["ref_mask"])
    query = _features(vectors, "query")
    classes = range(tokens[0].shape[1])
    alone = [vectors.network.decode(query, [t[:, k : k + 1] for t in tokens]) for k in classes]
    vectors.check("logits_single_class", torch.cat(alone, dim=1))


def test_logits_from_the_memory_bank(vectors: Vectors) -> None:
    tokens = vectors.network.tokens_from_bank(vectors.io["bank_index"])
    vectors.check("logits_bank", vectors.network.decode(_features(vectors, "query"), tokens))


def test_released_state_dict_has_exactly_the_published_tensors() -> None:
    with torch.device("meta"):
        network = IrisNetwork(NetworkConfig.released())
    found = [(k, list(v.shape), str(v.dtype)) for k, v in network.state_dict().items()]
    expected = [(t["name"], t["shape"], f"torch.{t['dtype']}") for t in KEYS]
    assert sorted(found) == sorted(expected)
    buffers = {name for name, _ in network.named_buffers()}
    assert buffers == {t["name"] for t in KEYS if t["kind"] == "buffer"}


def test_without_bank_the_other_tensors_stay() -> None:
    with torch.device("meta"):
        network = IrisNetwork(NetworkConfig.released(bank_size=None))
    parameters = {t["name"] for t in KEYS if t["kind"] == "parameter"}
    assert set(network.state_dict()) == parameters


def test_released_widths() -> None:
    vectors, probe, weights = full_width()
    found = [
        (float(w.flatten()[0]), float(w.flatten()[-1]), float(w.double().sum()))
        for w in weights.values()
    ]
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), torch.from_numpy(probe))
    reference, query = _features(vectors, "ref"), _features(vectors, "query")
    vectors.check("ref_feat0", reference[0])
    vectors.check("query_feat0", query[0])
    tokens = vectors.network.encode_task(reference, vectors.io["ref_mask"])
    _, posteriors = vectors.network.decoder(query, tokens, None)
    for i, (token, posterior) in enumerate(zip(tokens, posteriors, strict=True)):
        vectors.check(f"tokens_stage{i}", token)
        vectors.check(f"posterior_stage{i}", posterior)
    vectors.check("class_weight", vectors.network.out.class_weights(posteriors))
    vectors.check("logits", vectors.network.decode(query, tokens))


def _pairs(vectors: Vectors) -> MaskPairs:
    masks = vectors.io["ref_mask"]
    return MaskPairs.select(masks, torch.ones(masks.shape[:2], dtype=torch.bool))
