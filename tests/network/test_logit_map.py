"""Parts of the logits are those of the whole."""

from __future__ import annotations

import pytest
import torch

from iris_cli.network.config import NetworkConfig, Stem
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.network.logit_map import LogitMap, Share, weighted_sum


@pytest.fixture(params=[Stem.FULL, Stem.HALF])
def found(request: pytest.FixtureRequest) -> LogitMap:
    torch.manual_seed(0)
    fold = 2 if request.param is Stem.HALF else 1
    offsets = torch.randn(2, 5, fold**3) if fold == 2 else None
    return LogitMap(torch.randn(2, 3, 6, 4, 5), torch.randn(2, 5, fold**3, 3), offsets)


BOX = (slice(1, 5), slice(0, 3), slice(3, 4))


def test_a_part_is_cut_out_of_the_whole(found: LogitMap) -> None:
    whole = found.logits()
    assert whole.shape[2:] == tuple(n * found.fold for n in (6, 4, 5))
    part = found.of_classes([4, 0]).logits_in(BOX)
    torch.testing.assert_close(part, whole[:, [4, 0]][(..., *BOX)])
    torch.testing.assert_close(found.of_classes(slice(1, 3)).logits(), whole[:, 1:3])


def test_windows_of_a_batch_are_its_items(found: LogitMap) -> None:
    torch.testing.assert_close(
        torch.cat([window.logits() for window in found.windows()]), found.logits()
    )


def test_a_copy_of_a_part_begins_where_it_says(found: LogitMap) -> None:
    part, first = found.cut(BOX)
    assert all(0 <= box.start - f < found.fold for box, f in zip(BOX, first, strict=True))
    z, y, x = (slice(a, a + n) for a, n in zip(first, part.logits().shape[2:], strict=True))
    torch.testing.assert_close(part.logits(), found.logits()[..., z, y, x])
    assert part.features.untyped_storage().nbytes() < found.features.untyped_storage().nbytes()


def test_weighted_logits_of_several_maps_add_up(found: LogitMap) -> None:
    """Their weights lie beside each other where the box is covered by one only."""
    one, other = found.windows()
    shape, weight = (4, 3, 2), torch.rand(2, 4, 3, 2)
    there = (slice(1, 5), slice(0, 3), slice(2, 4))
    half = (slice(2, 4), slice(0, 3), slice(1, 2))
    shares = [
        Share(one, there, (slice(0, 4), slice(0, 3), slice(0, 2)), weight[0]),
        Share(other, (slice(0, 2), slice(1, 4), slice(4, 5)), half, weight[1][half]),
    ]
    expected = one.logits()[0][(slice(None), *there)] * weight[0]
    second = other.logits()[0][:, 0:2, 1:4, 4:5]
    expected[(slice(None), *half)] += second * weight[1][half]
    maps, mix = weighted_sum(shares, shape)
    total = maps if mix is None else torch.einsum("kr,rzyx->kzyx", mix, maps)
    torch.testing.assert_close(total, expected)
    assert (mix is None) == (found.fold > 1)


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
    part = there.logits_in(BOX)
    assert part.is_cuda
    torch.testing.assert_close(part.cpu(), found.logits_in(BOX), atol=1e-4, rtol=1e-4)
