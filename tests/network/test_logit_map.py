"""Parts of the logits are those of the whole."""

from __future__ import annotations

import pytest
import torch

from iris_cli.network.config import NetworkConfig, Stem
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.network.logit_map import LogitMap


@pytest.fixture(params=[Stem.FULL, Stem.HALF])
def found(request: pytest.FixtureRequest) -> LogitMap:
    torch.manual_seed(0)
    fold = 2 if request.param is Stem.HALF else 1
    offsets = torch.randn(2, 5, fold**3) if fold == 2 else None
    return LogitMap(torch.randn(2, 3, 6, 4, 5), torch.randn(2, 5, fold**3, 3), offsets)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 4), (3, 4)])
def test_a_part_is_cut_out_of_the_whole(found: LogitMap, axis: int, low: int, high: int) -> None:
    whole = found.logits()
    assert whole.shape[2:] == tuple(n * found.fold for n in (6, 4, 5))
    part = found.logits_of([4, 0], axis, low, high)
    torch.testing.assert_close(part, whole[:, [4, 0]].narrow(2 + axis, low, high - low))


def test_windows_of_a_batch_are_its_items(found: LogitMap) -> None:
    torch.testing.assert_close(
        torch.cat([window.logits() for window in found.windows()]), found.logits()
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_lies_before_a_voxel_is_left_out(found: LogitMap, axis: int) -> None:
    rest, first = found.from_voxel(axis, 3)
    assert 3 - found.fold < first <= 3
    size = found.logits().shape[2 + axis]
    expected = found.logits().narrow(2 + axis, first, size - first)
    torch.testing.assert_close(rest.logits(), expected)
    assert rest.features.untyped_storage().nbytes() < found.features.untyped_storage().nbytes()


@torch.no_grad()
def test_decoding_in_two_steps_gives_the_logits() -> None:
    torch.manual_seed(0)
    network = IrisNetwork(NetworkConfig.tiny()).eval()
    features = network.encode_image(torch.randn(1, 1, 32, 32, 32))
    tokens = network.encode_task(features, torch.rand(1, 2, 32, 32, 32) > 0.5)
    torch.testing.assert_close(
        network.decode_map(features, tokens).logits(), network.decode(features, tokens)
    )


@pytest.mark.gpu
def test_features_may_wait_in_the_memory_of_the_host(found: LogitMap) -> None:
    offsets = None if found.offsets is None else found.offsets.cuda()
    there = LogitMap(found.features, found.weights.cuda(), offsets)
    part = there.logits_of([1], 0, 1, 4)
    assert part.is_cuda
    torch.testing.assert_close(part.cpu(), found.logits_of([1], 0, 1, 4), atol=1e-4, rtol=1e-4)
