"""The sliding window: blending, groups, dropped classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from iris_cli.inference.sliding import predict_logits
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork

PATCH = (32, 32, 32)


class Echo(nn.Module):
    """A network whose logit of class k is the image times the class's first token value."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Tensor] = []

    def encode_image(self, image: Tensor) -> tuple[Tensor, ...]:
        self.images.append(image)
        return (image,)

    def decode(self, features: Sequence[Tensor], tokens: Sequence[Tensor]) -> Tensor:
        return features[0] * tokens[0][:, :, 0, 0, None, None, None]


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 33, 20)).astype(np.float32)


@pytest.mark.parametrize("window_batch", [1, 3, 7])
def test_blending_equal_windows_gives_back_the_volume(image: np.ndarray, window_batch: int) -> None:
    tokens = [torch.tensor([1.0, -2.0])[:, None, None]]
    logits = predict_logits(
        Echo(),
        tokens,
        image,
        -9.0,
        PATCH,
        window_batch=window_batch,  # type: ignore[arg-type]
    )
    np.testing.assert_allclose(logits[0], image, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits[1], -2 * image, rtol=1e-5, atol=1e-6)


def test_padding_takes_the_fill(image: np.ndarray) -> None:
    echo = Echo()
    predict_logits(echo, [torch.ones(1, 1, 1)], image, -9.0, PATCH)  # type: ignore[arg-type]
    window = echo.images[0][0, 0]
    assert (window[:, :, :6] == -9).all()
    assert (window[:, :, 26:] == -9).all()
    np.testing.assert_array_equal(window[:, :, 6:26], image[:32, :32])


@pytest.fixture(scope="module")
def network() -> IrisNetwork:
    torch.manual_seed(0)
    return IrisNetwork(NetworkConfig.tiny()).eval()


@pytest.fixture(scope="module")
def tokens(network: IrisNetwork) -> list[Tensor]:
    torch.manual_seed(1)
    config = network.config
    return [
        torch.randn(3, config.tokens, config.stage_channels(stage))
        for stage in range(config.stages)
    ]


def test_dropped_classes_change_no_logit_of_the_kept_ones(
    network: IrisNetwork, tokens: list[Tensor], image: np.ndarray
) -> None:
    every = predict_logits(network, tokens, image, 0.0, PATCH)
    kept = predict_logits(network, tokens, image, 0.0, PATCH, keep=[2, 0])
    assert torch.equal(kept, every[[2, 0]])


def test_groups_are_decoded_apart_and_only_where_wanted(
    network: IrisNetwork, tokens: list[Tensor], image: np.ndarray
) -> None:
    alone = predict_logits(network, [stage[[1]] for stage in tokens], image, 0.0, PATCH)
    grouped = predict_logits(network, tokens, image, 0.0, PATCH, groups=[[0, 2], [1]])
    only = predict_logits(network, tokens, image, 0.0, PATCH, groups=[[0, 2], [1]], keep=[1])
    assert torch.equal(grouped[1], alone[0])
    assert torch.equal(only[0], alone[0])
    together = predict_logits(network, tokens, image, 0.0, PATCH)
    assert not torch.allclose(together[1], alone[0], atol=1e-4)


def test_windows_of_one_batch_do_not_see_each_other(
    network: IrisNetwork, tokens: list[Tensor], image: np.ndarray
) -> None:
    one = predict_logits(network, tokens, image, 0.0, PATCH)
    several = predict_logits(network, tokens, image, 0.0, PATCH, window_batch=4)
    assert float((one - several).abs().max()) < 1e-3 * float(one.max() - one.min())


def test_progress_counts_windows(network: IrisNetwork, tokens: list[Tensor]) -> None:
    seen: list[tuple[int, int]] = []
    volume = np.zeros((64, 32, 32), np.float32)
    volume[0] = 1
    predict_logits(
        network, tokens, volume, 0.0, PATCH, window_batch=2, on_window=lambda *n: seen.append(n)
    )
    assert seen == [(2, 3), (3, 3)]
