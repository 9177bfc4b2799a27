"""Kernels of inference against the plain forms, which run where a gradient is wanted."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from iris_cli.network import logit_map
from iris_cli.network.attention import CrossAttention, FeedForward, SelfAttention
from iris_cli.network.blocks import ResidualBlock, residual_stack, upsample
from iris_cli.network.config import NetworkConfig, Stem
from iris_cli.network.encoder import Stem as FirstLevel
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.network.kernels import residual_stack as residual_stack_kernel
from iris_cli.network.kernels import rows, slices
from iris_cli.network.kernels.depth_filter import (
    DepthFilter,
    DirectFilter,
    PlaneFilter,
    SlabFilter,
    choose_filter,
)
from iris_cli.network.kernels.residual_stack import FilterCache, serves
from iris_cli.network.kernels.slices import StoredSlices, UpsampledSlices, moments

FP32 = torch.float32


@pytest.fixture(autouse=True)
def _seeded_without_grad() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def many_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps pass in several slabs, as large ones do."""
    monkeypatch.setattr(slices, "SLAB_BYTES", 4096)


@pytest.mark.parametrize("groups", [1, 3])
def test_depth_filter_is_the_convolution(groups: int) -> None:
    weight = torch.randn(5, 7, 3, 3, 3)
    slab = torch.randn(4 * groups + 2, 7, 9, 6)
    found = DepthFilter.of(weight, FP32)(slab)
    expected = _convolved(slab.double(), weight.double())
    assert found.shape == expected.shape
    direct = float((_convolved(slab, weight) - expected).abs().max())
    assert (found - expected).abs().max() < max(20 * direct, 1e-5)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_direct_filter_is_the_convolution(size: int) -> None:
    weight, slab = torch.randn(5, 7, size, size, size), torch.randn(6 + size - 1, 7, 4, 3)
    torch.testing.assert_close(
        DirectFilter.of(weight, FP32)(slab), _convolved(slab, weight), atol=1e-4, rtol=1e-5
    )


def test_plane_filter_is_the_convolution_and_nearer_than_the_others() -> None:
    weight, slab = torch.randn(32, 32, 3, 3, 3), torch.randn(10, 32, 16, 16).relu_()
    expected = _convolved(slab.double(), weight.double())

    def error(kernel: type[PlaneFilter] | type[DirectFilter] | type[DepthFilter]) -> float:
        found = kernel.of(weight, FP32)(slab.contiguous(memory_format=torch.channels_last))
        return float((found - expected).square().mean().sqrt() / expected.std())

    assert error(PlaneFilter) < 5e-7
    assert error(PlaneFilter) <= 1.1 * error(DirectFilter)
    assert 1.5 * error(PlaneFilter) < error(DepthFilter) < 2e-6


def test_only_deep_maps_and_kernels_of_three_are_transformed() -> None:
    three, five = torch.randn(2, 2, 3, 3, 3), torch.randn(2, 2, 5, 5, 5)
    assert isinstance(choose_filter(three, 64, FP32), DepthFilter)
    assert isinstance(choose_filter(three, 4, FP32), DirectFilter)
    assert isinstance(choose_filter(five, 64, FP32), DirectFilter)
    assert isinstance(choose_filter(three, 64, FP32, exact=True), PlaneFilter)
    assert isinstance(choose_filter(five, 64, FP32, exact=True), DirectFilter)
    assert isinstance(choose_filter(three, 64, torch.bfloat16, exact=True), DirectFilter)


@pytest.mark.usefixtures("many_slabs")
def test_moments_are_exact_far_from_zero() -> None:
    volume = torch.randn(3, 40, 50, 20) + torch.tensor([-300.0, 0.0, 1000.0])[:, None, None, None]
    volume[:, 20:] *= 3
    mean, variance = moments(StoredSlices(volume))
    exact = volume.double().flatten(1)
    torch.testing.assert_close(mean.double(), exact.mean(1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(variance.double(), exact.var(1, unbiased=False), atol=0, rtol=1e-6)


def test_upsampled_slices_are_trilinear() -> None:
    for low, size in (((3, 4, 5), (6, 7, 10)), ((1, 2, 1), (3, 4, 2)), ((4, 3, 2), (4, 3, 2))):
        volume = torch.randn(1, 2, *low)
        rows = UpsampledSlices(volume[0], torch.Size(size))
        parts = [rows.slab(z, min(z + 2, size[0])) for z in range(0, size[0], 2)]
        found = torch.cat(parts).transpose(0, 1)[None]
        torch.testing.assert_close(found, upsample(volume, torch.Size(size)), atol=1e-6, rtol=0)


@pytest.mark.usefixtures("many_slabs")
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("depth", [5, 14])
def test_stack_of_blocks_joined_with_the_map_below(kernel: int, depth: int) -> None:
    blocks = [ResidualBlock(3 + 4, 6, kernel), ResidualBlock(6, 6, kernel)]
    x, below = torch.randn(3, 3, depth, 8, 10), torch.randn(3, 4, 3, 4, 5)
    kept = x.clone()
    found = residual_stack(blocks, x, below)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(x, kept)
    torch.testing.assert_close(found, _plain(blocks, x, below), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("many_slabs")
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_result_may_take_the_place_of_the_map(kernel: int, batch: int) -> None:
    blocks = [ResidualBlock(6 + 4, 6, kernel), ResidualBlock(6, 6, kernel)]
    x = torch.randn(batch, 6, 14, 8, 10).contiguous(memory_format=torch.channels_last_3d)
    below = torch.randn(batch, 4, 3, 4, 5)
    expected = _plain(blocks, x, below)
    found = residual_stack(blocks, x, below, overwrite=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    if batch == 1:
        assert found.data_ptr() == x.data_ptr()


def test_block_without_shortcut_convolution_leaves_its_input() -> None:
    blocks, x = [ResidualBlock(4, 4, 3)], torch.randn(2, 4, 12, 6, 5)
    kept = x.clone()
    found = residual_stack(blocks, x)
    assert torch.equal(x, kept)
    torch.testing.assert_close(found, _plain(blocks, x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        residual_stack(blocks, x, overwrite=True), found, atol=1e-6, rtol=1e-6
    )


@pytest.mark.usefixtures("many_slabs")
@pytest.mark.parametrize(("channels", "kernel"), [(1, 3), (8, 3), (2, 5)])
def test_first_level(channels: int, kernel: int) -> None:
    level, x = FirstLevel(channels, 4, kernel), torch.randn(2, channels, 13, 6, 7)
    with torch.enable_grad():
        expected = level(x).detach()
    torch.testing.assert_close(level(x), expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_stays_within_its_rounding() -> None:
    blocks, x = [ResidualBlock(16, 8, 3)], torch.randn(1, 12, 16, 8, 8)
    below = torch.randn(1, 4, 8, 4, 4)
    exact = _plain(blocks, x, below)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = residual_stack(blocks, x, below)
        plain = _plain(blocks, x, below)
    assert found.dtype == torch.bfloat16
    error, usual = ((y.float() - exact).square().mean().sqrt() for y in (found, plain))
    assert error < 2 * usual


def test_changed_weights_are_seen() -> None:
    block, x = ResidualBlock(4, 4, 3), torch.randn(1, 4, 12, 6, 5)
    residual_stack([block], x)
    block.conv1.conv.weight.mul_(2)
    block.conv2.conv.weight = torch.nn.Parameter(block.conv2.conv.weight * 3)
    torch.testing.assert_close(residual_stack([block], x), _plain([block], x), atol=1e-5, rtol=1e-5)
    other = copy.deepcopy(block)
    other.load_state_dict(ResidualBlock(4, 4, 3).state_dict())
    torch.testing.assert_close(residual_stack([other], x), _plain([other], x), atol=1e-5, rtol=1e-5)


def test_filters_are_made_once() -> None:
    cache, weight = FilterCache(), torch.randn(2, 2, 3, 3, 3)
    first = cache.filter([weight], 64, FP32)
    assert cache.filter([weight], 64, FP32) is first
    assert cache.filter([weight], 4, FP32) is not first
    assert cache.filter([weight.clone()], 64, FP32) is not first


def test_threads_that_share_a_cache_get_the_filter_of_their_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another thread clears what was made, while a filter is in the making."""
    cache, mine, yours = FilterCache(), torch.randn(1, 2, 3, 3, 3), torch.randn(1, 2, 3, 3, 3)
    plain, left = residual_stack_kernel.choose_filter, [yours]

    def interrupted(weight: Tensor, depth: int, kind: torch.dtype, *, exact: bool) -> SlabFilter:
        if left:
            cache.filter([left.pop()], depth, kind)
        return plain(weight, depth, kind, exact=exact)

    monkeypatch.setattr(residual_stack_kernel, "choose_filter", interrupted)
    slab = torch.randn(6, 2, 5, 5)
    for weight in (mine, yours, mine):
        found = cache.filter([weight], 4, FP32)(slab)
        torch.testing.assert_close(found, plain(weight, 4, FP32)(slab))


def test_a_shortcut_convolution_needs_no_copy_of_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[torch.Size] = []
    clone = torch.Tensor.clone

    def counted(x: Tensor, *args: object, **options: object) -> Tensor:
        copied.append(x.shape)
        return clone(x, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.Tensor, "clone", counted)
    x = torch.randn(1, 4, 12, 6, 5)
    residual_stack([ResidualBlock(4, 6, 3)], x)
    assert x.shape[1:] not in copied
    residual_stack([ResidualBlock(4, 4, 3)], x)
    assert x.shape[1:] in copied


@pytest.mark.parametrize("shape", [(2, 90, 24), (1, 700, 24), (3, 5, 24)])
def test_linear_layer_over_many_rows(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(40, 24), torch.randn(40)
    packed = torch.randn(80, 24)
    channels_first = x.transpose(1, 2).contiguous().transpose(1, 2)
    for rows_ in (x, channels_first):
        found = rows.linear(rows_, weight, bias)
        assert found.shape == (*shape[:2], 40)
        torch.testing.assert_close(found, F.linear(x, weight, bias), atol=1e-5, rtol=1e-5)
    part = rows.linear(x, packed[40:], bias)
    torch.testing.assert_close(part, F.linear(x, packed[40:], bias), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 700, 16), (1, 1024, 16), (1, 1030, 16)])
def test_token_blocks_over_many_rows(shape: tuple[int, ...]) -> None:
    """Rows in more than one part, in one, and in one with a few left over."""
    x, tokens = torch.randn(shape), torch.randn(shape[0], 200, 16)
    mlp, cross, own = FeedForward(16), CrossAttention(16, 4), SelfAttention(16, 4)
    valid = torch.rand(shape[0], 200) > 0.3
    found = mlp(x), cross(x, tokens, valid), cross(tokens, x), own(tokens, valid)
    with torch.enable_grad():
        plain = mlp(x), cross(x, tokens, valid), cross(tokens, x), own(tokens, valid)
    assert rows.pays(x)
    for one, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(one, expected.detach(), atol=1e-5, rtol=1e-5)


def test_rows_of_other_precisions_take_the_plain_form() -> None:
    x = torch.randn(1, 300, 16)
    assert not rows.pays(x.bfloat16())
    assert not rows.pays(x[:, :100])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not rows.pays(x)
        assert FeedForward(16)(x).dtype is torch.bfloat16
    with torch.enable_grad():
        assert not rows.pays(x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("batch", [1, 2])
def test_logits_multiplied_out_part_by_part(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format, batch: int
) -> None:
    monkeypatch.setattr(logit_map, "PRODUCTS_AT_ONCE", 100)
    features = torch.randn(batch, 8, 5, 6, 7).contiguous(memory_format=layout)
    weights = torch.randn(batch, 3, 1, 8)
    found = logit_map.LogitMap(features, weights, None).logits()
    expected = torch.einsum("bkfc,bczyx->bkzyx", weights, features)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_other_types_and_gradients_take_the_plain_form() -> None:
    assert serves(torch.zeros(1))
    assert not serves(torch.zeros(1).double())
    assert not serves(torch.zeros(1, device="meta"))
    with torch.enable_grad():
        assert not serves(torch.zeros(1))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stem": Stem.HALF},
        {"kernel_sizes": (5, 3, 1, 3, 3), "scales": (1, 2, 3, 1)},
        {"blocks": (2, 1, 3, 1), "stages": 2},
    ],
)
def test_network_without_gradient_computes_the_same(changes: dict[str, object]) -> None:
    config = NetworkConfig.tiny().model_copy(update=changes)
    network = IrisNetwork(config)
    edge = 2 * config.size_multiple
    image = torch.randn(2, 1, edge, edge, edge)
    tokens = [
        torch.randn(2, 3, config.tokens, config.stage_channels(i)) for i in range(config.stages)
    ]
    valid = torch.tensor([[True, True, False], [True, False, False]])
    found = network.decode(network.encode_image(image), tokens, valid)
    with torch.enable_grad():
        plain = network.decode(network.encode_image(image), tokens, valid).detach()
    assert (found - plain).abs().max() < 1e-4 * plain.abs().max()
    again = network.decode(network.encode_image(image), tokens, valid, overwrite=True)
    torch.testing.assert_close(again, found, atol=1e-6, rtol=1e-6)


def _plain(blocks: list[ResidualBlock], x: Tensor, below: Tensor | None = None) -> Tensor:
    with torch.enable_grad():
        return residual_stack(blocks, x, below).detach()


def _convolved(slab: Tensor, weight: Tensor) -> Tensor:
    half = weight.shape[-1] // 2
    volume = slab.transpose(0, 1)[None]
    return F.conv3d(volume, weight, padding=(0, half, half))[0].transpose(0, 1)
