"""What holds for the whole network, whatever its options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from iris_cli.errors import UsageError
from iris_cli.network import task_encoder
from iris_cli.network.config import ForegroundToken, NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from tests.network.episodes import HALF, OPTIONS, TINY, build, images, masks, run

# The merging convolution's bias is one number for the whole map; the norm behind it removes it.
WITHOUT_EFFECT = ("merge.2.bias",)


def _loss(logits: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return (logits * torch.randn(logits.shape, generator=generator)).sum()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_computes_and_every_parameter_learns(name: str) -> None:
    config = OPTIONS[name]
    network = build(config)
    query, reference = images(config, 1), images(config, 1, seed=5)
    logits = run(network, query, reference, masks(reference, 2))
    assert logits.shape == (1, 2, *query.shape[2:])
    assert logits.dtype == torch.float32
    _loss(logits).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        if not key.endswith(WITHOUT_EFFECT):
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ["default", "half stem", "no foreground token"])
def test_permuting_classes_permutes_logits(name: str) -> None:
    config = OPTIONS[name]
    network, query, reference = build(config), images(config, 1), images(config, 1, seed=5)
    mask, order = masks(reference, 4), [2, 0, 3, 1]
    with torch.no_grad():
        straight = run(network, query, reference, mask)
        permuted = run(network, query, reference, mask[:, order])
    torch.testing.assert_close(permuted, straight[:, order], atol=1e-4, rtol=0)
    assert (straight[:, 0] - straight[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("config", [TINY, HALF], ids=["full", "half"])
def test_padded_batch_gives_what_each_episode_gives_alone(config: NetworkConfig) -> None:
    network, query, reference = build(config), images(config, 3), images(config, 3, seed=5)
    mask = masks(reference, 3)
    valid = torch.tensor([[True, False, False], [True, True, True], [False, True, True]])
    mask[~valid] = True
    with torch.no_grad():
        padded = run(network, query, reference, mask, valid)
        assert (padded[~valid] == 0).all()
        for item in range(3):
            one = slice(item, item + 1)
            alone = run(network, query[one], reference[one], mask[one, valid[item]])
            scale = max(1.0, float(alone.abs().max()))
            error = (padded[one, valid[item]] - alone).abs().max()
            # Rounding only: other batch sizes sum in another order. A leak of a padded class
            # is a thousand times larger.
            assert error <= 3e-5 * scale


def test_padded_classes_get_no_tokens_and_no_gradient_from_what_is_under_them() -> None:
    network, reference = build(TINY), images(TINY, 2)
    mask = masks(reference, 3).float().requires_grad_()
    valid = torch.tensor([[True, False, True], [False, True, False]])
    tokens = network.encode_task(network.encode_image(reference), mask, valid)
    for stage in tokens:
        assert (stage[~valid] == 0).all()
        assert (stage[valid].abs().amax(dim=(1, 2)) > 0).all()
    sum(t.square().sum() for t in tokens).backward()  # type: ignore[union-attr]
    assert mask.grad is not None
    assert (mask.grad[~valid] == 0).all()


def test_an_episode_without_any_class_stays_finite() -> None:
    network, query = build(TINY), images(TINY, 2)
    valid = torch.tensor([[True, True], [False, False]])
    logits = run(network, query, images(TINY, 2, seed=5), masks(query, 2), valid)
    _loss(logits).backward()
    assert (logits[1] == 0).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_a_batch_without_any_class_gives_zero_tokens() -> None:
    network, reference = build(TINY), images(TINY, 1)
    valid = torch.zeros(1, 2, dtype=torch.bool)
    tokens = network.encode_task(network.encode_image(reference), masks(reference, 2), valid)
    assert [tuple(t.shape) for t in tokens] == [(1, 2, 3, 16), (1, 2, 3, 16), (1, 2, 3, 8)]
    assert all((t == 0).all() for t in tokens)


def test_classes_of_the_task_encoder_do_not_see_each_other() -> None:
    network, reference = build(TINY), images(TINY, 1)
    mask = masks(reference, 3)
    with torch.no_grad():
        features = network.encode_image(reference)
        together = network.encode_task(features, mask)
        alone = [network.encode_task(features, mask[:, k : k + 1]) for k in range(3)]
    for stage, tokens in enumerate(together):
        expected = torch.cat([a[stage] for a in alone], dim=1)
        torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)


def test_encoding_in_groups_of_classes_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network, reference = build(TINY), images(TINY, 2)
    mask, valid = masks(reference, 5), torch.rand(2, 5, generator=torch.Generator()) > 0.3
    with torch.no_grad():
        features = network.encode_image(reference)
        together = network.encode_task(features, mask, valid)
        monkeypatch.setattr(task_encoder, "MAP_VALUES_AT_ONCE", 2 * features[2][0].numel())
        grouped = network.encode_task(features, mask, valid)
    for stage, tokens in enumerate(together):
        torch.testing.assert_close(grouped[stage], tokens, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [TINY, HALF], ids=["full", "half"])
def test_recomputing_changes_neither_logits_nor_gradients(config: NetworkConfig) -> None:
    network, query, reference = build(config), images(config, 1), images(config, 1, seed=5)
    results = []
    for recompute in (False, True):
        network.zero_grad()
        logits = run(network, query, reference, masks(reference, 2), recompute=recompute)
        _loss(logits).backward()
        gradients = {k: p.grad.clone() for k, p in network.named_parameters() if p.grad is not None}
        results.append((logits.detach(), gradients))
    (plain, expected), (again, found) = results
    torch.testing.assert_close(again, plain, atol=0, rtol=0)
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], atol=0, rtol=0)


def test_soft_masks_are_used_as_weights_and_binary_floats_as_booleans() -> None:
    network, reference = build(TINY), images(TINY, 1)
    mask = masks(reference, 2)
    with torch.no_grad():
        features = network.encode_image(reference)
        hard = network.encode_task(features, mask)
        as_floats = network.encode_task(features, mask.float())
        nearly_hard = network.encode_task(features, mask.float() * (1 - 1e-6))
        soft = network.encode_task(features, mask.float() * 0.5 + 0.25)
    for stage in range(3):
        torch.testing.assert_close(as_floats[stage], hard[stage], atol=0, rtol=0)
        # One soft voxel takes the general formula instead of the closed form for binary masks.
        torch.testing.assert_close(nearly_hard[stage], hard[stage], atol=2e-4, rtol=0)
        assert (soft[stage] - hard[stage]).abs().max() > 1e-3


@pytest.mark.parametrize("config", [TINY, HALF], ids=["full", "half"])
def test_bfloat16_on_the_cpu_stays_near_float32(config: NetworkConfig) -> None:
    network, query, reference = build(config), images(config, 2), images(config, 2, seed=5)
    mask = masks(reference, 2)
    with torch.no_grad():
        exact = run(network, query, reference, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = run(network, query, reference, mask)
    assert logits.dtype == torch.float32
    assert (logits - exact).square().mean() < 0.15**2 * exact.square().mean()
    _loss(logits).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_agrees_with_the_cpu(dtype: torch.dtype) -> None:
    config = HALF
    network, query, reference = build(config), images(config, 2), images(config, 2, seed=5)
    mask, valid = masks(reference, 2), torch.tensor([[True, True], [True, False]])
    with torch.no_grad():
        expected = run(network, query, reference, mask, valid)
    network.cuda()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        logits = run(network, query.cuda(), reference.cuda(), mask.cuda(), valid.cuda())
    assert logits.dtype == torch.float32
    limit = 1e-3 if dtype == torch.float32 else 0.1
    assert (logits.cpu() - expected).abs().max() < limit * expected.abs().max()
    logits.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_initial_values_depend_on_the_seed_only() -> None:
    first, again, other = (build(TINY, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_initial_values_are_those_of_the_specification() -> None:
    torch.manual_seed(0)
    network = IrisNetwork(TINY.model_copy(update={"position_volume": True, "bank_size": 50}))
    values = network.state_dict()
    heads = {k: v for k, v in values.items() if k.startswith("out.classifier_pred")}
    for key, value in heads.items():
        if key.endswith("bias"):
            assert (value == 0).all()
        else:
            limit = (6 / sum(value.shape)) ** 0.5
            assert 0.6 * limit < value.abs().max() <= limit
    position = values["task_embedding.0.pos_embed.embedding"]
    assert abs(float(position.mean())) < 0.01
    assert abs(float(position.std()) - 1) < 0.01
    assert values["task_embedding.0.task_query"].abs().max() <= (6 / (2 + 16)) ** 0.5
    attention = "task_embedding.0.attn_layers.0.query_attn_block_1.fn.mha"
    assert values[f"{attention}.in_proj_weight"].abs().max() <= (6 / (48 + 16)) ** 0.5
    assert (values[f"{attention}.in_proj_bias"] == 0).all()
    assert (values[f"{attention}.out_proj.bias"] == 0).all()


@pytest.mark.parametrize("size", [(32, 32, 40), (16, 16, 16), (0, 32, 32)])
def test_sizes_the_network_cannot_read_are_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="multiples of 16 voxels"):
        build(TINY).encode_image(torch.zeros(1, 1, *size))


def test_references_beyond_the_position_volume_are_refused() -> None:
    config = TINY.model_copy(update={"position_volume": True, "stages": 1})
    network = build(config)
    features = [torch.zeros(1, 16, 9, 1, 1)]
    with pytest.raises(UsageError, match="at most 128 voxels"):
        network.encode_task(features, torch.zeros(1, 1, 144, 16, 16))


def test_tokens_of_the_bank_are_its_rows() -> None:
    network = build(OPTIONS["bank"])
    ids = torch.tensor([[4, 0], [1, 1]])
    tokens = network.tokens_from_bank(ids)
    assert [tuple(t.shape) for t in tokens] == [(2, 2, 3, 16), (2, 2, 3, 16), (2, 2, 3, 8)]
    assert torch.equal(tokens[1][0, 1], network.get_buffer("task_prior_1")[0])
    with pytest.raises(UsageError, match="no memory"):
        build(TINY).tokens_from_bank(ids)


def test_token_zero_is_the_foreground_without_context_tokens() -> None:
    network = build(OPTIONS["no context tokens"])
    assert network.config.foreground_token is ForegroundToken.FULL
    reference = images(TINY, 1)
    tokens = network.encode_task(network.encode_image(reference), masks(reference, 2))
    assert [t.shape[2] for t in tokens] == [1, 1, 1]
