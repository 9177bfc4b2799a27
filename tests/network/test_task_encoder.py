"""Task encoder: pooling and merging give what the written-out formulas give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from iris_cli.network.blocks import fold
from iris_cli.network.config import ForegroundToken, NetworkConfig
from iris_cli.network.task_encoder import MaskPairs, StageEncoder, TaskEncoder, pool_foreground
from tests.network.episodes import HALF, TINY

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
