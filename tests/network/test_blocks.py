"""Blocks: the fold and its inverse, and forms chosen for speed against the plain ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_cli.network.blocks import ResidualBlock, convolve, fold, norm_relu, unfold, upsample

edges = st.integers(1, 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 2), st.tuples(edges, edges, edges), edges)
def test_unfold_inverts_fold(b: int, c: int, cells: tuple[int, int, int], size: int) -> None:
    z, y, x = (n * size for n in cells)
    image = torch.arange(b * c * z * y * x).reshape(b, c, z, y, x)
    folded = fold(image, size)
    assert folded.shape == (b, c * size**3, *cells)
    assert torch.equal(unfold(folded, size), image)


def test_fold_puts_x_offsets_fastest() -> None:
    image = torch.arange(8).reshape(1, 1, 2, 2, 2)
    assert fold(image, 2).flatten().tolist() == list(range(8))
    wide = torch.arange(16).reshape(1, 1, 2, 2, 4)
    assert fold(wide, 2)[0, :, 0, 0, 1].tolist() == [2, 3, 6, 7, 10, 11, 14, 15]


def test_upsample_is_trilinear_with_aligned_corners() -> None:
    x = torch.randn(2, 3, 2, 3, 1, dtype=torch.float32)
    size = torch.Size((4, 6, 2))
    expected = F.interpolate(x, size, mode="trilinear", align_corners=True)
    torch.testing.assert_close(upsample(x, size), expected, atol=1e-6, rtol=0)


def test_upsample_keeps_its_precision_under_autocast() -> None:
    x = torch.randn(1, 2, 2, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        up = upsample(x, torch.Size((4, 4, 4)))
    assert up.dtype == torch.float32
    assert torch.equal(up, upsample(x, torch.Size((4, 4, 4))))


def test_norm_relu_is_instance_norm_also_far_from_zero() -> None:
    x = torch.randn(2, 3, 4, 5, 6) * 3 + torch.tensor([-20.0, 0, 50])[:, None, None, None]
    expected = F.relu(F.instance_norm(x.double(), eps=1e-4)).float()
    torch.testing.assert_close(norm_relu(x), expected, atol=1e-5, rtol=1e-5)
    bf16 = norm_relu(x.bfloat16())
    assert bf16.dtype == torch.bfloat16
    torch.testing.assert_close(bf16.float(), expected, atol=0.1, rtol=0.02)


def test_widening_block_equals_its_three_parts() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(3, 5, 3)
    x = torch.randn(2, 3, 4, 4, 4)
    assert block.shortcut is not None
    expected = block.conv2(block.conv1(x)) + block.shortcut(x)
    torch.testing.assert_close(block(x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("edge", [1, 2, 3, 4])
def test_bfloat16_gradients_of_small_grids_are_right(edge: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, edge, edge, edge)
    weight = torch.randn(16, 16, 3, 3, 3, requires_grad=True)
    gradients = []
    for half in (False, True):
        weight.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            for _ in range(20):  # memory that was never written is only sometimes garbage
                convolve(x, weight).float().square().sum().backward()
        gradients.append(weight.grad.clone())
    worst = (gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max()
    assert bool(torch.isfinite(gradients[1]).all())
    assert worst < 0.02
