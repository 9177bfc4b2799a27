"""Task encoder: pooling and merging give what the written-out formulas give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from iris_cli.network.blocks import fold
from iris_cli.network.config import ForegroundToken, NetworkConfig
from iris_cli.network.kernels.few_channels import convolve_to_one
from iris_cli.network.kernels.mask_crop import UpsampleTransposed, crop_masks
from iris_cli.network.task_encoder import MaskPairs, StageEncoder, TaskEncoder, pool_foreground
from tests.network.episodes import HALF, OPTIONS, TINY, build, images
from tests.network.episodes import masks as boxes

VALID = torch.tensor([[True, False], [True, True]])


def _features(requires_grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 8, 2, 3, 4, generator=generator).requires_grad_(requires_grad)


def _soft_masks() -> Tensor:
    return torch.rand(2, 2, 8, 12, 16, generator=torch.Generator().manual_seed(1))


def _literal_pooling(features: Tensor, pairs: MaskPairs) -> Tensor:
    up = F.interpolate(features, pairs.masks.shape[1:], mode="trilinear", align_corners=True)
    weighted = (up[pairs.episode] * pairs.masks[:, None]).sum(dim=(2, 3, 4))
    return weighted / pairs.masks.sum(dim=(1, 2, 3)).clamp(min=1)[:, None]


@pytest.mark.parametrize("kind", ["soft", "binary", "almost empty"])
def test_pooling_equals_pooling_of_up_sampled_features_with_its_gradient(kind: str) -> None:
    masks = {
        "soft": _soft_masks(),
        "binary": _soft_masks() > 0.7,
        "almost empty": _soft_masks() * 1e-4,
    }[kind]
    pairs = MaskPairs.select(masks, VALID)
    results = []
    for pool in (
        lambda f: pool_foreground(f, pairs, ForegroundToken.FULL),
        lambda f: _literal_pooling(f, pairs),
    ):
        features = _features(requires_grad=True)
        pooled = pool(features)
        pooled.square().sum().backward()
        results.append((pooled.detach(), features.grad))
    torch.testing.assert_close(results[0], results[1], atol=2e-6, rtol=1e-5)


def test_one_voxel_keeps_its_token_at_full_resolution_only() -> None:
    masks = torch.zeros(1, 1, 8, 12, 16)
    masks[0, 0, 3, 5, 6] = 1
    pairs = MaskPairs.select(masks, torch.ones(1, 1, dtype=torch.bool))
    features = _features()[:1]
    full, nearest, area = (
        pool_foreground(features, pairs, variant)
        for variant in (ForegroundToken.FULL, ForegroundToken.NEAREST, ForegroundToken.AREA)
    )
    assert full.abs().max() > 0.1
    assert (nearest == 0).all()
    torch.testing.assert_close(area[0], features[0, :, 0, 1, 1] / 4**3)


def test_nearest_reads_the_middle_of_the_cells() -> None:
    masks = torch.zeros(1, 1, 8, 12, 16)
    masks[0, 0, 2, 6, 10] = 1
    pairs = MaskPairs.select(masks, torch.ones(1, 1, dtype=torch.bool))
    pooled = pool_foreground(_features()[:1], pairs, ForegroundToken.NEAREST)
    torch.testing.assert_close(pooled[0], _features()[0, :, 0, 1, 2])


def _literal_context(stage: StageEncoder, features: Tensor, pairs: MaskPairs, cut: int) -> Tensor:
    """Section 3.2 to 3.4 of the specification as written, for `cut`^3 mask channels."""
    full = stage.full_resolution_map(features)[pairs.episode]
    both = torch.cat([full, fold(pairs.masks[:, None], cut)], dim=1)
    conv = stage.merge.conv
    merged = F.conv3d(F.relu(F.instance_norm(both)), conv.weight, conv.bias, padding=1)
    coarse = F.relu(F.instance_norm(fold(merged, stage.stride)))
    return stage.squeeze.conv(coarse) + features[pairs.episode]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "soft"])
@pytest.mark.parametrize("config", [TINY, HALF], ids=["full", "half"])
def test_split_merge_equals_convolving_the_concatenation(
    config: NetworkConfig, binary: bool
) -> None:
    torch.manual_seed(3)
    encoder = TaskEncoder(config)
    edge = 2 * config.size_multiple
    masks = torch.rand(2, 2, edge, edge, edge, generator=torch.Generator().manual_seed(4))
    pairs = MaskPairs.select(masks > 0.8 if binary else masks, VALID)
    of_masks = encoder.merge_masks(pairs)
    assert of_masks is not None
    for i, stage in enumerate(encoder):
        assert isinstance(stage, StageEncoder)
        size = edge // config.fold // stage.stride
        features = torch.randn(2, config.stage_channels(i), size, size, size)
        found = stage.context_map(features, pairs.episode, of_masks[:, i : i + 1])
        expected = _literal_context(stage, features, pairs, config.fold)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def _tokens(
    encoder: TaskEncoder, features: list[Tensor], masks: Tensor, valid: Tensor, *, plain: bool
) -> list[Tensor]:
    with torch.set_grad_enabled(plain):
        return [tokens.detach() for tokens in encoder(features, masks, valid)]


def _kinds_of_mask(image: Tensor) -> Tensor:
    """Boxes, one voxel at the edge of its cell, nothing, and everything, in two episodes."""
    found, cell = boxes(image, 5), image.shape[2]
    found[:, 1:4] = False
    found[0, 1, 1, cell - 1, cell] = True
    found[1, 1, -1, 0, -1] = True
    found[:, 3] = True
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_class_by_class_without_gradient_equals_all_pairs_at_once(name: str) -> None:
    config = OPTIONS[name]
    network, image = build(config), images(config, 2)
    valid = torch.tensor([[True, True, True, True, False], [False, True, False, True, True]])
    with torch.no_grad():
        features = list(network.encode_image(image))
    binary = _kinds_of_mask(image)
    soft = binary * torch.rand(binary.shape, generator=torch.Generator().manual_seed(7))
    for given in (binary, soft, soft * 1e-5):
        expected = _tokens(network.task_embedding, features, given, valid, plain=True)
        found = _tokens(network.task_embedding, features, given, valid, plain=False)
        for stage, tokens in enumerate(found):
            assert (tokens[~valid] == 0).all()
            torch.testing.assert_close(tokens, expected[stage], atol=3e-5, rtol=1e-5)


def test_class_by_class_in_bfloat16_stays_near_float32() -> None:
    network, image = build(HALF), images(HALF, 1)
    valid = torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        features = list(network.encode_image(image))
    given = _kinds_of_mask(torch.cat([image, image]))[:1]
    exact = _tokens(network.task_embedding, features, given, valid, plain=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = _tokens(network.task_embedding, features, given, valid, plain=False)
    for tokens, expected in zip(found, exact, strict=True):
        assert tokens.dtype == torch.float32
        assert (tokens - expected).square().mean() < 0.05**2 * expected.square().mean()


def test_no_class_at_all_gives_no_tokens() -> None:
    network, image = build(TINY), images(TINY, 1)
    with torch.no_grad():
        tokens = network.encode_task(network.encode_image(image), boxes(image, 2)[:, :0])
    assert [tuple(stage.shape) for stage in tokens] == [(1, 0, 3, 16), (1, 0, 3, 16), (1, 0, 3, 8)]


@pytest.mark.parametrize("channels", [1, 8])
def test_convolving_tap_by_tap_is_the_convolution(channels: int) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, channels, 3, 1, 5, generator=generator)
    weight = torch.randn(1, channels, 3, 3, 3, generator=generator)
    for bias in (None, torch.tensor([0.7])):
        expected = F.conv3d(x, weight, bias, padding=1)
        with torch.no_grad():
            found = convolve_to_one(x, weight, bias)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_crop_holds_its_mask_with_a_margin_and_an_empty_one_holds_one_cell() -> None:
    given = torch.zeros(3, 16, 24, 32)
    given[0, 4:8, 8, 15] = 0.2
    given[1, -1, -1, -1] = 1
    first, corner, empty = crop_masks(given, cell=4, margin=1)
    assert (first.start, tuple(first.mask.shape)) == ((0, 4, 12), (12, 8, 8))
    assert first.mask.sum() == given[0].sum()
    assert first.cells(4) == (slice(0, 3), slice(1, 3), slice(3, 5))
    assert (corner.start, tuple(corner.mask.shape)) == ((12, 20, 28), (4, 4, 4))
    assert (empty.start, tuple(empty.mask.shape)) == ((0, 0, 0), (4, 4, 4))
    assert [c.start for c in crop_masks(given > 0, cell=4, margin=1)] == [
        c.start for c in (first, corner, empty)
    ]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("kind", ["binary", "soft", "empty", "all ones"])
def test_a_crop_is_normalised_as_the_whole_mask(kind: str, size: int) -> None:
    ball = torch.zeros(1, 16, 24, 32)
    ball[0, 3:7, 9:15, 2:9] = torch.rand(4, 6, 7, generator=torch.Generator().manual_seed(6))
    given = {
        "binary": ball > 0.3,
        "soft": ball,
        "empty": torch.zeros_like(ball),
        "all ones": torch.ones_like(ball),
    }[kind]
    (crop,) = crop_masks(given, cell=8, margin=2)
    expected = F.relu(F.instance_norm(fold(given[None].float(), size), eps=1e-5))
    found = torch.zeros_like(expected)
    z, y, x = crop.cells(size)
    found[:, :, z, y, x] = crop.norm_relu(size, 1e-5)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_a_crop_goes_down_to_every_grid_as_the_whole_mask_is_up_sampled() -> None:
    given = torch.zeros(1, 16, 24, 32)
    given[0, 3:7, 9:15, 2:9] = torch.rand(4, 6, 7, generator=torch.Generator().manual_seed(6))
    (crop,) = crop_masks(given, cell=8, margin=1)
    sizes = [(2, 3, 4), (4, 6, 8)]
    for size, found in zip(
        sizes, UpsampleTransposed(crop.size, sizes, given.device)(crop), strict=True
    ):
        basis = torch.eye(found.numel()).reshape(1, -1, *size)
        up = F.interpolate(basis, given.shape[1:], mode="trilinear", align_corners=True)
        expected = (up[0] * given).sum(dim=(1, 2, 3)).reshape(size)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", [ForegroundToken.NEAREST, ForegroundToken.AREA])
def test_a_mask_of_everything_pools_nothing_rather_than_rounding(variant: ForegroundToken) -> None:
    """Mean 0 in exact numbers; what rounding leaves depends on the order of the sum."""
    config = TINY.model_copy(update={"foreground_token": variant, "context_tokens": False})
    network, image = build(config), images(config, 1)
    with torch.no_grad():
        features = list(network.encode_image(image))
    turned = [f.flip(2, 3, 4) for f in features]  # the same sum in another order
    masks, valid = torch.ones(1, 1, *image.shape[2:]), torch.ones(1, 1, dtype=torch.bool)
    for plain in (True, False):
        for one, other in zip(
            _tokens(network.task_embedding, features, masks, valid, plain=plain),
            _tokens(network.task_embedding, turned, masks, valid, plain=not plain),
            strict=True,
        ):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
