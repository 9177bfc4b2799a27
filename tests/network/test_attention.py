"""Attention: torch's own module, and the form whose map is never projected."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iris_cli.network.attention import CrossAttention, MultiHeadAttention
from iris_cli.network.kernels.absorbed_attention import absorbed_attention

CHANNELS, HEADS = 64, 2


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _shaken(module: nn.Module) -> None:
    """Biases and norm weights start at 0 and 1, where a forgotten one would not be seen."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("itself", [True, False], ids=["self", "cross"])
def test_attention_is_that_of_torch(itself: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(CHANNELS, HEADS), nn.MultiheadAttention(CHANNELS, HEADS)
    _shaken(ours)
    theirs.load_state_dict(ours.state_dict())
    queries = _random(5, 2, CHANNELS)
    keys = queries if itself else _random(9, 2, CHANNELS, seed=1)
    valid = torch.rand(2, len(keys), generator=torch.Generator().manual_seed(2)) > 0.3
    for mask in (None, valid):
        expected, _ = theirs(queries, keys, keys, key_padding_mask=None if mask is None else ~mask)
        x = queries.transpose(0, 1)
        found = ours(x, x if itself else keys.transpose(0, 1), mask)
        torch.testing.assert_close(found.transpose(0, 1), expected, atol=2e-5, rtol=1e-4)


@pytest.fixture
def block() -> CrossAttention:
    torch.manual_seed(0)
    block = CrossAttention(CHANNELS, HEADS)
    _shaken(block)
    return block.requires_grad_(False)


def test_absorbed_projections_change_nothing(block: CrossAttention) -> None:
    tokens, maps = _random(3, 5, CHANNELS), 3 * _random(3, 200, CHANNELS, seed=1) + 1
    normed = [F.layer_norm(one, (CHANNELS,)) for one in maps]
    found = absorbed_attention(block, tokens, normed)
    expected = block(tokens, maps)
    assert (found - expected).abs().max() < 5e-6 * expected.abs().max()


def test_absorbed_projections_under_autocast(block: CrossAttention) -> None:
    tokens, maps = _random(2, 5, CHANNELS), _random(2, 200, CHANNELS, seed=1)
    normed = [F.layer_norm(one, (CHANNELS,)) for one in maps]
    exact = block(tokens, maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = absorbed_attention(block, tokens, normed)
    assert (found - exact).square().mean() < 0.02**2 * exact.square().mean()
